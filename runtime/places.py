"""Where Atoll keeps what is a user's own, as the XDG base directories have it."""

import os
from pathlib import Path


def config_home() -> Path:
    return _under("XDG_CONFIG_HOME", ".config")


def data_home() -> Path:
    """Folders of peers that have joined runs, each named by the first twelve digits of the run id."""
    return _under("XDG_DATA_HOME", ".local/share")


def _under(variable: str, under_home: str) -> Path:
    """A relative path in the variable is to be ignored."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / under_home) / "atoll"
