"""Bulk between peers: a stream for each share, result or piece, its length known before any of it is read.

``PUSH``: a member sends its share of a shard to the reducer, the reducer its result to the members. ``PIECE``: a result
is fetched from whoever holds it, by its digest and by nothing else.
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import IntEnum

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import FRAME_HEADER_BYTES, Stream, Transport
from peers.wire import Codec, Digest
from runtime.averaging.messages import MAX_MEMBERS
from runtime.averaging.pacing import Rank, Stage, Stalled, Uplink, receive_exactly, receive_payload, send_payload
from runtime.averaging.payload import Dropped, Payload
from runtime.averaging.rates import Meter

PUSH_PROTOCOL = "atoll-push-2"
PIECE_PROTOCOL = "atoll-piece-2"
MAX_HEADER_BYTES = 256
# A share can outrun the descriptor it belongs to by the difference of two paths, not by more.
PLAN_WAIT_S = 10.0
# Who holds a piece begins to send it within this.
ANSWER_S = 10.0
# A share and a result of every shard there can be.
MOST_STREAMS_PER_PEER = 2 * MAX_MEMBERS


class Kind(IntEnum):
    CONTRIBUTION = 0
    RESULT = 1


@dataclass(frozen=True)
class Push:
    """The first frame of a pushed stream; ``n_bytes`` follow."""

    kind: int
    plan_id: Digest
    shard: int
    n_bytes: int


HEADER = Codec(Push)


class Transfers:
    """Sends and receives the bulk of the rounds of one peer.

    Args:
        room: for a sender, kind, plan and shard, where its bytes go, None if they are here already; raises
            ProtocolViolation if they are none that it could have.
        grown: called with sender, kind, plan, shard and payload as more of it comes.
        piece: the result with this digest, None if it is not held.
        silent: called with a peer and words for what it does not send; it may be as good as dead.
    """

    def __init__(
        self,
        transport: Transport,
        room: Callable[[str, Kind, bytes, int], Payload | None],
        grown: Callable[[str, Kind, bytes, int, Payload], None],
        piece: Callable[[bytes], Payload | None],
        strike: Callable[[str, str], None],
        silent: Callable[[str, str], None],
    ) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.up, self.down = Meter(), Meter()
        self.pushed_at: dict[str, float] = {}
        """When each peer last began to send something, in loop time."""
        self._transport, self._room, self._grown = transport, room, grown
        self._piece, self._strike, self._silent = piece, strike, silent
        self._serving: dict[str, int] = {}
        self.uplink = Uplink()
        self._plan: bytes | None = None
        self._past: dict[bytes, None] = {}
        self._plan_changed = asyncio.Event()

    @property
    def sending(self) -> int:
        """Shares, results and pieces that are on their way to others."""
        return self.uplink.n_rounds

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

    def lost(self, peer: str) -> None:
        self.uplink.forget(peer)
        self.pushed_at.pop(peer, None)

    def round_over(self) -> None:
        """What is counted from now on is of the next."""
        self.up.round_over()
        self.down.round_over()

    async def push(
        self, peer: str, kind: Kind, plan_id: bytes, shard: int, payload: Payload, rank: Rank, in_turns: bool
    ) -> None:
        """Send one share or result, as far as it is there and then as it comes to be; as ``send_payload`` has it.

        Raises: PeerError if the peer cannot be reached or goes away; Dropped if the payload is.
        """
        stream = await self._transport.open(peer, (), PUSH_PROTOCOL)
        try:
            header = HEADER.encode(Push(kind, plan_id, shard, len(payload.view)))
            await stream.send(header)
            self._sent(FRAME_HEADER_BYTES + len(header))
            await self._send(stream, payload, rank, in_turns)
        finally:
            stream.close()

    async def fetch(self, peer: str, digest: bytes, payload: Payload) -> None:
        """Get a result by its digest.

        Raises: PeerError, also if the peer does not hold it; TimeoutError if it does not say; Dropped.
        """
        stream = await self._transport.open(peer, (), PIECE_PROTOCOL)
        try:
            await stream.send(digest)
            async with asyncio.timeout(ANSWER_S):
                (n_bytes,) = struct.unpack("!Q", await receive_exactly(stream, 8))
            if n_bytes != len(payload.view):
                raise ProtocolViolation(peer, f"a piece of {n_bytes} bytes where {len(payload.view)} were due")
            await receive_payload(stream, payload, count=self._received)
        finally:
            stream.close()

    async def _send(self, stream: Stream, payload: Payload, rank: Rank, in_turns: bool) -> None:
        with self.uplink.of_a_round():
            await send_payload(stream, payload, self.uplink, rank, in_turns, count=self._sent, arrived=self._arrived)

    def _sent(self, n_bytes: int) -> None:
        self.bytes_sent += n_bytes

    def _arrived(self, n_bytes: int) -> None:
        self.up.count(n_bytes, asyncio.get_running_loop().time())

    def _received(self, n_bytes: int) -> None:
        self.bytes_received += n_bytes
        self.came(n_bytes)

    def came(self, n_bytes: int) -> None:
        """So much has come over this peer's link, of a round or of a state."""
        self.down.count(n_bytes, asyncio.get_running_loop().time())

    async def _on_push(self, stream: Stream) -> None:
        await self._bounded(stream, self._take_push)

    async def _on_piece(self, stream: Stream) -> None:
        await self._bounded(stream, self._give_piece)

    async def _bounded(self, stream: Stream, serve: Callable[[Stream], Coroutine[None, None, None]]) -> None:
        """Serve a stream unless its peer has too many; what it does wrong is a strike."""
        peer = stream.peer
        if self._serving.get(peer, 0) >= MOST_STREAMS_PER_PEER:
            self._strike(peer, f"more than {MOST_STREAMS_PER_PEER} streams at once")
            return
        self._serving[peer] = self._serving.get(peer, 0) + 1
        try:
            await serve(stream)
        except ProtocolViolation as error:
            self._strike(error.peer, error.reason)
        except (StreamClosed, Dropped):
            return
        finally:
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]

    async def _take_push(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                header: Push = HEADER.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
        except TimeoutError:
            return
        if header.kind not in list(Kind):
            raise ProtocolViolation(stream.peer, f"unknown kind of transfer {header.kind}")
        kind = Kind(header.kind)
        self.pushed_at[stream.peer] = asyncio.get_running_loop().time()
        if not await self._known(header.plan_id):
            return
        payload = self._room(stream.peer, kind, header.plan_id, header.shard)
        if payload is None:
            return
        try:
            if header.n_bytes != len(payload.view):
                due = len(payload.view)
                raise ProtocolViolation(stream.peer, f"announces {header.n_bytes} bytes where {due} were due")
            what = (stream.peer, kind, header.plan_id, header.shard, payload)
            await receive_payload(stream, payload, lambda: self._grown(*what), self._received)
        except Stalled as error:
            # A result comes as it is made, and waits for others; a share is all there before it is sent.
            if kind is Kind.CONTRIBUTION:
                self._silent(stream.peer, f"{error.reason} of its share of shard {header.shard}")
        finally:
            if not payload.complete:
                payload.drop()

    async def _known(self, plan_id: bytes) -> bool:
        """Whether the plan is the one that is followed, now or soon."""
        try:
            async with asyncio.timeout(PLAN_WAIT_S):
                while plan_id != self._plan and plan_id not in self._past:
                    await self._plan_changed.wait()
        except TimeoutError:
            return False
        return plan_id == self._plan

    async def _give_piece(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                piece = self._piece(await receive_exactly(stream, 32))
        except TimeoutError:
            return
        if piece is None:
            return
        await stream.send(struct.pack("!Q", len(piece.view)))
        self._sent(FRAME_HEADER_BYTES + 8)
        await self._send(stream, piece, Rank(Stage.PIECE), in_turns=False)
