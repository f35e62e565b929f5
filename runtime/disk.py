"""What a peer's folder takes of the disk, and whether its user's limit has room for more."""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What is not counted as it is written, such as a history that is written anew, is found by looking again.
LOOK_AGAIN_S = 10.0


def folder_bytes(folder: Path) -> int:
    """Of all files in it; links are counted, and not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
            except OSError:
                # Let go of meanwhile.
                continue
    return total


def replace_file(file: Path, content: bytes, sync: bool = False) -> None:
    """Write a file: whoever reads it finds what was there or what is to be; after a loss of power too, with ``sync``.

    A link stays, and what it leads to is written: a container's invite lies in a volume that others read.

    Raises: OSError; nothing is changed then.
    """
    file = Path(os.path.realpath(file))
    beside = file.with_name(f".{file.name}.new")
    try:
        with beside.open("wb") as new:
            new.write(content)
            with suppress(OSError):
                # Its owner may have given it to others to read.
                os.fchmod(new.fileno(), stat.S_IMODE(file.stat().st_mode))
            if sync:
                new.flush()
                os.fsync(new.fileno())
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


class Allotment:
    """The bytes that a folder may hold. Whoever writes into it takes them first, from any thread.

    Args: most says how many there are, 0 for as many as the disk has.
    """

    def __init__(self, folder: Path, most: Callable[[], int]) -> None:
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._used, self._looked_at = folder_bytes(folder), time.monotonic()
        self._being_written = 0

    def look(self) -> None:
        """See what the folder really holds: something may have been deleted."""
        with self._lock:
            self._used, self._looked_at = folder_bytes(self._folder), time.monotonic()

    def lacks(self, n_bytes: int) -> int:
        """How many would have to go before so many could be taken; not above 0 if they could be."""
        most = self._most()
        return self._used + self._being_written + n_bytes - most if most else 0

    def take(self, n_bytes: int, leaving: int = 0) -> bool:
        """Whether so many may be written, and ``leaving`` more, for what is being written or comes after it."""
        with self._lock:
            leaving -= min(self._being_written, leaving)
        if self.lacks(n_bytes + leaving) > 0 and time.monotonic() > self._looked_at + LOOK_AGAIN_S:
            self.look()
        with self._lock:
            if self.lacks(n_bytes + leaving) > 0:
                return False
            self._used += n_bytes
            return True

    @contextmanager
    def writing(self, n_bytes: int) -> Iterator[None]:
        """While something is written that takes so many at most: whatever a look finds of it, they count.

        Raises: OSError if there is no room.
        """
        with self._lock:
            if self.lacks(n_bytes) > 0:
                raise OSError("the limit for the disk has no room for a second one beside it")
            self._being_written += n_bytes
        try:
            yield
        finally:
            with self._lock:
                self._being_written -= n_bytes
            self.look()
