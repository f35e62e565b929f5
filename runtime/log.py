"""The event log of a peer, written and read: JSON lines, each an event with the time, the peer and its fields.

See docs/events.md.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from runtime.errors import reason_of
from runtime.rotation import MOST_PIECES, PIECE_BYTES, Tail, put_away

EVENTS_FILE = "events.jsonl"
"""In a peer's folder; full pieces of the log have a number in their names."""

Event = Mapping[str, Any]

SCHEMA = 1
"""Of the events as docs/events.md has them; it grows when a reader of the one before would misread."""


class EventLog:
    """Appends events to a file, each line written whole and at once, and hands them to whoever listens.

    A file that is full is put away under a number, and the oldest of these removed when there are too many.

    Args: may_write says whether the user's limit has room for so many bytes.
    """

    def __init__(
        self,
        path: Path,
        peer: str,
        may_write: Callable[[int], bool] = lambda n_bytes: True,
        *,
        piece_bytes: int = PIECE_BYTES,
        most_pieces: int = MOST_PIECES,
    ) -> None:
        self.listener: Callable[[Event], None] = lambda event: None
        self._path, self._peer, self._may_write = path, peer, may_write
        self._piece_bytes, self._most_pieces = piece_bytes, most_pieces
        self._file = path.open("ab", buffering=0)
        self._n_bytes = path.stat().st_size
        self._torn = _is_torn(path)
        self._failing = False

    def report(self, event: str, **fields: object) -> None:
        """Log an event. On a full disk the run goes on without its lines, and the listener hears ``log_failed``."""
        origin = {"time": round(time.time(), 4), "peer": self._peer}
        written = {"event": event, **origin, **fields}
        failed = self._write(json.dumps(written).encode() + b"\n")
        if failed and not self._failing:
            self.listener({"event": "log_failed", **origin, "reason": failed})
        self._failing = bool(failed)
        self.listener(written)

    def close(self) -> None:
        self._file.close()

    def _write(self, line: bytes) -> str:
        """Why the line is not in the file, empty if it is."""
        if not self._may_write(len(line)):
            return "the limit for the disk is reached"
        if self._n_bytes and self._n_bytes + len(line) > self._piece_bytes:
            self._begin_piece()
        try:
            if self._torn:
                self._n_bytes += self._file.write(b"\n")
                self._torn = False
            written = self._file.write(line)
            self._n_bytes += written
            if written == len(line):
                return ""
        except OSError as error:
            return reason_of(error)
        self._torn = True
        return "no room for a whole line"

    def _begin_piece(self) -> None:
        """Where that cannot be, the file that is there grows on, and the next line tries again."""
        with suppress(OSError):
            if self._path.exists():
                put_away(self._path, self._most_pieces)
            file = self._path.open("ab", buffering=0)
            self._file.close()
            self._file, self._n_bytes, self._torn = file, 0, False


def _is_torn(path: Path) -> bool:
    """Whether the process that wrote to the file last was killed within a line."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


def parse_events(data: bytes) -> list[Event]:
    """The events in a log, of whose last line a killed writer may have left a part. Parts are skipped."""
    return list(_events(data))


def read_log(path: Path) -> Iterator[Event]:
    """The events of all the pieces that are kept of a log, as they were written; nothing if there is none.

    Raises: OSError if one cannot be read.
    """
    tail = Tail(path)
    for lines in tail.pieces():
        yield from _events(lines)
    yield from _events(tail.rest)


def _events(data: bytes) -> Iterator[Event]:
    for line in BytesIO(data):
        try:
            event = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _no_number(name: str) -> None:
    """JSON has no NaN and no infinity, and whoever writes them wants to see them where a number is read."""
    raise ValueError(f"{name} is no number")


def commits(events: Iterable[Event]) -> list[Event]:
    """The outer steps that were committed here."""
    return [event for event in events if event["event"] == "outer_step_committed"]
