"""Which peers of this user run on this machine: each is noted while it runs, by a link to its folder."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtime.control import SOCKET, is_running
from runtime.errors import ConfigError
from runtime.folder import MANIFEST_FILE, Folder
from runtime.places import data_home

RUNNING = "running"
# A command names so many, and counts the others.
MOST_NAMED = 8


def note_running(folder: Path) -> Callable[[], None]:
    """Note a peer that begins; what takes the note back. Where there is no place for it, its folder has to be named."""
    link = data_home() / RUNNING / hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    with suppress(OSError):
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(folder.absolute())

    def forget() -> None:
        with suppress(OSError):
            link.unlink()

    return forget


def running_folders() -> list[Path]:
    """Folders of the peers that run now. What one that was killed has left is cleared away."""
    found = []
    for link in sorted((data_home() / RUNNING).glob("*")):
        with suppress(OSError):
            folder = link.readlink()
            if is_running(folder):
                found.append(folder)
            else:
                link.unlink()
    return found


def command_line(pid: int) -> list[str]:
    """What a process was started with; empty where the system does not tell."""
    # Whoever only watches has none, and none of these peers.
    import psutil

    try:
        return [str(word) for word in psutil.Process(pid).cmdline()]
    except psutil.Error:
        return []


def find_running(name: str | None) -> Path:
    """The folder of the peer that a user means: by its folder, its run's name or the beginning of its run id; with
    None the only one that runs.

    Raises: ConfigError if there is none, or more than one.
    """
    if name and any(os.path.lexists(Path(name) / file) for file in (SOCKET, MANIFEST_FILE)):
        if not is_running(Path(name)):
            raise ConfigError(f"no peer runs in {name} now: atoll join, or atoll start, starts it")
        return Path(name)
    folders = running_folders()
    if name is None and not folders:
        raise ConfigError("no peer of yours runs on this machine: atoll join INVITE starts one")
    meant = [folder for folder in folders if name is None or name in _names(folder)]
    if not meant and name:
        meant = [folder for folder in folders if len(name) >= 4 and _names(folder)[-1].startswith(name)]
    if not meant:
        raise ConfigError(f"no peer of yours runs for {name!r}: there is {_listed(folders) or 'none'}")
    if len(meant) > 1:
        raise ConfigError(f"{len(meant)} of your peers run here: say which folder, of {_listed(meant)}")
    return meant[0]


def _names(folder: Path) -> tuple[str, str, str]:
    """What it may be called by: folder, name of the run, run id; the last two empty while it has no manifest."""
    with suppress(ConfigError):
        if (manifest := Folder(folder).manifest()) is not None:
            return str(folder), manifest.config.name, manifest.run_id
    return str(folder), "", ""


def _listed(folders: list[Path]) -> str:
    rest = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    return ", ".join(map(str, folders[:MOST_NAMED])) + rest
