"""The folder of a peer: which run it belongs to, and what the peer has to find its way back into it."""

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from peers.errors import ProtocolViolation
from runtime.checkpoints import CHECKPOINTS
from runtime.disk import replace_file
from runtime.errors import ConfigError, NotNowError, blame_for
from runtime.invite import Invite, format_invite, parse_invite
from runtime.manifest import Manifest, open_manifest
from runtime.partial import PARTIAL

MANIFEST_FILE = "manifest"
ADDRESSES_FILE = "addresses"
PORT_FILE = "port"
INVITE_FILE = "invite"
# What may be in a folder that has no manifest yet, beside hidden files: a peer's own, and what its user has put there.
PEERS_NAMES = {ADDRESSES_FILE, PORT_FILE, INVITE_FILE, "control.sock", "lost+found"}
PEERS_SUFFIXES = {".jsonl", ".key", ".log", ".toml"}
STATE_NAMES = {CHECKPOINTS, PARTIAL}
# Of the addresses in the folder, those that were heard last, this many open the DHT.
MOST_BOOTSTRAP = 16


class Folder:
    """What one peer keeps at ``path`` beside its state and its log. That it cannot be written stops no run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_no_others(self, joins: bool) -> None:
        """Whether a peer may write here: it might replace what is nobody's of a run.

        Args: joins if an invite names the run. Of a folder that has lost its manifest it brings that back; who opens a
            run would make another one of it.
        Raises: ConfigError.
        """
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        known = PEERS_NAMES | STATE_NAMES if joins else PEERS_NAMES
        others = [
            name
            for name in names
            if not name.startswith(".") and name not in known and Path(name).suffix not in PEERS_SUFFIXES
        ]
        if MANIFEST_FILE in names:
            return
        if lost := STATE_NAMES.intersection(others):
            raise ConfigError(
                f"{self.path} has {min(lost)} and not the manifest that says what its run is: atoll join, with the"
                " run's invite and this --folder, brings it back from any member"
            )
        if others:
            raise ConfigError(
                f"{self.path} has files in it that are no peer's, such as {others[0]}: name a new folder with --folder"
            )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the members of the run could be dialled when the folder was last used, those heard last first."""
        with suppress(FileNotFoundError):
            return tuple((self.path / ADDRESSES_FILE).read_text(encoding="utf-8", errors="ignore").split())
        return ()

    def keep_addresses(self, addresses: Sequence[str]) -> None:
        self._keep(ADDRESSES_FILE, "\n".join(addresses))

    @property
    def port(self) -> int:
        """The port that this peer had before: others, and its invite, still have that one. 0 if it is not known."""
        with suppress(OSError, ValueError):
            return int((self.path / PORT_FILE).read_text(encoding="ascii"))
        return 0

    def keep_port(self, port: int) -> None:
        self._keep(PORT_FILE, str(port))

    @property
    def invite(self) -> Invite | None:
        """The invite that this peer printed when it was started last; None if there is none that can be used."""
        with suppress(OSError, ValueError, ConfigError):
            return parse_invite((self.path / INVITE_FILE).read_text(encoding="ascii"))
        return None

    def keep_invite(self, invite: Invite) -> None:
        self._keep(INVITE_FILE, f"{format_invite(invite)}\n")

    def _keep(self, name: str, content: str) -> None:
        """Where the disk is full what was there before stands."""
        file = self.path / name
        try:
            replace_file(file, content.encode())
        except OSError as error:
            if blame_for(error) is not NotNowError:
                # It leads to where no other file can be made, or another system has it mounted.
                with suppress(OSError):
                    file.write_bytes(content.encode())

    def manifest(self) -> Manifest | None:
        """The manifest of the run that the folder belongs to, None if it is new.

        Raises: ConfigError if there is one that cannot be used.
        """
        file = self.path / MANIFEST_FILE
        try:
            sealed = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{file} cannot be read ({error.strerror}): name another folder with --folder") from None
        try:
            return open_manifest(sealed, None, "disk")
        except ProtocolViolation as error:
            raise ConfigError(f"{file} is damaged ({error.reason}): name another folder with --folder") from None

    def claim(self, manifest: Manifest) -> None:
        """Keep the manifest, so that the state of one run never becomes another's.

        Raises: ConfigError if the folder has another run's.
        """
        file = self.path / MANIFEST_FILE
        try:
            if not file.exists():
                replace_file(file, manifest.sealed, sync=True)
            elif file.read_bytes() != manifest.sealed:
                raise ConfigError(f"{self.path} belongs to another run: name another folder with --folder")
        except OSError as error:
            raise unwritable(self.path, error) from None


def unwritable(folder: Path, error: OSError) -> ConfigError:
    return blame_for(error)(f"{folder} cannot be written ({error.strerror}): name another with --folder")


def in_use(path: Path) -> bool:
    """Whether a peer has this folder, or key, now."""
    try:
        lock(path)()
    except NotNowError:
        return True
    except (ConfigError, OSError):
        # What may not be opened, or locked, is nobody's that runs as this user.
        pass
    return False


def lock(path: Path) -> Callable[[], None]:
    """Keep other peers of this machine from using a key or a folder; the function that gives it back.

    Raises: NotNowError if one does; ConfigError where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        other = f"another with {'--folder' if path.is_dir() else '--key'}"
        if isinstance(error, BlockingIOError):
            raise NotNowError(f"{path} is in use by another peer on this machine: name {other}") from None
        raise ConfigError(
            f"{path} cannot be locked ({error.strerror}): name {other}, on a disk that has locks"
        ) from None
    return lambda: os.close(descriptor)
