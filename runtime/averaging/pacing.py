"""Sends and receives what is long so that control messages, which share the link with it, never wait long behind it.

Frames are acknowledged with the time at which they came, and what is under way unacknowledged is kept to what its path
carries in ``QUEUE_S``. Of all that a peer has to send, what comes first in the round's order goes first.
"""

import asyncio
import bisect
import itertools
import math
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NamedTuple

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import FRAME_HEADER_BYTES, Stream
from runtime.averaging.own_link import OwnLink
from runtime.averaging.payload import Dropped, Payload

# 16 KiB take 13 ms on 10 Mbit/s: so much a control message waits behind one. On fast links a frame is more, for the
# sake of the processor.
LEAST_FRAME_BYTES, MOST_FRAME_BYTES = 1 << 14, 1 << 20
# The delay that bulk may add to a path's own: below it the window grows, above it shrinks.
QUEUE_S = 0.1
LEAST_WINDOW_BYTES, MOST_WINDOW_BYTES = 1 << 16, 16 << 20
# The least delay of a path is looked for anew after so long: paths change.
FORGET_S = 30.0
# A stream on which not even the shortest frame has moved for so long is given up, at either end: whoever froze keeps it
# open for ever.
STALL_S = 20.0
# Whoever has waited so long for its turn sends the shortest frame before it, so that the other end does not give it up.
MOST_PATIENCE_S = STALL_S / 4
# What is no part of a round waits while one is being sent, but not longer than this for each of its frames: then it
# takes what room the round leaves.
BACKGROUND_PATIENCE_S = 0.5
# An acknowledgement: when the frame came, by the receiver's own clock.
STAMP = struct.Struct("!d")


class Stalled(StreamClosed):
    """The other end keeps the stream open, and nothing moves on it."""


class Stage(IntEnum):
    """What goes first. Whoever fetches a piece waits for nothing else; without shares there are no results."""

    PIECE = 0
    SHARE = 1
    RESULT = 2
    BACKGROUND = 3


class Rank(NamedTuple):
    """The lowest goes first."""

    stage: Stage = Stage.PIECE
    sent: float = 0.0
    """The part of it that is on its way, where those of a stage take turns: what is least far goes first."""
    turn: int = 0


FIRST = Rank()


