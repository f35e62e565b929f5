"""Memory for payloads that is used again from round to round: fresh pages cost more than what is done with them."""

import sys
from collections import defaultdict

# Below it the allocator does as well.
LEAST_BYTES = 1 << 20
# Who refers to a buffer that nobody uses: the list, the loop over it, and the question.
NOBODY = 3


class Buffers:
    """Hands out memory. What is handed out is free again when the last view of it is gone, streams' views included."""

    def __init__(self) -> None:
        self._buffers: dict[int, list[bytearray]] = defaultdict(list)
        self._taken: set[int] = set()

    def take(self, n_bytes: int) -> memoryview:
        """Writable memory of this length; what is in it is anything."""
        if n_bytes < LEAST_BYTES:
            return memoryview(bytearray(n_bytes))
        # To a sixteenth: shards that follow the links differ a little from round to round.
        step = 1 << (n_bytes.bit_length() - 5)
        size = -(-n_bytes // step) * step
        self._taken.add(size)
        for buffer in self._buffers[size]:
            if sys.getrefcount(buffer) == NOBODY:
                return memoryview(buffer)[:n_bytes]
        self._buffers[size].append(bytearray(size))
        return memoryview(self._buffers[size][-1])[:n_bytes]

    def trim(self) -> None:
        """A round is over: let go of what is of no size that it had."""
        self._buffers = defaultdict(list, {size: self._buffers[size] for size in self._taken})
        self._taken = set()


BUFFERS = Buffers()
