"""Sends and receives what is long so that control messages, which share the link with it, never wait long behind it.

Frames are acknowledged, and what is under way unacknowledged is kept to what the path carries in ``QUEUE_S``.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import FRAME_HEADER_BYTES, Stream
from runtime.averaging.payload import Dropped, Payload

# 16 KiB take 13 ms on 10 Mbit/s: so much a control message waits behind one. On fast links a frame is more, for the
# sake of the processor.
LEAST_FRAME_BYTES, MOST_FRAME_BYTES = 1 << 14, 1 << 20
# The delay that bulk may add to a path's own: below it the window grows, above it shrinks.
QUEUE_S = 0.15
MOST_WINDOW_BYTES = 16 << 20
# A stream on which nothing has moved for so long is given up, at either end: whoever froze keeps it open for ever.
STALL_S = 20.0


class Stalled(StreamClosed):
    """The other end keeps the stream open, and nothing moves on it."""


class Window:
    """How many bytes one sender may have under way: it doubles while acknowledgements come quickly (as TCP's slow
    start), and follows the measured delay down when they do not. Delays are over the least one seen, the path's own.
    """

    def __init__(self) -> None:
        self.n_bytes = LEAST_FRAME_BYTES
        self._least_s = float("inf")

    @property
    def frame_bytes(self) -> int:
        return min(max(self.n_bytes // 8, LEAST_FRAME_BYTES), MOST_FRAME_BYTES)

    def acknowledged(self, n_bytes: int, delay_s: float) -> None:
        self._least_s = min(self._least_s, delay_s)
        queued_s = delay_s - self._least_s
        if queued_s < QUEUE_S:
            self.n_bytes = min(self.n_bytes + n_bytes, MOST_WINDOW_BYTES)
        elif queued_s > 2 * QUEUE_S:
            self.n_bytes = max(round(self.n_bytes * max(0.5, 2 * QUEUE_S / queued_s)), LEAST_FRAME_BYTES)


async def send_payload(
    stream: Stream,
    payload: Payload,
    count: Callable[[int], None] = lambda n_bytes: None,
    arrived: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Send a payload as it comes to be, paced by acknowledgements.

    ``count`` is told what each frame takes as it is sent, ``arrived`` as it is acknowledged.

    Returns when all of it is acknowledged: the stream may be closed then without cutting what is under way.

    Raises: StreamClosed; Dropped if the payload is.
    """
    loop, window = asyncio.get_running_loop(), Window()
    under_way: deque[tuple[int, float]] = deque()
    sent, acknowledged = 0, 0
    while sent < len(payload.view):
        while under_way and sent - acknowledged + LEAST_FRAME_BYTES > window.n_bytes:
            acknowledged += (n_bytes := await _acknowledgement(stream, under_way, window))
            arrived(n_bytes)
        wanted = min(window.frame_bytes, len(payload.view) - sent, max(window.n_bytes - (sent - acknowledged), 1))
        if not payload.has(sent + 1):
            await payload.until(sent + 1)
        # What is here of it: the rest may take as long as another member's link.
        frame = payload.view[sent : min(sent + wanted, payload.n_ready)]
        under_way.append((len(frame), loop.time()))
        sent += len(frame)
        await stream.send(frame)
        count(FRAME_HEADER_BYTES + len(frame))
        if payload.dropped:
            raise Dropped
    while under_way:
        arrived(await _acknowledgement(stream, under_way, window))


async def _acknowledgement(stream: Stream, under_way: deque[tuple[int, float]], window: Window) -> int:
    """Wait for the oldest frame's; its length."""
    try:
        async with asyncio.timeout(STALL_S):
            await stream.receive(1)
    except TimeoutError:
        raise Stalled(stream.peer, f"nothing came for {STALL_S:.0f} s") from None
    n_bytes, sent_at = under_way.popleft()
    window.acknowledged(n_bytes, asyncio.get_running_loop().time() - sent_at)
    return n_bytes


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
    while not payload.complete:
        try:
            async with asyncio.timeout(STALL_S):
                n_bytes = await stream.receive_into(payload.view[payload.n_ready :][:MOST_FRAME_BYTES])
        except TimeoutError:
            raise Stalled(stream.peer, f"nothing came for {STALL_S:.0f} s") from None
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
        await stream.send(b"\0")