class Window:
    """How many bytes one peer may have under way to another, on all streams together.

    It doubles in each round trip up to the first queue (as TCP's slow start); from then on it grows by a step and
    shrinks by a part, so that several who send to one end up alike (AIMD). The queue is how much longer a frame takes
    to get there than the quickest did (as LEDBAT, RFC 6817): the two clocks need not agree, and what the way back is
    busy with does not count. It outlives a stream: a path that is known is used at once.
    """

    def __init__(self) -> None:
        self.n_bytes = LEAST_FRAME_BYTES
        self.under_way = self._most = 0
        self._least_s, self._least_until = math.inf, 0.0
        self._seen_queue = False
        self._hold_bytes = 0
        self.queued_s = 0.0

    @property
    def room(self) -> int:
        """How long a frame may be sent now; 0 if none may."""
        left = self.n_bytes - self.under_way
        if left < LEAST_FRAME_BYTES and self.under_way:
            return 0
        return min(left, max(self.n_bytes // 8, LEAST_FRAME_BYTES), MOST_FRAME_BYTES)

    def sent(self, n_bytes: int, now: float) -> None:
        if not self.under_way and now >= self._least_until:
            self._least_s, self._least_until = math.inf, now + FORGET_S
        self.under_way += n_bytes
        self._most = max(self._most, self.under_way)

    def acknowledged(self, n_bytes: int, passage_s: float, now: float) -> None:
        """A frame took so long to get there, by two clocks."""
        self._least_s = min(self._least_s, passage_s)
        self.queued_s = queued_s = passage_s - self._least_s
        self._hold_bytes -= n_bytes
        if queued_s < QUEUE_S:
            more = LEAST_WINDOW_BYTES * n_bytes / self.n_bytes if self._seen_queue else n_bytes
            # Only what is used is known to be good.
            self.n_bytes = max(self.n_bytes, min(self.n_bytes + round(more), 2 * self._most, MOST_WINDOW_BYTES))
        elif self._hold_bytes <= 0:
            # Until what is under way has passed, the queue is the old one.
            self._seen_queue, self._hold_bytes = True, self.under_way
            part = min(max(QUEUE_S / queued_s, 0.5), 0.85)
            self.n_bytes = max(round(self.n_bytes * part), LEAST_WINDOW_BYTES)
        self._passed(n_bytes)

    def lost(self, n_bytes: int) -> None:
        """So much was under way on a stream that is broken."""
        self._hold_bytes -= n_bytes
        self._passed(n_bytes)

    def _passed(self, n_bytes: int) -> None:
        self.under_way -= n_bytes
        if not self.under_way:
            self._most = 0


class Uplink:
    """All that one peer sends to others, as fast as its own link carries, and whose turn it is.

    Of the payloads that can be sent the one with the lowest rank goes first, and the next when that one is held up, by
    its path or because more of it has to come to be. Where all keep to the order of a round, few senders meet at a
    third one's link.
    """

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self.own = OwnLink()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[Rank, int, Window, asyncio.Future[None]]] = []
        """In the order of their ranks."""
        self._numbers = itertools.count()
        self.n_rounds = 0
        """Payloads of rounds that are on their way."""
        self._quiet = asyncio.Event()
        self._quiet.set()

    def window(self, peer: str) -> Window:
        return self._windows.setdefault(peer, Window())

    def forget(self, peer: str) -> None:
        """It is gone, and its clock with it."""
        self._windows.pop(peer, None)

    @contextmanager
    def of_a_round(self) -> Iterator[None]:
        """While a payload of a round is on its way, or waits for more of it to come to be."""
        self.n_rounds += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self.n_rounds -= 1
            if not self.n_rounds:
                self._quiet.set()

    async def turn(self, window: Window, rank: Rank) -> int:
        """Wait for the turn of a payload; how many bytes of it may be sent now."""
        loop, most_bytes = asyncio.get_running_loop(), MOST_FRAME_BYTES
        impatient_at = loop.time() + MOST_PATIENCE_S
        if rank.stage is Stage.BACKGROUND:
            with suppress(TimeoutError):
                async with asyncio.timeout(BACKGROUND_PATIENCE_S):
                    await self._quiet.wait()
        while (
            not (room := window.room)
            or self.own.busy_s(loop.time()) > 0
            or any(other < rank and to.room for other, _, to, _ in self._waiting)
        ):
            entry = (rank, next(self._numbers), window, loop.create_future())
            bisect.insort(self._waiting, entry)
            self.look()
            try:
                async with asyncio.timeout_at(None if rank == FIRST else impatient_at):
                    await entry[-1]
            except TimeoutError:
                rank, most_bytes = FIRST, LEAST_FRAME_BYTES
            finally:
                self._waiting.remove(entry)
        return min(room, most_bytes)

    def look(self) -> None:
        """There is room, or somebody does not need it: wake the first who can send."""
        for _, _, window, future in self._waiting:
            if window.room:
                loop = asyncio.get_running_loop()
                if (wait_s := self.own.busy_s(loop.time())) > 0:
                    if self._timer is None:
                        self._timer = loop.call_later(wait_s, self._go_on)
                # If it has been woken already, it looks further when it has had its turn.
                elif not future.done():
                    future.set_result(None)
                return

    def _go_on(self) -> None:
        self._timer = None
        self.look()


async def send_payload(
    stream: Stream,
    payload: Payload,
    uplink: Uplink,
    rank: Rank = FIRST,
    in_turns: bool = False,
    *,
    count: Callable[[int], None] = lambda n_bytes: None,
    arrived: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Send a payload as it comes to be, when it is its turn.

    With ``in_turns`` payloads of a stage go a little at a time, so that they end together; else the first goes first.
    ``count`` is told what each frame takes as it is sent, ``arrived`` as it is acknowledged.

    Returns when all of it is acknowledged: the stream may be closed then without cutting what is under way.

    Raises: StreamClosed; Stalled; Dropped if the payload is.
    """
    loop, window = asyncio.get_running_loop(), uplink.window(stream.peer)
    under_way: deque[tuple[int, float]] = deque()

    async def acknowledgements() -> None:
        left = len(payload.view)
        while left:
            came_at = await _acknowledgement(stream, under_way)
            n_bytes, sent_at = under_way.popleft()
            left -= n_bytes
            window.acknowledged(n_bytes, came_at - sent_at, loop.time())
            # By this clock, and before its word came whatever the other one says.
            arrived_at = min(sent_at + window.queued_s, loop.time())
            uplink.own.arrived(n_bytes, window, window.queued_s, arrived_at)
            uplink.look()
            arrived(n_bytes)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(acknowledgements())
            sent = end = 0
            while sent < len(payload.view):
                if not payload.has(sent + 1):
                    uplink.look()
                    await payload.until(sent + 1)
                if sent >= end:
                    end = sent + round(min(uplink.own.go_bytes, len(payload.view)))
                    if in_turns:
                        rank = rank._replace(sent=sent / len(payload.view))
                room = await uplink.turn(window, rank)
                if payload.dropped:
                    raise Dropped
                # What is here of it: the rest may take as long as another member's link.
                frame = payload.view[sent : min(sent + room, payload.n_ready, end)]
                under_way.append((len(frame), loop.time()))
                window.sent(len(frame), loop.time())
                uplink.own.sent(len(frame), loop.time())
                sent += len(frame)
                # Where the peer has stopped reading this waits, and nobody else is to wait for that.
                loop.call_soon(uplink.look)
                await stream.send(frame)
                count(FRAME_HEADER_BYTES + len(frame))
            uplink.look()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        window.lost(sum(n_bytes for n_bytes, _ in under_way))
        uplink.look()


async def _acknowledgement(stream: Stream, under_way: deque[tuple[int, float]]) -> float:
    """Wait for the next frame's; when it came there."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                came_at: float = STAMP.unpack(await receive_exactly(stream, STAMP.size))[0]
        except TimeoutError:
            if under_way and loop.time() - under_way[0][1] >= STALL_S:
                raise Stalled(stream.peer, f"nothing came for {STALL_S:.0f} s") from None
            continue
        if not under_way or not math.isfinite(came_at):
            raise ProtocolViolation(stream.peer, "an acknowledgement of nothing")
        return came_at


async def receive_payload(
    stream: Stream,
    payload: Payload,
    grown: Callable[[], None] = lambda: None,
    count: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Receive what ``send_payload`` sends, into the payload; ``grown`` is called after each frame.

    Raises: StreamClosed if it ends early; Stalled; Dropped; ProtocolViolation if a frame is empty, goes past the end,
        or is not what the payload has to be.
    """
    loop = asyncio.get_running_loop()
    since, came_bytes = loop.time(), 0
    while not payload.complete:
        try:
            async with asyncio.timeout_at(since + STALL_S):
                n_bytes = await stream.receive_into(payload.view[payload.n_ready :][:MOST_FRAME_BYTES])
        except TimeoutError:
            raise Stalled(stream.peer, f"{came_bytes} bytes came in {STALL_S:.0f} s") from None
        if not n_bytes:
            raise ProtocolViolation(stream.peer, "an empty frame")
        if payload.dropped:
            raise Dropped
        try:
            payload.grow(payload.n_ready + n_bytes)
        except ValueError as error:
            raise ProtocolViolation(stream.peer, str(error)) from None
        count(FRAME_HEADER_BYTES + n_bytes)
        grown()
        came_bytes += n_bytes
        if came_bytes >= LEAST_FRAME_BYTES:
            since, came_bytes = loop.time(), 0
        await stream.send(STAMP.pack(loop.time()))


async def receive_exactly(stream: Stream, n_bytes: int) -> bytes:
    """The next frame. Raises: ProtocolViolation if it has another length; as ``Stream.receive``."""
    frame = await stream.receive(n_bytes)
    if len(frame) != n_bytes:
        raise ProtocolViolation(stream.peer, f"a frame of {len(frame)} bytes where {n_bytes} were due")
    return frame
