"""Memory for payloads that is used again from round to round: fresh pages cost more than what is done with them."""

import sys

# Below it the allocator does as well.
LEAST_BYTES = 1 << 20
# How much longer than what it is for a buffer may be: shards follow the links, and so differ from round to round.
MOST_TIMES_AS_LONG = 1.5
# Who refers to a buffer that nobody uses: its list and, as this release of Python counts, the loop and the question.
(NOBODY,) = [sys.getrefcount(buffer) for buffer in [bytearray(1)]]


class Buffers:
    """Hands out memory. What is handed out is free again when the last view of it is gone, streams' views included."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []
        self._idle: set[int] = set()
        """Those, by id, that nobody had when the last round was over nor has wanted since."""

    def take(self, n_bytes: int) -> memoryview:
        """Writable memory of this length; what is in it is anything."""
        if n_bytes < LEAST_BYTES:
            return memoryview(bytearray(n_bytes))
        longest = MOST_TIMES_AS_LONG * n_bytes
        fitting = [
            buffer
            for buffer in self._buffers
            if n_bytes <= len(buffer) <= longest and sys.getrefcount(buffer) == NOBODY
        ]
        if not fitting:
            # To a sixteenth more than is wanted now.
            step = 1 << (n_bytes.bit_length() - 5)
            fitting = [bytearray(-(-n_bytes // step) * step)]
            self._buffers += fitting
        buffer = min(fitting, key=len)
        self._idle.discard(id(buffer))
        return memoryview(buffer)[:n_bytes]

    def trim(self) -> None:
        """A round is over: let go of what nobody has wanted since the one before."""
        idle = {id(buffer) for buffer in self._buffers if sys.getrefcount(buffer) == NOBODY}
        gone = idle & self._idle
        self._buffers = [buffer for buffer in self._buffers if id(buffer) not in gone]
        self._idle = idle - gone


BUFFERS = Buffers()
