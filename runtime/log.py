"""The event log of a peer: JSON lines, each an event with the time, the peer and its fields. See docs/events.md."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class EventLog:
    """Appends events to a file, each line written whole and at once, and hands them to whoever listens."""

    def __init__(self, path: Path, peer: str) -> None:
        self.listener: Callable[[str, dict[str, object]], None] = lambda event, fields: None
        self._peer = peer
        self._file = path.open("ab", buffering=0)
        if _is_torn(path):
            self._write("")

    def report(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 4), "peer": self._peer, **fields})
        self._write(line)
        self.listener(event, fields)

    def close(self) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        # On a full disk the run goes on, and the line is missing.
        with suppress(OSError):
            self._file.write(line.encode() + b"\n")


def _is_torn(path: Path) -> bool:
    """Whether the process that wrote to the file last was killed within a line."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
