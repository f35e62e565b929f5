"""Streams between two peers neither of which can dial the other, through a third that both are linked with.

Two homes behind two routers are the case. Only what is small goes this way: control, claims, the manifest, the past of
a run. Bulk never does, since whoever cannot be dialled reduces nothing, and a state is fetched from whoever can be.
"""

import asyncio
import functools
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Protocol

from peers.addresses import is_public
from peers.daemon import end_tasks
from peers.errors import NetworkError, PeerError, StreamClosed, Unreachable
from peers.identity import Identity, is_peer_id
from peers.transport import Stream, StreamHandler, Transport
from peers.tunnel import TAG_BYTES, accept_through, dial_through
from peers.wire import Codec, Length, PeerId

logger = logging.getLogger(__name__)

RELAY_PROTOCOL, RELAYED_PROTOCOL = "atoll-relay-1", "atoll-relayed-1"
MAX_HEADER_BYTES = 256
MAX_FRAME_BYTES = (1 << 18) + TAG_BYTES
# A dial across the world is over by then. Who has no public address may still be next door.
DIAL_S, NEXT_DOOR_S = 2.0, 0.3
LOOK_S = 0.1
TUNNEL_TIMEOUT_S = 3.0
# Of those who could pass it on.
MOST_ASKED = 4
# Passed on at the same time: each pair of peers that cannot dial each other takes two.
MOST_RELAYED, MOST_RELAYED_PER_PEER = 1024, 256
# Of what one peer sends, and of all that is passed on: heartbeats are 0.2 kB/s on each stream, and a round of 256
# members some 20 kB at once.
PEER_BYTES_PER_S, PEER_BURST_BYTES = 1 << 17, 1 << 20
BYTES_PER_S, BURST_BYTES = 1 << 20, 1 << 22
# Control has a heartbeat each half second: where nothing moves so long nobody is waiting.
QUIET_S = 30.0


@dataclass(frozen=True)
class Through:
    """The first frame: to whom, and at the other end from whom."""

    peer: PeerId
    protocol: Annotated[str, Length(1, 64)]


HEADER = Codec(Through)


class Connected(Transport, Protocol):
    """A transport that knows to whom it has a connection."""

    async def connected_peers(self) -> tuple[str, ...]: ...


