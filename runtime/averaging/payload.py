"""Bytes that come to be from the front, so that they can be sent, added or decoded before all of them are here."""

import asyncio

from torch import Tensor

from runtime.averaging.buffers import BUFFERS
from runtime.averaging.codecs.base import CHUNK, Codec, chunk_range, vector_bytes


class Dropped(Exception):
    """These bytes are not wanted any more, and will not be completed."""


class Payload:
    """A buffer of a length known from the beginning; ``view[:n_ready]`` is what is here and does not change."""

    def __init__(self, n_bytes: int) -> None:
        self.view = BUFFERS.take(n_bytes)
        self.n_ready = 0
        self.dropped = False
        self._grown = asyncio.Event()

    @classmethod
    def of(cls, view: memoryview) -> "Payload":
        """Bytes that are all there, not copied and not written to as long as they are used."""
        payload = cls(0)
        payload.view, payload.n_ready = view, len(view)
        return payload

    @property
    def complete(self) -> bool:
        return self.n_ready == len(self.view)

    def grow(self, n_ready: int) -> None:
        """The first ``n_ready`` bytes are here.

        Raises: ValueError if they are not what they have to be, as far as the payload knows.
        """
        self.n_ready = n_ready
        self._wake()

    def drop(self) -> None:
        self.dropped = True
        self._wake()

    def has(self, n_bytes: int) -> bool:
        """Whether the first ``n_bytes`` are here."""
        return self.n_ready >= n_bytes

    async def until(self, n_bytes: int) -> None:
        """Wait for the first ``n_bytes``.

        Raises: Dropped.
        """
        while not self.dropped and not self.has(n_bytes):
            await self._grown.wait()
        if self.dropped:
            raise Dropped

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class OwnShare(Payload):
    """This peer's contribution to a shard: each chunk is encoded when somebody wants it, once.

    Args: share_P is float32 (P,), and not written to as long as the share is used.
    """

    def __init__(self, codec: Codec, share_P: Tensor) -> None:
        super().__init__(vector_bytes(codec, share_P.numel()))
        self._codec, self._share_P = codec, share_P
        self._start = 0

    def has(self, n_bytes: int) -> bool:
        while self.n_ready < n_bytes:
            stop = min(self._start + CHUNK, self._share_P.numel())
            where = chunk_range(self._codec, self._start, stop)
            self._codec.encode(self._share_P[self._start : stop], self.view[where])
            self._start = stop
            self.grow(where.stop)
        return True
