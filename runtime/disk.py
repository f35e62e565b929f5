"""What a peer's folder takes of the disk, and whether its user's limit has room for more."""

import os
import threading
import time
from collections.abc import Callable
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


class Allotment:
    """The bytes that a folder may hold. Whoever writes into it takes them first, from any thread.

    Args: most says how many there are, 0 for as many as the disk has.
    """

    def __init__(self, folder: Path, most: Callable[[], int]) -> None:
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._used, self._looked_at = folder_bytes(folder), time.monotonic()

    def look(self) -> None:
        """See what the folder really holds: something may have been deleted."""
        with self._lock:
            self._used, self._looked_at = folder_bytes(self._folder), time.monotonic()

    def has(self, n_bytes: int) -> bool:
        """Whether so many could be taken."""
        most = self._most()
        return not most or self._used + n_bytes <= most

    def take(self, n_bytes: int, leaving: int = 0) -> bool:
        """Whether so many may be written, so that ``leaving`` more could be; if so they count as written."""
        if not self.has(n_bytes + leaving) and time.monotonic() > self._looked_at + LOOK_AGAIN_S:
            self.look()
        with self._lock:
            if not self.has(n_bytes + leaving):
                return False
            self._used += n_bytes
            return True
