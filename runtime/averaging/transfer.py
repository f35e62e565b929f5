"""Bulk between peers: a stream for each share, result or piece, cut into chunks, its length known before it is read.

Chunks are acknowledged, and what is under way unacknowledged is kept to what the path carries in ``QUEUE_S``: the
control messages, which share the link with the bulk, then never wait behind more than that.

``PUSH``: a member sends its share of a shard to the reducer, the reducer its result to the members. ``PIECE``: a result
is fetched from whoever holds it, by its digest and by nothing else.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import FRAME_HEADER_BYTES, Stream, Transport
from peers.wire import Codec, Digest

PUSH_PROTOCOL = "atoll-push-1"
PIECE_PROTOCOL = "atoll-piece-1"
# 64 KiB take 50 ms on 10 Mbit/s: so much a control message waits behind one.
CHUNK_BYTES = 1 << 16
# The delay that bulk may add on a link: below it the window grows, above it shrinks.
QUEUE_S = 0.15
MOST_WINDOW_BYTES = 16 << 20
MAX_HEADER_BYTES = 256
# A stream on which nothing has moved for so long is given up, at either end: whoever froze keeps it open for ever.
STALL_S = 20.0
# A share can outrun the descriptor it belongs to by the difference of two paths, not by more.
PLAN_WAIT_S = 10.0
# Who holds a piece begins to send it within this.
ANSWER_S = 10.0


class Kind(IntEnum):
    CONTRIBUTION = 0
    RESULT = 1


@dataclass(frozen=True)
class Push:
    """The first frame of a pushed stream; ``n_bytes`` follow in chunks."""

    kind: int
    plan_id: Digest
    shard: int
    n_bytes: int


HEADER = Codec(Push)


class Window:
    """How many bytes one sender may have under way: it doubles while acknowledgements come quickly (as TCP's slow
    start), and follows the measured delay down when they do not.
    """

    def __init__(self) -> None:
        self.n_bytes = CHUNK_BYTES

    def acknowledged(self, n_bytes: int, delay_s: float) -> None:
        if delay_s < QUEUE_S:
            self.n_bytes = min(self.n_bytes + n_bytes, MOST_WINDOW_BYTES)
        elif delay_s > 2 * QUEUE_S:
            self.n_bytes = max(round(self.n_bytes * max(0.5, 2 * QUEUE_S / delay_s)), CHUNK_BYTES)


async def send_bytes(
    stream: Stream, data: bytes | memoryview, count: Callable[[int], None] = lambda n_bytes: None
) -> None:
    """Send ``data`` in chunks, paced by their acknowledgements; ``count`` is told what each takes on the stream.

    Returns when all of it is acknowledged: the stream may be closed then without cutting what is under way.

    Raises: StreamClosed.
    """
    view, window = memoryview(data), Window()
    loop = asyncio.get_running_loop()
    under_way: deque[tuple[int, float]] = deque()
    under_way_bytes = 0
    for start in range(0, len(view), CHUNK_BYTES):
        chunk = view[start : start + CHUNK_BYTES]
        while under_way and under_way_bytes + len(chunk) > window.n_bytes:
            under_way_bytes -= await _acknowledgement(stream, under_way, window)
        under_way.append((len(chunk), loop.time()))
        under_way_bytes += len(chunk)
        await stream.send(chunk)
        count(FRAME_HEADER_BYTES + len(chunk))
    while under_way:
        await _acknowledgement(stream, under_way, window)


async def _acknowledgement(stream: Stream, under_way: deque[tuple[int, float]], window: Window) -> int:
    """Wait for the oldest chunk's; its length."""
    await _moving(stream, 1)
    n_bytes, sent_at = under_way.popleft()
    window.acknowledged(n_bytes, asyncio.get_running_loop().time() - sent_at)
    return n_bytes


async def _moving(stream: Stream, max_bytes: int) -> bytes:
    try:
        async with asyncio.timeout(STALL_S):
            return await stream.receive(max_bytes)
    except TimeoutError:
        raise StreamClosed(stream.peer, f"nothing came for {STALL_S:.0f} s") from None


async def receive_bytes(stream: Stream, n_bytes: int) -> bytes:
    """Exactly ``n_bytes`` that ``send_bytes`` sent.

    Raises: StreamClosed if they end early; ProtocolViolation if a chunk is empty or goes past the end.
    """
    data = bytearray()
    while len(data) < n_bytes:
        chunk = await _moving(stream, min(CHUNK_BYTES, n_bytes - len(data)))
        if not chunk:
            raise ProtocolViolation(stream.peer, "an empty chunk")
        data += chunk
        await stream.send(b"\0")
    return bytes(data)


