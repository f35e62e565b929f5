"""Streams between two peers neither of which can dial the other, through a third that both are linked with.

Two homes behind two routers are the case. Only what is small goes this way: control, claims, the manifest, the past of
a run. Bulk never does, since whoever cannot be dialled reduces nothing, and a state is fetched from whoever can be.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Protocol

from peers.addresses import MARK
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
# A dial across the world is over by then. Who says itself that it cannot be dialled may still be next door.
DIAL_S, NEXT_DOOR_S = 2.0, 0.3
LOOK_S = 0.1
TUNNEL_TIMEOUT_S = 3.0
# Of those who could pass it on.
MOST_ASKED = 4
# Passed on at the same time: each pair of peers that cannot dial each other takes two.
MOST_RELAYED, MOST_RELAYED_PER_PEER = 1024, 256
# Of one stream, each way: heartbeats are 0.2 kB/s, and a round of 256 members some 20 kB of them at once.
BYTES_PER_S, BURST_BYTES = 1 << 16, 1 << 20


@dataclass(frozen=True)
class Through:
    """The first frame: to whom, and at the other end from whom."""

    peer: PeerId
    protocol: Annotated[str, Length(1, 64)]


HEADER = Codec(Through)


class Connected(Transport, Protocol):
    """A transport that knows to whom it has a connection."""

    async def connected_peers(self) -> tuple[str, ...]: ...


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
        dialling: asyncio.Task[Stream] | None = asyncio.create_task(self._transport.open(peer, addresses, protocol))
        assert dialling is not None
        unused: list[Stream] = []
        try:
            await self._wait(dialling, peer, addresses)
            if not _has_stream(dialling):
                if await self._is_connected(peer):
                    # It has dialled this peer meanwhile.
                    self._relayed.discard(peer)
                    return await self._transport.open(peer, (), protocol)
                if (through := await self._open_through(peer, protocol)) is not None:
                    unused.append(through)
            if unused and not _has_stream(dialling):
                self._relayed.add(peer)
                return unused.pop()
            stream = await dialling
            self._relayed.discard(peer)
            dialling = None
            return stream
        finally:
            if dialling is not None:
                if not dialling.done():
                    await end_tasks([dialling])
                if _has_stream(dialling):
                    unused.append(dialling.result())
            for stream in unused:
                stream.close()

    async def close(self) -> None:
        """The transport below is its owner's to close."""

    async def _wait(self, dialling: "asyncio.Task[Stream]", peer: str, addresses: Sequence[str]) -> None:
        """Until the dial is over, or the peer connected another way, or it is time to ask others."""
        loop = asyncio.get_running_loop()
        # Where only one of two cannot be dialled, it will dial the other.
        near = self.hidden and not any(MARK in address for address in addresses)
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
        if self._serving[stream.peer] >= MOST_RELAYED_PER_PEER or not await self._is_connected(wanted.peer):
            return
        self._serving[stream.peer] += 1
        try:
            onward = await self._transport.open(wanted.peer, (), RELAYED_PROTOCOL)
            try:
                await onward.send(HEADER.encode(Through(stream.peer, wanted.protocol)))
                await _carry(stream, onward)
            finally:
                onward.close()
        finally:
            self._serving[stream.peer] -= 1

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


async def _carry(one: Stream, other: Stream) -> None:
    """Frames both ways, until either end is over."""
    ways = [asyncio.create_task(_carry_one_way(*ends)) for ends in ((one, other), (other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(ways)


async def _carry_one_way(source: Stream, sink: Stream) -> None:
    loop = asyncio.get_running_loop()
    free_at = loop.time()
    with suppress(PeerError):
        while True:
            frame = await source.receive(MAX_FRAME_BYTES)
            # What a burst leaves free fills up again with time.
            free_at = max(free_at, loop.time() - BURST_BYTES / BYTES_PER_S) + len(frame) / BYTES_PER_S
            if free_at > loop.time():
                await asyncio.sleep(free_at - loop.time())
            await sink.send(frame)
