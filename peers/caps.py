"""A volunteer's limits: bulk is sent and taken no faster than so many bytes a second, control is not held up."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from peers.transport import Frame, Stream, StreamHandler, Transport

# What a full frame's bytes cost on the device with TLS, TCP and IP around them: 1514 for 1448.
ON_DEVICE = 1.047
# So much of what was not used is made up for: a timer wakes late.
CREDIT_S = 0.1
# A changed limit is noticed so soon by whoever waits.
CHANGED_S = 0.25
# Of a cap on what is taken, so much is asked for: what is under way when it begins to hold cannot be called back.
ASKED = 0.96
# Acknowledgements and headers are control.
FREE_BYTES = 1024


@dataclass(frozen=True)
class Caps:
    """The most that bulk may take of a link, bytes a second as its device counts them; 0 for no limit."""

    up: int = 0
    down: int = 0

    def planned(self, up: int, down: int) -> tuple[int, int]:
        """What a round may count on, where so much was measured (0: nothing was)."""
        return _within(up, self.up), _within(down, self.down)


NO_CAPS = Caps()


def _within(measured: int, cap: int) -> int:
    cap = round(cap / ON_DEVICE)
    return min(measured or cap, cap) if cap else measured


class Cap:
    """One limit, of all streams together, in the order in which they ask.

    Args: bytes_per_s says what it is now, 0 for none: a change holds for those who wait as well.
    """

    def __init__(self, bytes_per_s: Callable[[], int]) -> None:
        self._bytes_per_s = bytes_per_s
        self._asked = self._passed = 0.0
        """Bytes so far: those of whoever has asked, and those that may have passed by now."""
        self._looked_at = 0.0

    async def take(self, n_bytes: int) -> None:
        """Return when so many bytes may have passed."""
        if n_bytes < FREE_BYTES:
            return
        self._asked = max(self._asked, self._may_pass() - CREDIT_S * self._bytes_per_s()) + ON_DEVICE * n_bytes
        mine = self._asked
        while True:
            left = mine - self._may_pass()
            # Less than a byte is a sleep too short for a clock to notice.
            if left < 1:
                return
            await asyncio.sleep(min(left / self._bytes_per_s(), CHANGED_S))

    def _may_pass(self) -> float:
        now, rate = asyncio.get_running_loop().time(), self._bytes_per_s()
        self._passed = self._passed + rate * (now - self._looked_at) if rate else self._asked
        self._looked_at = now
        return self._passed


class CappedStream:
    def __init__(self, stream: Stream, up: Cap, down: Cap) -> None:
        self._stream, self._up, self._down = stream, up, down

    @property
    def peer(self) -> str:
        return self._stream.peer

    async def send(self, *parts: Frame) -> None:
        await self._up.take(sum(memoryview(part).nbytes for part in parts))
        await self._stream.send(*parts)

    async def receive(self, max_bytes: int) -> bytes:
        frame = await self._stream.receive(max_bytes)
        await self._down.take(len(frame))
        return frame

    async def receive_into(self, buffer: memoryview) -> int:
        # Whoever sends hears that it has come when the cap lets it pass, and sends no more before.
        n_bytes = await self._stream.receive_into(buffer)
        await self._down.take(n_bytes)
        return n_bytes

    def close(self) -> None:
        self._stream.close()


class CappedTransport:
    """A ``Transport`` whose streams of the ``bulk`` protocols keep to the caps, all of them together.

    Args: caps says what they are now.
    """

    def __init__(self, transport: Transport, bulk: Collection[str], caps: Callable[[], Caps]) -> None:
        self._transport, self._bulk = transport, frozenset(bulk)
        self._up, self._down = Cap(lambda: caps().up), Cap(lambda: round(ASKED * caps().down))

    @property
    def peer(self) -> str:
        return self._transport.peer

    @property
    def dialable(self) -> bool:
        """See ``peers.transport.Transport``."""
        return self._transport.dialable

    async def addresses(self) -> tuple[str, ...]:
        """See ``peers.transport.Transport``."""
        return await self._transport.addresses()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``peers.transport.Transport``."""

        async def capped(stream: Stream) -> None:
            await handler(CappedStream(stream, self._up, self._down))

        await self._transport.serve(protocol, capped if protocol in self._bulk else handler)

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> Stream:
        """See ``peers.transport.Transport``."""
        stream = await self._transport.open(peer, addresses, protocol)
        return CappedStream(stream, self._up, self._down) if protocol in self._bulk else stream

    async def close(self) -> None:
        """See ``peers.transport.Transport``."""
        await self._transport.close()