class Transfers:
    """Sends and receives the bulk of the rounds of one peer.

    Args:
        limit: for a sender, kind, plan and shard, the exact number of bytes that may come, None if nothing may.
        arrived: called with sender, kind, plan, shard and data when all of it is here.
        piece: the result with this digest, None if it is not held.
    """

    def __init__(
        self,
        transport: Transport,
        limit: Callable[[str, Kind, bytes, int], int | None],
        arrived: Callable[[str, Kind, bytes, int, bytes], None],
        piece: Callable[[bytes], bytes | None],
        strike: Callable[[str, str], None],
    ) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.sending = 0
        """Shares, results and pieces that are on their way to others."""
        self._transport, self._limit, self._arrived = transport, limit, arrived
        self._piece, self._strike = piece, strike
        self._plan: bytes | None = None
        self._past: dict[bytes, None] = {}
        self._plan_changed = asyncio.Event()

    async def serve(self) -> None:
        await self._transport.serve(PUSH_PROTOCOL, self._on_push)
        await self._transport.serve(PIECE_PROTOCOL, self._on_piece)

    def follow(self, plan_id: bytes) -> None:
        """Take what belongs to this plan from now on, and nothing of the one before."""
        if self._plan is not None and self._plan != plan_id:
            self._past[self._plan] = None
            while len(self._past) > 64:
                del self._past[next(iter(self._past))]
        self._past.pop(plan_id, None)
        self._plan = plan_id
        self._plan_changed.set()
        self._plan_changed = asyncio.Event()

    async def push(self, peer: str, kind: Kind, plan_id: bytes, shard: int, data: bytes) -> None:
        """Send one share or result whole.

        Raises: PeerError if the peer cannot be reached or goes away.
        """
        stream = await self._transport.open(peer, (), PUSH_PROTOCOL)
        try:
            header = HEADER.encode(Push(kind, plan_id, shard, len(data)))
            await stream.send(header)
            self._count(FRAME_HEADER_BYTES + len(header))
            await self._send_bytes(stream, data)
        finally:
            stream.close()

    async def fetch(self, peer: str, digest: bytes, most_bytes: int) -> bytes:
        """A result by its digest, unchecked.

        Raises: PeerError, also if the peer does not hold it; TimeoutError if it does not say.
        """
        stream = await self._transport.open(peer, (), PIECE_PROTOCOL)
        try:
            await stream.send(digest)
            async with asyncio.timeout(ANSWER_S):
                (n_bytes,) = struct.unpack("!Q", await _exactly(stream, 8))
            if n_bytes > most_bytes:
                raise ProtocolViolation(peer, f"a piece of {n_bytes} bytes, the limit is {most_bytes}")
            data = await receive_bytes(stream, n_bytes)
            self.bytes_received += FRAME_HEADER_BYTES + 8 + len(data)
            return data
        finally:
            stream.close()

    async def _send_bytes(self, stream: Stream, data: bytes) -> None:
        self.sending += 1
        try:
            await send_bytes(stream, data, self._count)
        finally:
            self.sending -= 1

    def _count(self, n_bytes: int) -> None:
        self.bytes_sent += n_bytes

    async def _on_push(self, stream: Stream) -> None:
        try:
            header: Push = HEADER.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
            if header.kind not in list(Kind):
                raise ProtocolViolation(stream.peer, f"unknown kind of transfer {header.kind}")
            kind = Kind(header.kind)
            if not await self._known(header.plan_id):
                return
            limit = self._limit(stream.peer, kind, header.plan_id, header.shard)
            if limit is None:
                return
            if header.n_bytes > limit:
                raise ProtocolViolation(stream.peer, f"announces {header.n_bytes} bytes, the limit is {limit}")
            data = await receive_bytes(stream, header.n_bytes)
            self.bytes_received += FRAME_HEADER_BYTES + len(data)
            self._arrived(stream.peer, kind, header.plan_id, header.shard, data)
        except ProtocolViolation as error:
            self._strike(error.peer, error.reason)
        except StreamClosed:
            return

    async def _known(self, plan_id: bytes) -> bool:
        """Whether the plan is the one that is followed, now or soon."""
        try:
            async with asyncio.timeout(PLAN_WAIT_S):
                while plan_id != self._plan and plan_id not in self._past:
                    await self._plan_changed.wait()
        except TimeoutError:
            return False
        return plan_id == self._plan

    async def _on_piece(self, stream: Stream) -> None:
        try:
            data = self._piece(await _exactly(stream, 32))
            if data is None:
                return
            await stream.send(struct.pack("!Q", len(data)))
            self._count(FRAME_HEADER_BYTES + 8)
            await self._send_bytes(stream, data)
        except ProtocolViolation as error:
            self._strike(error.peer, error.reason)
        except StreamClosed:
            return


async def _exactly(stream: Stream, n_bytes: int) -> bytes:
    frame = await stream.receive(n_bytes)
    if len(frame) != n_bytes:
        raise ProtocolViolation(stream.peer, f"a frame of {len(frame)} bytes where {n_bytes} were due")
    return frame
