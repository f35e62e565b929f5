"""The event log of a peer, written and read: JSON lines, each an event with the time, the peer and its fields.

See docs/events.md.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

SCHEMA = 1
"""Of the events as docs/events.md has them; it grows when a reader of the one before would misread."""


class EventLog:
    """Appends events to a file, each line written whole and at once, and hands them to whoever listens.

    Args: may_write says whether the user's limit has room for so many bytes.
    """

    def __init__(self, path: Path, peer: str, may_write: Callable[[int], bool] = lambda n_bytes: True) -> None:
        self.listener: Callable[[Event], None] = lambda event: None
        self._peer, self._may_write = peer, may_write
        self._file = path.open("ab", buffering=0)
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
        try:
            if self._torn:
                self._file.write(b"\n")
                self._torn = False
            if self._file.write(line) == len(line):
                return ""
        except OSError as error:
            return error.strerror or str(error)
        self._torn = True
        return "no room for a whole line"


def _is_torn(path: Path) -> bool:
    """Whether the process that wrote to the file last was killed within a line."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


def parse_events(data: bytes) -> list[Event]:
    """The events in a log, of whose last line a killed writer may have left a part. Parts are skipped."""
    events: list[Event] = []
    for line in data.splitlines():
        try:
            event = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def _no_number(name: str) -> None:
    """JSON has no NaN and no infinity, and whoever writes them wants to see them where a number is read."""
    raise ValueError(f"{name} is no number")


def commits(events: Iterable[Event]) -> list[Event]:
    """The outer steps that were committed here."""
    return [event for event in events if event["event"] == "outer_step_committed"]


class Tail:
    """Reads what a growing file has gained, line by line; half a line is kept until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> bytes:
        """The whole lines written since the last call; nothing while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return b""
        self._offset += len(new)
        lines, newline, self._rest = (self._rest + new).rpartition(b"\n")
        return lines + newline
