"""What has come of a state whose download was interrupted, in a peer's folder."""

import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

PARTIAL = "joining"


class PartialState:
    """A file for each piece, named by its digest. What a full disk does not take is fetched again after a restart.

    Args: may_write says whether the user's limit has room for so many bytes.
    """

    def __init__(self, folder: Path, may_write: Callable[[int], bool] = lambda n_bytes: True) -> None:
        self._folder, self._may_write = folder / PARTIAL, may_write

    def recall(self, digest: bytes) -> bytes | None:
        """What was kept under this name; whoever asks checks it."""
        with suppress(OSError):
            return (self._folder / digest.hex()).read_bytes()
        return None

    def keep(self, digest: bytes, piece: bytes) -> None:
        if not self._may_write(len(piece)):
            return
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            (self._folder / digest.hex()).write_bytes(piece)

    def only(self, digests: Collection[bytes]) -> None:
        """Let go of all others: they are of a state that nobody offers any more."""
        names = {digest.hex() for digest in digests}
        with suppress(OSError):
            for file in self._folder.iterdir():
                if file.name not in names:
                    file.unlink()

    def clear(self) -> None:
        with suppress(OSError):
            if os.path.lexists(self._folder):
                shutil.rmtree(self._folder)
