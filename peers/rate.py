"""How fast the link to a member is, measured with little: a second or 4 MiB each way, and seldom.

Whoever receives times it, and says when it has seen enough: what a sender has handed over may be in buffers for long. A
member keeps to its limits, as with all bulk, so a capped one measures its cap.
"""

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from peers.daemon import end_tasks
from peers.errors import ProtocolViolation, StreamClosed, Unreachable
from peers.transport import Stream, Transport
from peers.wire import Codec, Length

RATE_PROTOCOL = "atoll-rate-1"
MAX_HEADER_BYTES = 1024
# Frames of which several come while one looks at a link of 0.1 Mbit/s; how long they may be.
FRAME_BYTES, MAX_FRAME_BYTES = 1 << 14, 1 << 16
MOST_BYTES, MOST_S = 4 << 20, 1.0
# What a sender hands over in a second is up to a megabyte in buffers: on a link of 1 Mbit/s 8 s of it.
TAKE_S = 3.0
# Both ways, and what is said in between.
WHOLE_S = 2 * TAKE_S + 2.0
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
                giving = asyncio.create_task(_give(stream))
                try:
                    await _until_closed(stream)
                finally:
                    await end_tasks([giving])
        except TimeoutError:
            return

    def _objection(self, peer: str, now: float) -> str:
        if now < self._last.get(peer, -math.inf) + PEER_AGAIN_S:
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
    """Bytes a second up to the peer and down from it, 0 where it was too little to tell. Within some 13 s.

    Raises: PeerError, Unreachable also if it refuses.
    """
    stream = await transport.open(peer, addresses, RATE_PROTOCOL)
    try:
        async with asyncio.timeout(WHOLE_S):
            await stream.send(RATE.encode(Measure()))
            answer = RATE.decode(await stream.receive(MAX_HEADER_BYTES), peer)
            if isinstance(answer, Refused):
                raise Unreachable(peer, answer.reason)
            giving = asyncio.create_task(_give(stream))
            try:
                measured = RATE.decode(await stream.receive(MAX_HEADER_BYTES), peer)
            finally:
                await end_tasks([giving])
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
    """Bytes a second from the first frame on, which only starts the watch; of what has come when it has seen enough.

    Raises: PeerError, StreamClosed also if nothing comes.
    """
    loop = asyncio.get_running_loop()
    began = last = 0.0
    n_bytes = -1
    with suppress(TimeoutError):
        async with asyncio.timeout(TAKE_S):
            while frame := await stream.receive(MAX_FRAME_BYTES):
                last = loop.time()
                if n_bytes < 0:
                    began, n_bytes = last, 0
                else:
                    n_bytes += len(frame)
                if n_bytes > MOST_BYTES:
                    raise ProtocolViolation(stream.peer, f"sends more than {MOST_BYTES} bytes to measure")
            return round(n_bytes / (last - began)) if last > began else 0
    if n_bytes < 0:
        raise StreamClosed(stream.peer, f"nothing came in {TAKE_S:.0f} s")
    # One frame alone took so long.
    return round(n_bytes / (last - began)) if last > began else round(FRAME_BYTES / TAKE_S)


async def _until_closed(stream: Stream) -> None:
    """What is still on its way is taken, and no more than that.

    Raises: PeerError, at the end StreamClosed.
    """
    n_bytes = 0
    while n_bytes <= MOST_BYTES:
        n_bytes += len(await stream.receive(MAX_FRAME_BYTES))
    raise ProtocolViolation(stream.peer, f"sends more than {MOST_BYTES} bytes to measure")
