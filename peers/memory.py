"""Streams between peers of one process, for tests: delays, slow links, cuts, partitions and crashes on any clock.

Everything random comes from the ``random.Random`` given, so a seed on a virtual clock replays exactly. What is on its
way belongs to the network: it arrives whatever has become of its sender.
"""

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Sequence

from peers.errors import ProtocolViolation, StreamClosed, Unreachable
from peers.transport import Frame, StreamHandler

# Like a socket's buffer: a sender waits when this much is on its way.
WINDOW_BYTES = 1 << 20
# As TCP and dials do it: sent again so often, and given up after so long.
RETRY_S, DIAL_TIMEOUT_S, GIVE_UP_S = 0.2, 4.0, 20.0


class MemoryStream:
    """One end of a stream; frames arrive in order after the network's delay."""

    def __init__(self, network: "MemoryNetwork", own: str, peer: str) -> None:
        self._network, self._own, self._peer = network, own, peer
        self._other: MemoryStream = self
        self._frames: deque[bytes] = deque()
        # Apart: who waits for a frame is not woken by each one that it has sent.
        self._came, self._has_room = asyncio.Event(), asyncio.Event()
        self._in_flight_bytes = 0
        self._arrives_at = 0.0
        self._stuck_since: float | None = None
        self._closed = False
        self._ended: str | None = None

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, *parts: Frame) -> None:
        frame = b"".join(parts)
        self._network.count_down(self._own)
        while self._in_flight_bytes > WINDOW_BYTES and not self._gone:
            self._has_room.clear()
            await self._has_room.wait()
        if self._gone:
            raise StreamClosed(self._peer, self._ended or "closed by us")
        self._in_flight_bytes += len(frame)
        self._later(self._network.passage_s(self._own, self._peer, len(frame)), lambda: self._deliver(frame))

    async def receive(self, max_bytes: int) -> bytes:
        while not self._frames:
            if self._gone:
                raise StreamClosed(self._peer, self._ended or "closed by us")
            self._came.clear()
            await self._came.wait()
        if len(self._frames[0]) > max_bytes:
            raise ProtocolViolation(self._peer, f"frame of {len(self._frames[0])} bytes, limit is {max_bytes}")
        return self._frames.popleft()

    async def receive_into(self, buffer: memoryview) -> int:
        frame = await self.receive(len(buffer))
        buffer[: len(frame)] = frame
        return len(frame)

    def close(self) -> None:
        self._end("closed by us", "the stream ended")

    def cut(self) -> None:
        """A broken connection: both ends see the end, and what was on its way is lost."""
        self._frames.clear()
        self._end("connection lost", "connection lost")

    @property
    def _gone(self) -> bool:
        return self._closed or self._ended is not None

    def _later(self, delay_s: float, call: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        # A microsecond apart: the loop's timers keep no order among equals.
        self._arrives_at = max(self._arrives_at + 1e-6, loop.time() + delay_s)
        loop.call_at(self._arrives_at, call, context=self._network.context)

    def _deliver(self, frame: bytes) -> None:
        if self._ended == "connection lost":
            return
        if self._network.severed(self._own, self._peer):
            # A partition loses nothing for good: TCP sends again until it heals or an end gives up.
            now = self._network.loop.time()
            self._stuck_since = now if self._stuck_since is None else self._stuck_since
            if now - self._stuck_since > GIVE_UP_S:
                self.cut()
            else:
                self._network.loop.call_later(RETRY_S, lambda: self._deliver(frame))
            return
        self._stuck_since = None
        self._in_flight_bytes -= len(frame)
        self._has_room.set()
        if not self._other._gone:
            self._other._frames.append(frame)
            self._other._came.set()

    def _end(self, own_reason: str, other_reason: str) -> None:
        if self._closed:
            return
        self._closed, self._ended = True, own_reason
        self._wake()
        self._network.forget(self)
        other = self._other
        if not other._gone:
            self._later(self._network.delay_s(self._own, self._peer, 0), lambda: other._remote_end(other_reason))

    def _remote_end(self, reason: str) -> None:
        if self._network.severed(self._own, self._peer):
            self._network.loop.call_later(RETRY_S, lambda: self._remote_end(reason))
        elif not self._gone:
            self._ended = reason
            self._network.forget(self)
            self._wake()

    def _wake(self) -> None:
        self._came.set()
        self._has_room.set()


class MemoryNetwork:
    """The cables between all peers of a process, and their shared table for discovery."""

    def __init__(self, rng: random.Random, least_delay_s: float = 0.001, most_delay_s: float = 0.01) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self.isolated: set[str] = set()
        """Peers whose link is down: nothing passes, and nobody is told."""
        self.bytes_per_s: dict[str, float] = {}
        """Rate of a peer's link, each way; of others it has no bound."""
        self.doomed: dict[str, tuple[int, Callable[[], object]]] = {}
        """Peer -> how many frames more it sends, and what then befalls it before the next instruction."""
        self._busy_until: dict[tuple[str, str], float] = {}
        self._rng, self._least_delay_s, self._most_delay_s = rng, least_delay_s, most_delay_s
        self._transports: dict[str, MemoryTransport] = {}
        self._streams: list[MemoryStream] = []
        self._sides: dict[str, int] = {}
        self._table: dict[str, dict[str, tuple[bytes, float]]] = {}
        self._unix_time_zero = 1_800_000_000.0

    def unix_time(self) -> float:
        return self._unix_time_zero + self.loop.time()

    def transport(self, peer: str) -> "MemoryTransport":
        transport = self._transports[peer] = MemoryTransport(self, peer)
        return transport

    def discovery(self) -> "MemoryDiscovery":
        return MemoryDiscovery(self)

    def delay_s(self, sender: str, receiver: str, n_bytes: int) -> float:
        return 0.0 if sender == receiver else self._rng.uniform(self._least_delay_s, self._most_delay_s)

    def passage_s(self, sender: str, receiver: str, n_bytes: int) -> float:
        """Until a frame that is sent now has arrived: behind all others on either end's link."""
        at = now = self.loop.time()
        delay_s = self.delay_s(sender, receiver, n_bytes)
        for link, way in ((sender, "up"), (receiver, "down")):
            if rate := self.bytes_per_s.get(link):
                at = self._busy_until[link, way] = max(at, self._busy_until.get((link, way), 0.0)) + n_bytes / rate
        return at - now + delay_s

    def partition(self, *sides: Sequence[str]) -> None:
        """Let frames and dials pass within a side only; peers on no side are together on one more."""
        self._sides = {peer: index + 1 for index, side in enumerate(sides) for peer in side}

    def heal(self) -> None:
        self._sides = {}

    @property
    def is_partitioned(self) -> bool:
        return bool(self._sides)

    def severed(self, one: str, other: str) -> bool:
        apart = self._sides.get(one, 0) != self._sides.get(other, 0)
        return one != other and (apart or one in self.isolated or other in self.isolated)

    def count_down(self, sender: str) -> None:
        if sender in self.doomed:
            n_frames, befall = self.doomed[sender]
            self.doomed[sender] = n_frames - 1, befall
            if n_frames == 0:
                del self.doomed[sender]
                befall()

    def cut(self, one: str, other: str) -> None:
        """Break every connection between two peers, once."""
        for stream in list(self._streams):
            if {stream._own, stream._peer} == {one, other}:
                stream.cut()

    def crash(self, peer: str) -> None:
        """The peer's process is gone: its streams end for everyone else, as a kernel does it."""
        self._transports.pop(peer, None)
        for stream in list(self._streams):
            if stream._own == peer:
                stream.cut()

    def forget(self, stream: MemoryStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)

    async def connect(self, own: str, peer: str, protocol: str) -> MemoryStream:
        await asyncio.sleep(self.delay_s(own, peer, 0))
        until = self.loop.time() + DIAL_TIMEOUT_S
        while self.severed(own, peer):
            if self.loop.time() >= until:
                raise Unreachable(peer, f"no answer in {DIAL_TIMEOUT_S:.0f} s")
            await asyncio.sleep(RETRY_S)
        other = self._transports.get(peer)
        handler = other.handlers.get(protocol) if other else None
        if other is None or handler is None or own not in self._transports:
            raise Unreachable(peer, "no such peer")
        ours, theirs = MemoryStream(self, own, peer), MemoryStream(self, peer, own)
        ours._other, theirs._other = theirs, ours
        self._streams += [ours, theirs]
        other.accept(handler, theirs)
        return ours


class MemoryTransport:
    def __init__(self, network: MemoryNetwork, peer: str) -> None:
        self.handlers: dict[str, StreamHandler] = {}
        self._network, self._peer = network, peer
        self._tasks: set[asyncio.Task[None]] = set()
        # What a peer serves runs as its own code, not as that of whoever dialled.
        self._context = contextvars.copy_context()

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def dialable(self) -> bool:
        return True

    async def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self._peer}",)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> MemoryStream:
        return await self._network.connect(self._peer, peer, protocol)

    def accept(self, handler: StreamHandler, stream: MemoryStream) -> None:
        async def serve() -> None:
            try:
                await handler(stream)
            finally:
                stream.close()

        task = asyncio.get_running_loop().create_task(serve(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self._network.crash(self._peer)
        for task in list(self._tasks):
            task.cancel()


class MemoryDiscovery:
    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    async def store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
        self._network._table.setdefault(key, {})[subkey] = (value, expires_at)
        return True

    async def get(self, key: str) -> dict[str, bytes]:
        now = self._network.unix_time()
        return {subkey: value for subkey, (value, end) in self._network._table.get(key, {}).items() if end > now}
