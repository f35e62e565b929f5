"""How fast the link to a member is, measured with little: a second or 4 MiB each way, and seldom.

Whoever receives times it: what a sender has handed over may still be in buffers. A member keeps to its limits, as with
all bulk, so a capped one measures its cap.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from peers.errors import ProtocolViolation, Unreachable
from peers.transport import Stream, Transport
from peers.wire import Codec, Length

RATE_PROTOCOL = "atoll-rate-1"
MAX_HEADER_BYTES = 1024
FRAME_BYTES = 1 << 16
MOST_BYTES, MOST_S = 4 << 20, 1.0
# With what is still in buffers when the second is over, on a link of 4 Mbit/s.
WHOLE_S = 6.0
# One measurement takes 4 MiB each way at most: by strangers of any number of names, 1.1 Mbit/s on the average.
AGAIN_S, PEER_AGAIN_S, MOST_REMEMBERED = 30.0, 60.0, 1024


@dataclass(frozen=True)
class Measure:
    """Frames follow from who asks, the last one empty; then as many come back after a ``Measured``."""


@dataclass(frozen=True)
class Measured:
    bytes_per_s: int
    """0 where it was too little to tell."""


@dataclass(frozen=True)
class Refused:
    reason: Annotated[str, Length(0, 200)]


@dataclass(frozen=True)
class Agreed:
    """Send."""


RATE = Codec(Measure, Measured, Refused, Agreed)


class RateServer:
    def __init__(self) -> None:
        self._free_at = 0.0
        self._last: dict[str, float] = {}

    async def serve(self, stream: Stream) -> None:
        """Measure with one peer. Raises: PeerError."""
        try:
            async with asyncio.timeout(WHOLE_S):
                if not isinstance(RATE.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer), Measure):
                    raise ProtocolViolation(stream.peer, "a wish to measure was due")
                if reason := self._objection(stream.peer, asyncio.get_running_loop().time()):
                    await stream.send(RATE.encode(Refused(reason)))
                    await stream.receive(1)
                    return
                await stream.send(RATE.encode(Agreed()))
                await stream.send(RATE.encode(Measured(await _take(stream))))
                await _give(stream)
                await stream.receive(1)
        except TimeoutError:
            return

    def _objection(self, peer: str, now: float) -> str:
        if now < self._last.get(peer, now - PEER_AGAIN_S) + PEER_AGAIN_S:
            return f"measured less than {PEER_AGAIN_S:.0f} s ago"
        if now < self._free_at:
            return "busy measuring with others"
        self._free_at = now + AGAIN_S
        self._last.pop(peer, None)
        self._last[peer] = now
        while len(self._last) > MOST_REMEMBERED:
            del self._last[next(iter(self._last))]
        return ""


async def measure_rates(transport: Transport, peer: str, addresses: tuple[str, ...] = ()) -> tuple[int, int]:
    """Bytes a second up to the peer and down from it, 0 where it was too little to tell. Within some 15 s.

    Raises: PeerError, Unreachable also if it refuses.
    """
    stream = await transport.open(peer, addresses, RATE_PROTOCOL)
    try:
        async with asyncio.timeout(WHOLE_S):
            await stream.send(RATE.encode(Measure()))
            answer = RATE.decode(await stream.receive(MAX_HEADER_BYTES), peer)
            if isinstance(answer, Refused):
                raise Unreachable(peer, answer.reason)
            await _give(stream)
            measured = RATE.decode(await stream.receive(MAX_HEADER_BYTES), peer)
            if not isinstance(measured, Measured):
                raise ProtocolViolation(peer, "a rate was due")
            return measured.bytes_per_s, await _take(stream)
    except TimeoutError:
        raise Unreachable(peer, f"not measured within {WHOLE_S:.0f} s") from None
    finally:
        stream.close()


async def _give(stream: Stream) -> None:
    loop, frame = asyncio.get_running_loop(), bytes(FRAME_BYTES)
    until, n_bytes = loop.time() + MOST_S, 0
    while n_bytes < MOST_BYTES and loop.time() < until:
        await stream.send(frame)
        n_bytes += len(frame)
    await stream.send(b"")


async def _take(stream: Stream) -> int:
    """Bytes a second from the first frame on, which only starts the watch."""
    loop = asyncio.get_running_loop()
    began = last = 0.0
    n_bytes = -1
    while frame := await stream.receive(FRAME_BYTES):
        last = loop.time()
        if n_bytes < 0:
            began, n_bytes = last, 0
        else:
            n_bytes += len(frame)
        if n_bytes > MOST_BYTES:
            raise ProtocolViolation(stream.peer, f"sends more than {MOST_BYTES} bytes to measure")
    return round(n_bytes / (last - began)) if last > began else 0
