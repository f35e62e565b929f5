"""A log in pieces: what is written goes to one file; when that is full it is given a number, and the next begins.

``events.jsonl`` is being written; ``events.1.jsonl``, ``events.2.jsonl`` and so on are full, the lowest number the
oldest. Numbers only grow and a full piece never changes, so whoever knows a number knows the piece. Between the one
rename and the next open a process may die: the next one finds no file at the log's name, and begins it.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# 16 MiB: what a reader has in memory at once. Some seven thousand outer steps of four members.
PIECE_BYTES = 1 << 24
# 512 MiB in all; the oldest piece goes when there would be more.
MOST_PIECES = 32


def full_pieces(path: Path) -> dict[int, Path]:
    """Of the log at ``path``, by number and in their order; empty if there are none."""
    name = re.compile(rf"{re.escape(path.stem)}\.([1-9]\d*){re.escape(path.suffix)}")
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return {}
    numbers = sorted(int(match[1]) for match in map(name.fullmatch, names) if match)
    return {number: path.with_name(f"{path.stem}.{number}{path.suffix}") for number in numbers}


def put_away(path: Path, most_pieces: int) -> None:
    """Number the piece that is being written, and remove the oldest if with the next one there are too many.

    Raises: OSError, and then nothing has changed.
    """
    full = full_pieces(path)
    path.rename(path.with_name(f"{path.stem}.{max(full, default=0) + 1}{path.suffix}"))
    for old in list(full.values())[: max(len(full) + 2 - most_pieces, 0)]:
        with suppress(OSError):
            old.unlink()


def logs_below(folder: Path, name: str) -> list[Path]:
    """The logs of this name in a folder and below it: one path each, also where only full pieces are left."""
    stem, dot, suffix = name.rpartition(".")
    return sorted(
        {
            log
            for file in folder.rglob(f"{stem}*{dot}{suffix}")
            if file == (log := file.with_name(name)) or file in full_pieces(log).values()
        }
    )


class Tail:
    """Reads what a growing log has gained, line by line; half a line is kept until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        """Of the piece that is being read: the one that is not full yet has the next number that will be given."""
        self._offset = 0
        self.rest = b""
        """Half a line."""

    def read(self) -> bytes:
        """The whole lines written since the last call; nothing while there is no file."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The same, the lines of each piece by themselves.

        Raises: OSError if one cannot be read.
        """
        while True:
            full = full_pieces(self._path)
            number = min((one for one in full if one >= self._number), default=max(full, default=0) + 1)
            if number != self._number:
                self._number, self._offset, self.rest = number, 0, b""
            new = self._rest_of(full.get(number, self._path))
            if number not in full and number in full_pieces(self._path):
                # It was put away in between: that may have been the beginning of the next one.
                continue
            self._offset += len(new)
            lines, newline, self.rest = (self.rest + new).rpartition(b"\n")
            if number in full:
                # Its last line may be torn, and grows no more.
                lines, newline = lines + newline + self.rest, b"\n" if self.rest else b""
                self._number, self._offset, self.rest = number + 1, 0, b""
            if lines + newline:
                yield lines + newline
            if number not in full:
                return

    def _rest_of(self, file: Path) -> bytes:
        try:
            with file.open("rb") as opened:
                opened.seek(self._offset)
                return opened.read()
        except FileNotFoundError:
            return b""
