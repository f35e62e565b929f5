"""The event log of a peer: JSON lines, each an event with the time, the peer and its fields. See docs/events.md."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO


class EventLog:
    """Appends events to a file, each line written whole and at once, and hands them to whoever listens."""

    def __init__(self, path: Path, peer: str) -> None:
        self.listener: Callable[[str, dict[str, object]], None] = lambda event, fields: None
        self._peer = peer
        self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)

    def report(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 4), "peer": self._peer, **fields})
        # A full disk: the run goes on, and the line is missing.
        with suppress(OSError):
            self._file.write(line + "\n")
        self.listener(event, fields)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
