"""The mesh: a control stream each way between all peers of a run, kept up by driving ``peers.membership``.

Control messages travel here and nothing else does, so that bulk data cannot delay them. Each peer writes only on the
streams it opened and reads only from those opened to it: who sent a message is who holds the stream.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from peers import membership
from peers.announcing import Announcing
from peers.errors import PeerError, ProtocolViolation, StreamClosed, Unreachable
from peers.identity import Identity
from peers.membership import (
    DOUBT_S,
    HEARTBEAT_S,
    MOST_KNOWN,
    Changed,
    Dial,
    DialFailed,
    Dialled,
    Doubted,
    Down,
    Drop,
    Ended,
    Gone,
    Half,
    Heard,
    Known,
    Slept,
    Tick,
    Up,
)
from peers.messages import (
    CONTROL,
    PROTOCOL_VERSION,
    Addresses,
    Goodbye,
    Heartbeat,
    Hello,
    Introduction,
    Lost,
    Status,
)
from peers.transport import FRAME_HEADER_BYTES, Discovery, Stream, Transport
from peers.wire import unpack

logger = logging.getLogger(__name__)

CONTROL_PROTOCOL = "atoll-control-1"
# A round descriptor of 256 members takes about 16 KiB.
MAX_CONTROL_BYTES = 1 << 18
# About ten rounds' worth of messages: who cannot take them is not there.
MAX_QUEUED = 256
# How often a process looks whether it stood still, and how late it has to be to say so.
LOOK_UP_EVERY_S, ASLEEP_S = 0.25, 0.5

_OWN, _FOREIGN = b"\0", b"\1"
# The answer to a greeting of another protocol version, with the version of who answers in decimal: this alone is the
# same in all of them.
_REFUSED, _MAX_REFUSAL_BYTES = b"\2", 16
# No frame is empty: this in a queue ends its writer.
_BROKEN = b""


@dataclass(frozen=True)
class Received:
    """A message of the layer above."""

    sender: str
    body: bytes


MeshEvent = Up | Changed | Down | Gone | Slept | Received


class Mesh:
    """All control streams of one peer in one run.

    ``listener`` is called in the event loop, synchronously, with each event in order.

    Args: known has multiaddrs, each with ``/p2p/<peer id>``, of peers that this one has met before.
    """

    def __init__(
        self,
        identity: Identity,
        run_id: str,
        transport: Transport,
        discovery: Discovery,
        status: Status,
        rng: random.Random,
        strike: Callable[[str, str], None],
        unix_time: Callable[[], float] = time.time,
        known: Sequence[str] = (),
    ) -> None:
        self.peer = identity.peer
        self.listener: Callable[[MeshEvent], None] = lambda event: None
        self.met: Callable[[str, Addresses], object] = lambda peer, addresses: None
        """Called with where a linked peer can be dialled, when it is linked and each time that it says so.

        With nobody else: a stranger can tell of any number of peers.
        """
        self.other_version: Callable[[str, int], object] = lambda peer, version: None
        """Called once with each peer that speaks another protocol version: it is no member, and no offender."""
        self.bytes_sent = 0
        self.bytes_received = 0
        self._run_id, self._transport = run_id, transport
        self._status, self._strike = status, strike
        self._machine = membership.Membership(identity.peer)
        self._announcing = Announcing(
            identity, run_id, transport, discovery, self._machine, rng, unix_time, self._know, self._tell_addresses
        )
        self._inbound: dict[str, Stream] = {}
        self._queues: dict[str, asyncio.Queue[bytes]] = {}
        self._writers: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, Addresses] = {}
        for address in known:
            peer = address.rpartition("/p2p/")[2]
            self._known[peer] = (*self._known.get(peer, ()), address)
        self._over = self._leaving = False
        self._strangers: set[str] = set()

    def members(self) -> dict[str, Status]:
        return self._machine.members()

    def known_addresses(self) -> tuple[str, ...]:
        """Where the linked peers can be dialled, by their own word."""
        return self._machine.addresses()

    def set_status(self, status: Status, announce: bool = False) -> None:
        """What heartbeats say from now on; ``announce`` sends one at once."""
        self._status = status
        if announce:
            for peer in self._machine.members():
                self._enqueue(peer, _OWN + CONTROL.encode(Heartbeat(status)))

    def send(self, peer: str, body: bytes) -> None:
        """Queue a message to a linked peer; to any other it goes nowhere."""
        self._enqueue(peer, _FOREIGN + body)

    def tell_addresses(self) -> None:
        """Where this peer can be dialled has changed: say so to everyone, now."""
        self._announcing.look_again()

    async def run(self) -> None:
        """Keep the mesh up until cancelled; then say goodbye."""
        self._announcing.addresses = await self._transport.addresses()
        await self._transport.serve(CONTROL_PROTOCOL, self._read)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._announcing.keep_announced())
                tasks.create_task(self._announcing.keep_looking())
                tasks.create_task(self._keep_time())
                for peer, addresses in self._known.items():
                    self._handle(Known(peer, addresses))
        finally:
            self._over = True
            for stream in list(self._inbound.values()):
                stream.close()

    async def leave(self, reason: str) -> None:
        """Tell everyone that this peer is going, and take its record back; bounded by 1.5 seconds."""
        self._leaving = True
        for peer in list(self._queues):
            self._enqueue(peer, _OWN + CONTROL.encode(Goodbye(reason[:200])))
        telling = [self._writers[peer] for peer in self._queues]
        with suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await self._announcing.announce(left=True)
                if telling:
                    await asyncio.wait(telling)

    def _know(self, known: Known) -> None:
        self._handle(known)
        if self._machine.is_up(known.peer):
            self.met(known.peer, known.addresses)

    def _tell_addresses(self) -> None:
        for peer in self._machine.members():
            self._enqueue(peer, _OWN + CONTROL.encode(self._announcing.introduction()))

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            deadline, now = self._machine.next_deadline(), loop.time()
            wake_at = now + LOOK_UP_EVERY_S if deadline is None else max(now, min(deadline, now + LOOK_UP_EVERY_S))
            await asyncio.sleep(wake_at - now)
            if (late_s := loop.time() - wake_at) > ASLEEP_S:
                self._handle(Slept(late_s))
                self.listener(Slept(late_s))
            elif deadline is not None and wake_at >= deadline:
                # A timer may fire a clock tick early; the machine is to see its deadline as passed.
                self._handle(Tick(), deadline)

    def _handle(self, event: membership.Event, not_before: float | None = None) -> None:
        if self._over:
            return
        now = max(asyncio.get_running_loop().time(), not_before or 0.0)
        for action in self._machine.handle(event, now):
            match action:
                # To a peer that leaves it looks as if those whom it has told so were lost: they are not called back.
                case Dial(peer, addresses) if not self._leaving:
                    self._writers[peer] = self._tasks.create_task(self._write(peer, addresses))
                case Drop(peer):
                    self._close(peer)
                case Up(peer):
                    self.met(peer, self._machine.addresses_of(peer))
                case Down(peer, _, left=False):
                    for member in self._machine.members():
                        self._enqueue(member, _OWN + CONTROL.encode(Lost(peer)))
            if isinstance(action, Up | Changed | Down | Gone):
                self.listener(action)

    def _close(self, peer: str) -> None:
        if stream := self._inbound.pop(peer, None):
            stream.close()
        self._queues.pop(peer, None)
        if writer := self._writers.pop(peer, None):
            writer.cancel()

    def _enqueue(self, peer: str, frame: bytes) -> None:
        queue = self._queues.get(peer)
        if queue is None:
            return
        try:
            queue.put_nowait(frame)
        except asyncio.QueueFull:
            self._handle(Ended(peer, f"{MAX_QUEUED} messages behind"))

    async def _write(self, peer: str, addresses: Sequence[str]) -> None:
        """Dial a peer, greet it, then write what is queued for it, or a heartbeat if nothing is."""
        try:
            stream = await self._transport.open(peer, addresses, CONTROL_PROTOCOL)
        except Unreachable as error:
            logger.debug("dial_failed", extra={"peer": peer, "reason": error.reason})
            self._writers.pop(peer, None)
            self._handle(DialFailed(peer))
            return
        queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        watching: asyncio.Task[None] | None = None
        try:
            hello = Hello(PROTOCOL_VERSION, self._run_id, self._announcing.addresses, self._status)
            await self._send(stream, _OWN + CONTROL.encode(hello))
            await self._send(stream, _OWN + CONTROL.encode(self._announcing.introduction()))
            self._queues[peer] = queue
            self._handle(Dialled(peer))
            watching = self._tasks.create_task(self._watch(stream, queue))
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        frame = await queue.get()
                except TimeoutError:
                    await self._send(stream, _OWN + CONTROL.encode(Heartbeat(self._status)))
                    continue
                if frame == _BROKEN:
                    raise StreamClosed(peer, "connection lost")
                await self._send(stream, frame)
                if self._leaving and queue.empty():
                    # That was the goodbye.
                    return
        except StreamClosed as error:
            self._writers.pop(peer, None)
            self._queues.pop(peer, None)
            self._handle(Ended(peer, error.reason, Half.TO_PEER))
        finally:
            if watching is not None:
                watching.cancel()
            stream.close()

    async def _send(self, stream: Stream, frame: bytes) -> None:
        self.bytes_sent += FRAME_HEADER_BYTES + len(frame)
        await stream.send(frame)

    async def _read(self, stream: Stream) -> None:
        """Serve one control stream that a peer has opened to us, until it ends."""
        peer = stream.peer
        try:
            async with asyncio.timeout(10.0):
                frame = await stream.receive(MAX_CONTROL_BYTES)
            if (version := _greeted_version(frame, peer)) not in (None, PROTOCOL_VERSION):
                assert version is not None
                self._refuse(peer, version)
                await stream.send(_REFUSED + str(PROTOCOL_VERSION).encode())
                await _until_closed(stream)
                return
            hello = self._own_message(frame, peer)
            if not isinstance(hello, Hello) or hello.run_id != self._run_id:
                raise ProtocolViolation(peer, f"not a greeting of protocol {PROTOCOL_VERSION} in this run")
            if old := self._inbound.pop(peer, None):
                old.close()
                if self._machine.silent_s(peer, asyncio.get_running_loop().time()) > DOUBT_S:
                    # The way by which it was heard is gone and nobody said so: its network is another, and what is
                    # still sent on the old one comes to nobody.
                    self._enqueue(peer, _BROKEN)
            self._inbound[peer] = stream
            self._know(Known(peer, hello.addresses))
            self._handle(Heard(peer, hello.status))
            while self._inbound.get(peer) is stream:
                self._dispatch(peer, await stream.receive(MAX_CONTROL_BYTES))
        except (PeerError, TimeoutError) as error:
            if isinstance(error, ProtocolViolation):
                self._strike(peer, error.reason)
            if self._inbound.get(peer) is stream:
                del self._inbound[peer]
                reason = error.reason if isinstance(error, PeerError) else "no greeting"
                self._handle(Ended(peer, reason, Half.FROM_PEER))

    def _dispatch(self, peer: str, frame: bytes) -> None:
        self.bytes_received += FRAME_HEADER_BYTES + len(frame)
        if frame[:1] == _FOREIGN:
            self._handle(Heard(peer, None))
            self.listener(Received(peer, frame[1:]))
            return
        match self._own_message(frame, peer):
            case Heartbeat(status):
                self._handle(Heard(peer, status))
            case Lost(lost):
                self._handle(Heard(peer, None))
                self._handle(Doubted(lost))
            case Introduction(records):
                self._handle(Heard(peer, None))
                self._announcing.introduced(records, peer)
            case Goodbye(reason):
                self._handle(Ended(peer, f"left: {reason}", left=True))
            case _:
                raise ProtocolViolation(peer, "a second greeting on one stream")

    def _refuse(self, peer: str, version: int) -> None:
        """Whoever speaks another protocol version is told so; this peer's log is too, once for each peer."""
        if peer not in self._strangers and len(self._strangers) < MOST_KNOWN:
            self._strangers.add(peer)
            self.other_version(peer, version)

    async def _watch(self, stream: Stream, queue: asyncio.Queue[bytes]) -> None:
        """Notice the end of a stream that is only written to, when it comes and not with the next heartbeat.

        The one thing that can come is that the peer speaks another protocol version.
        """
        try:
            frame = await stream.receive(_MAX_REFUSAL_BYTES)
            if frame[:1] == _REFUSED and frame[1:].isdigit():
                self._refuse(stream.peer, int(frame[1:]))
        except PeerError:
            pass
        with suppress(asyncio.QueueFull):
            queue.put_nowait(_BROKEN)

    def _own_message(self, frame: bytes, peer: str) -> Hello | Heartbeat | Lost | Introduction | Goodbye:
        if frame[:1] != _OWN:
            raise ProtocolViolation(peer, "unknown kind of control frame")
        message: Hello | Heartbeat | Lost | Introduction | Goodbye = CONTROL.decode(frame[1:], peer)
        return message


async def _until_closed(stream: Stream) -> None:
    """What is still coming is taken, for a while: closed upon it, a stream may lose what was sent last."""
    with suppress(TimeoutError):
        async with asyncio.timeout(5.0):
            while True:
                await stream.receive(MAX_CONTROL_BYTES)


def _greeted_version(frame: bytes, peer: str) -> int | None:
    """Of what may be a greeting of any protocol version, None if it is none: its version is its first field always."""
    if frame[:1] != _OWN:
        return None
    match unpack(frame[1:], peer):
        case [0, int(version), *_]:
            return version
    return None
