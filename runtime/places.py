"""Where Atoll keeps what is a user's own, as the XDG base directories have it."""

import os
from pathlib import Path


def config_home() -> Path:
    return _under("XDG_CONFIG_HOME", ".config")


def data_home() -> Path:
    """Folders of peers that have joined runs, each named by the first twelve digits of the run id."""
    return _under("XDG_DATA_HOME", ".local/share")


def default_key() -> Path:
    """The private key of this user's peers."""
    return config_home() / "identity.key"


def guide_key() -> Path:
    """The private key of a bootstrap peer."""
    return config_home() / "bootstrap.key"


def joined_folder(run_id: str) -> Path:
    """The folder of a peer that joins a run, unless somebody says otherwise."""
    return data_home() / run_id[:12]


def opened_folder(run_file: Path) -> Path:
    """The folder of the peer that opens a run, unless somebody says otherwise: run.toml has run.peer."""
    return run_file.with_suffix(".peer")


def _under(variable: str, under_home: str) -> Path:
    """A relative path in the variable is to be ignored."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / under_home) / "atoll"
