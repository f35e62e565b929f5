"""Reading the peers' event logs while they are written."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


def parse_events(data: bytes) -> list[Event]:
    """The events in a log, of whose last line a killed writer may have left a part. Parts are skipped."""
    events: list[Event] = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


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
