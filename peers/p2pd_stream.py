"""A libp2p stream as p2pd hands it over: raw bytes both ways on a Unix connection, and frames in them."""

import asyncio
import contextlib

from peers.errors import ProtocolViolation, StreamClosed
from peers.transport import Frame

# Queued to be sent are at most a frame of 256 KiB and its successor. Read ahead is twice the other at most, on each of
# what may be thousands of streams; four times as much is no quicker.
BUFFER_BYTES, READ_AHEAD_BYTES = 1 << 19, 1 << 17
HEADER_BYTES = 4
# For what is queued when a stream is closed.
FLUSH_TIMEOUT_S = 5.0


class P2pdStream:
    """One libp2p stream; each frame is preceded by its length, 4 bytes big-endian."""

    def __init__(
        self,
        peer: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        seen: tuple[str, int] | None = None,
    ) -> None:
        self.seen = seen
        """The address and the port of the other end of the connection, None where it is not TCP, or a relay's."""
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._frame_bytes: int | None = None
        writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, *parts: Frame) -> None:
        """See ``peers.transport.Stream``. A cancelled send has still queued its frame whole."""
        if self.closed or self._reader.at_eof():
            raise StreamClosed(self._peer, "stream closed")
        # Joined, not written apart: the event loop may keep references, and the caller may reuse its buffers.
        length = sum(memoryview(part).nbytes for part in parts)
        try:
            self._writer.write(b"".join((length.to_bytes(HEADER_BYTES, "big"), *parts)))
            await self._writer.drain()
        except OSError as error:
            raise StreamClosed(self._peer, f"stream broke: {error}") from error

    async def receive(self, max_bytes: int) -> bytes:
        """See ``peers.transport.Stream``. A cancelled receive has consumed no part of a frame."""
        try:
            if self._frame_bytes is None:
                self._frame_bytes = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
            if self._frame_bytes > max_bytes:
                self._writer.transport.abort()
                raise ProtocolViolation(self._peer, f"frame of {self._frame_bytes} bytes, limit is {max_bytes}")
            frame = await self._reader.readexactly(self._frame_bytes)
        except asyncio.IncompleteReadError as error:
            raise StreamClosed(self._peer, "end of stream") from error
        except OSError as error:
            raise StreamClosed(self._peer, f"stream broke: {error}") from error
        self._frame_bytes = None
        return frame

    async def receive_into(self, buffer: memoryview) -> int:
        """See ``peers.transport.Stream``. A cancelled receive has consumed no part of a frame."""
        frame = await self.receive(len(buffer))
        buffer[: len(frame)] = frame
        return len(frame)

    @property
    def closed(self) -> bool:
        """This end is closed."""
        return self._writer.is_closing()

    def close(self) -> None:
        """See ``peers.transport.Stream``. What was sent before is still delivered if the link allows it."""
        if not self._writer.is_closing():
            self._writer.close()
            # Whoever does not read keeps it open for ever, a file descriptor and all that is queued.
            asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, self._writer.transport.abort)

    async def wait_flushed(self) -> None:
        """After ``close``: until p2pd has taken what was sent, or is gone."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
