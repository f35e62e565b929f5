"""One TLS connection between two peers: frames both ways, one stream after another.

A frame travels behind its length, 4 bytes big-endian; the length ``END`` says that this end's stream is over. When both
ends have said it, the connection is free for the next stream, which costs no handshake.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import FRAME_HEADER_BYTES, Frame

END = (1 << 32) - 1
# What is read ahead of whoever receives, and what is queued to be sent, at most.
READ_BYTES, WRITE_BYTES = 1 << 17, 1 << 19
# Below a TLS record's size it is cheaper to copy the parts of a frame than to send them apart.
JOINED_BYTES = 1 << 14
# What may still be under way from the other end when a stream is closed, and how long its end may take.
MOST_DISCARDED_BYTES, END_TIMEOUT_S = 32 << 20, 5.0
# Unacknowledged for so long, a connection is dead: the kernel would try for a quarter of an hour.
USER_TIMEOUT_S = 20.0


class Connection(asyncio.BufferedProtocol):
    """Whoever receives a long frame has it read straight into its own buffer.

    Args: freed is called each time that a stream is over at both ends; lost when the connection is.
    """

    def __init__(self, freed: Callable[[], object] = lambda: None, lost: Callable[[], object] = lambda: None) -> None:
        self.peer = ""
        self.freed, self.lost = freed, lost
        self.ended: str | None = None
        """Why the connection is no more."""
        self.transport: asyncio.Transport
        self._read_ahead = memoryview(bytearray(READ_BYTES))
        self._start = self._stop = 0
        self._target: memoryview | None = None
        """The rest of a frame that is being received, behind all that was read ahead."""
        self._paused = False
        self._skip_bytes = 0
        self._came = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = self._end_came = False
        self._discarded_bytes = 0
        self._end_timer: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # Linux alone has them.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * USER_TIMEOUT_S))
            if hasattr(socket, "TCP_CONGESTION"):
                # A round's streams come and go, and BBR paces them for seconds at what they had when they were many.
                with suppress(OSError):
                    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_ahead[self._stop :] if self._target is None else self._target

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is not None:
            self._target = self._target[nbytes:]
            if not self._target:
                self._target = None
                self._came.set()
            return
        self._stop += nbytes
        if self._closing:
            self._discard()
        if self._stop == READ_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._came.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended is None:
            self.ended = f"connection broke: {exc}" if exc else "connection closed"
        self._came.set()
        self._writable.set()
        if self._end_timer is not None:
            self._end_timer.cancel()
        self.lost()

    # What a stream calls.

    async def send(self, *parts: Frame) -> None:
        if self.ended is not None or self._closing:
            raise StreamClosed(self.peer, self.ended or "stream closed")
        length = sum(memoryview(part).nbytes for part in parts)
        header = length.to_bytes(FRAME_HEADER_BYTES, "big")
        if length <= JOINED_BYTES:
            self.transport.write(b"".join((header, *parts)))
        else:
            self.transport.writelines((header, *parts))
        if not self._writable.is_set():
            await self._writable.wait()

    async def receive(self, max_bytes: int) -> bytes:
        frame = bytearray(await self._length(max_bytes))
        await self._fill(memoryview(frame))
        return bytes(frame)

    async def receive_into(self, buffer: memoryview) -> int:
        n_bytes = await self._length(len(buffer))
        await self._fill(buffer[:n_bytes])
        return n_bytes

    def end_stream(self) -> None:
        """Say that the stream is over, and take what the other end still sends of it off the connection."""
        if self.ended is not None or self._closing:
            return
        self._closing = True
        if self._target is not None:
            # Within a frame that nobody waits for any more.
            self.abort("closed within a frame")
            return
        self.transport.write(END.to_bytes(FRAME_HEADER_BYTES, "big"))
        self._end_timer = asyncio.get_running_loop().call_later(END_TIMEOUT_S, self.abort, "no end of a stream")
        self._discard()

    def abort(self, reason: str) -> None:
        """Drop the connection."""
        if self.ended is None:
            self.ended = reason
            self.transport.abort()

    # Reading.

    async def _length(self, max_bytes: int) -> int:
        """Of the next frame, once its header is here."""
        while self._stop - self._start < FRAME_HEADER_BYTES:
            await self._more()
        length = int.from_bytes(self._read_ahead[self._start : self._start + FRAME_HEADER_BYTES], "big")
        if length == END:
            self._take(FRAME_HEADER_BYTES)
            self._end_came = True
            raise StreamClosed(self.peer, "end of stream")
        if length > max_bytes:
            self.abort("a frame beyond its limit")
            raise ProtocolViolation(self.peer, f"frame of {length} bytes, limit is {max_bytes}")
        self._take(FRAME_HEADER_BYTES)
        return length

    async def _fill(self, buffer: memoryview) -> None:
        here = min(len(buffer), self._stop - self._start)
        buffer[:here] = self._read_ahead[self._start : self._start + here]
        self._take(here)
        if here == len(buffer):
            return
        self._target = buffer[here:]
        try:
            while self._target is not None:
                self._came.clear()
                await self._came.wait()
                if self.ended is not None and self._target is not None:
                    raise StreamClosed(self.peer, self.ended)
        except asyncio.CancelledError:
            self.abort("a receive within a frame was given up")
            raise

    async def _more(self) -> None:
        if self._end_came or self._closing or self.ended is not None:
            raise StreamClosed(self.peer, self.ended or "end of stream")
        self._came.clear()
        await self._came.wait()

    def _take(self, n_bytes: int) -> None:
        self._start += n_bytes
        if self._start == self._stop:
            self._start = self._stop = 0
        elif self._stop == READ_BYTES:
            left = self._stop - self._start
            self._read_ahead[:left] = bytes(self._read_ahead[self._start : self._stop])
            self._start, self._stop = 0, left
        if self._paused and self._stop < READ_BYTES:
            self._paused = False
            self.transport.resume_reading()

    def _discard(self) -> None:
        """Of a stream that is over here, take what comes up to the other end's word that it is over there."""
        while not self._end_came and self._stop > self._start:
            skipped = min(self._skip_bytes, self._stop - self._start)
            self._skip_bytes -= skipped
            self._discarded_bytes += skipped
            self._take(skipped)
            if self._skip_bytes or self._stop - self._start < FRAME_HEADER_BYTES:
                break
            length = int.from_bytes(self._read_ahead[self._start : self._start + FRAME_HEADER_BYTES], "big")
            self._take(FRAME_HEADER_BYTES)
            if length == END:
                self._end_came = True
            else:
                self._skip_bytes = length
        if self._discarded_bytes > MOST_DISCARDED_BYTES:
            self.abort("too much behind the end of a stream")
        elif self._end_came:
            if self._end_timer is not None:
                self._end_timer.cancel()
            # What comes from now on is of the next stream.
            self._closing, self._end_came, self._discarded_bytes = False, False, 0
            self.freed()


class DirectStream:
    """One stream on a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False

    @property
    def peer(self) -> str:
        return self._connection.peer

    async def send(self, *parts: Frame) -> None:
        self._check()
        await self._connection.send(*parts)

    async def receive(self, max_bytes: int) -> bytes:
        self._check()
        return await self._connection.receive(max_bytes)

    async def receive_into(self, buffer: memoryview) -> int:
        self._check()
        return await self._connection.receive_into(buffer)

    def close(self) -> None:
        """See ``peers.transport.Stream``. What was sent before is still delivered if the link allows it."""
        if not self._closed:
            self._closed = True
            self._connection.end_stream()

    def _check(self) -> None:
        if self._closed:
            raise StreamClosed(self.peer, "closed by us")