class Bucket:
    """So many bytes a second, and some at once after a rest: for all streams together, however many there are."""

    def __init__(self, bytes_per_s: float, burst_bytes: float) -> None:
        self._bytes_per_s, self._burst_s = bytes_per_s, burst_bytes / bytes_per_s
        self._free_at = -math.inf

    async def take(self, n_bytes: int) -> None:
        """Return when so many bytes may pass."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - self._burst_s) + n_bytes / self._bytes_per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self._free_at <= now - self._burst_s


class RelayedTransport:
    """A ``Transport`` over another, with a way round for protocols that are not ``bulk``.

    Args: members are those linked with this peer: they alone are asked to pass on, and they alone are served.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Connected,
        bulk: Collection[str],
        members: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self.members = members
        self.hidden = False
        """Whether this peer has found out that it cannot be dialled."""
        self._identity, self._transport, self._bulk = identity, transport, frozenset(bulk)
        self._handlers: dict[str, StreamHandler] = {}
        self._relayed: set[str] = set()
        self._serving: Counter[str] = Counter()
        """How many streams are passed on for each that asked."""
        self._passed = Bucket(BYTES_PER_S, BURST_BYTES)
        self._passed_of: dict[str, Bucket] = {}

    @property
    def peer(self) -> str:
        return self._identity.peer

    @property
    def dialable(self) -> bool:
        """See ``peers.transport.Transport``."""
        return self._transport.dialable

    @property
    def relayed(self) -> frozenset[str]:
        """Those whom this peer has reached through others when it opened a stream last."""
        return frozenset(self._relayed)

    async def addresses(self) -> tuple[str, ...]:
        """See ``peers.transport.Transport``."""
        return await self._transport.addresses()

    async def connected_peers(self) -> tuple[str, ...]:
        return await self._transport.connected_peers()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``peers.transport.Transport``."""
        if not self._handlers:
            await self._transport.serve(RELAY_PROTOCOL, self._pass_on)
            await self._transport.serve(RELAYED_PROTOCOL, self._accept)
        self._handlers[protocol] = handler
        await self._transport.serve(protocol, handler)

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> Stream:
        """See ``peers.transport.Transport``. Bounded by 5 s, and by 12 s more where many have to be asked."""
        if protocol in self._bulk:
            if peer in self._relayed and not await self._is_connected(peer):
                raise Unreachable(peer, "it cannot be dialled, and who passes streams on carries no bulk")
            return await self._transport.open(peer, addresses, protocol)
        if not self._candidates(peer):
            return await self._transport.open(peer, addresses, protocol)
        dialling = asyncio.create_task(self._transport.open(peer, addresses, protocol))
        kept: Stream | None = None
        try:
            kept = await self._quicker(dialling, peer, addresses, protocol)
            return kept
        finally:
            # Nothing is awaited here, where a cancellation would leave what is kept open.
            dialling.add_done_callback(functools.partial(_close_unless, kept))
            dialling.cancel()

    async def _quicker(
        self, dialling: "asyncio.Task[Stream]", peer: str, addresses: Sequence[str], protocol: str
    ) -> Stream:
        """What the dial brings, or the stream through another if that is there before.

        Raises: Unreachable.
        """
        await self._wait(dialling, peer, addresses)
        if not _has_stream(dialling):
            if await self._is_connected(peer):
                # It has dialled this peer meanwhile.
                self._relayed.discard(peer)
                return await self._transport.open(peer, (), protocol)
            if (through := await self._open_through(peer, protocol)) is not None:
                if not _has_stream(dialling):
                    self._relayed.add(peer)
                    return through
                through.close()
        stream = await dialling
        self._relayed.discard(peer)
        return stream

    async def close(self) -> None:
        """The transport below is its owner's to close."""

    async def _wait(self, dialling: "asyncio.Task[Stream]", peer: str, addresses: Sequence[str]) -> None:
        """Until the dial is over, or the peer connected another way, or it is time to ask others."""
        loop = asyncio.get_running_loop()
        # Where only one of two cannot be dialled, it will dial the other.
        near = self.hidden and not any(is_public(address) for address in addresses)
        until = loop.time() + (NEXT_DOOR_S if near or peer in self._relayed else DIAL_S)
        while not dialling.done() and (left_s := until - loop.time()) > 0:
            await asyncio.wait([dialling], timeout=min(left_s, LOOK_S))
            if not dialling.done() and await self._is_connected(peer):
                return

    async def _is_connected(self, peer: str) -> bool:
        with suppress(NetworkError):
            return peer in await self._transport.connected_peers()
        return False

    def _candidates(self, peer: str) -> list[str]:
        """Who may be linked with both, in an order of this pair's own: so what there is to pass on is shared out."""

        def rank(member: str) -> bytes:
            return hashlib.sha256(f"{min(self.peer, peer)}/{max(self.peer, peer)}/{member}".encode()).digest()

        near = [member for member in self.members() if member != peer and member not in self._relayed]
        return sorted(near, key=rank)[:MOST_ASKED]

    async def _open_through(self, peer: str, protocol: str) -> Stream | None:
        """Through the first who can; None if nobody can."""
        for member in self._candidates(peer):
            stream: Stream | None = None
            try:
                async with asyncio.timeout(TUNNEL_TIMEOUT_S):
                    stream = await self._transport.open(member, (), RELAY_PROTOCOL)
                    await stream.send(HEADER.encode(Through(peer, protocol)))
                    return await dial_through(stream, self._identity, peer, protocol)
            except (PeerError, TimeoutError) as error:
                logger.debug("not_passed_on", extra={"peer": peer, "member": member, "reason": str(error)})
                if stream is not None:
                    stream.close()
            except BaseException:
                if stream is not None:
                    stream.close()
                raise
        return None

    # Being asked.

    async def _pass_on(self, stream: Stream) -> None:
        """Carry frames between who asks and whom it wants to reach, if both are members."""
        wanted = await _header(stream)
        members = self.members()
        if stream.peer not in members or wanted.peer not in members or wanted.peer == stream.peer:
            return
        if wanted.protocol in self._bulk or self._serving.total() >= MOST_RELAYED:
            return
        if self._serving[stream.peer] >= MOST_RELAYED_PER_PEER:
            return
        # Counted before the first wait: what others ask for meanwhile is to find it.
        self._serving[stream.peer] += 1
        try:
            if await self._is_connected(wanted.peer):
                onward = await self._transport.open(wanted.peer, (), RELAYED_PROTOCOL)
                try:
                    await onward.send(HEADER.encode(Through(stream.peer, wanted.protocol)))
                    await self._carry(stream, onward)
                finally:
                    onward.close()
        finally:
            self._serving[stream.peer] -= 1
            if not self._serving[stream.peer]:
                del self._serving[stream.peer]

    async def _carry(self, one: Stream, other: Stream) -> None:
        """Frames both ways, until either end is over or neither has anything to say."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S) as quiet:

                def moved() -> None:
                    if not quiet.expired():
                        quiet.reschedule(loop.time() + QUIET_S)

                both = ((one, other), (other, one))
                ways = [asyncio.create_task(self._carry_one_way(*ends, moved)) for ends in both]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await end_tasks(ways)

    async def _carry_one_way(self, source: Stream, sink: Stream, moved: Callable[[], None]) -> None:
        with suppress(PeerError):
            while True:
                frame = await source.receive(MAX_FRAME_BYTES)
                moved()
                # First its own: what one has to wait for takes nothing from the others.
                await self._bucket(source.peer).take(len(frame))
                await self._passed.take(len(frame))
                await sink.send(frame)
                moved()

    def _bucket(self, peer: str) -> Bucket:
        """Of what this peer sends, on streams that it or another has asked for."""
        if peer not in self._passed_of:
            now = asyncio.get_running_loop().time()
            self._passed_of = {other: one for other, one in self._passed_of.items() if not one.is_full(now)}
            self._passed_of[peer] = Bucket(PEER_BYTES_PER_S, PEER_BURST_BYTES)
        return self._passed_of[peer]

    async def _accept(self, stream: Stream) -> None:
        through = await _header(stream)
        handler = self._handlers.get(through.protocol)
        if handler is None or through.protocol in self._bulk or not is_peer_id(through.peer):
            return
        try:
            async with asyncio.timeout(TUNNEL_TIMEOUT_S):
                tunnel = await accept_through(stream, self._identity, through.peer, through.protocol)
        except TimeoutError:
            raise StreamClosed(through.peer, "no word through a tunnel") from None
        await handler(tunnel)


async def _header(stream: Stream) -> Through:
    """Raises: PeerError."""
    try:
        async with asyncio.timeout(TUNNEL_TIMEOUT_S):
            header: Through = HEADER.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
    except TimeoutError:
        raise StreamClosed(stream.peer, "nothing was asked for") from None
    return header


def _has_stream(dialling: "asyncio.Task[Stream]") -> bool:
    return dialling.done() and not dialling.cancelled() and dialling.exception() is None


def _close_unless(kept: Stream | None, dialling: "asyncio.Task[Stream]") -> None:
    if _has_stream(dialling) and dialling.result() is not kept:
        dialling.result().close()
