"""The three faces behind which every network hides: a stream, a transport, a discovery.

Implemented over libp2p in ``peers.p2pd`` and ``peers.discovery``, and in one process in ``peers.memory``.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

FRAME_HEADER_BYTES = 4
"""A frame travels behind its length, big-endian; what is counted as sent includes it."""

Frame = bytes | bytearray | memoryview


class Stream(Protocol):
    """An ordered, reliable pipe of frames to one peer, whose identity the transport has verified."""

    @property
    def peer(self) -> str:
        """Peer id of the other end."""

    async def send(self, *parts: Frame) -> None:
        """Send the concatenated parts as one frame; returns once the frame is in a bounded buffer.

        Raises: StreamClosed if the other end is gone.
        """

    async def receive(self, max_bytes: int) -> bytes:
        """The next frame.

        Raises: StreamClosed at the end of the stream; ProtocolViolation, before any memory is taken, if the frame is
        longer than ``max_bytes``.
        """

    async def receive_into(self, buffer: memoryview) -> int:
        """The next frame into the front of ``buffer``; its length.

        Raises: as ``receive``, if the frame is longer than the buffer.
        """

    def close(self) -> None:
        """Drop the stream now. Idempotent."""


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """Opens and accepts streams, each for one named protocol."""

    @property
    def peer(self) -> str:
        """This peer's own id."""

    @property
    def dialable(self) -> bool:
        """Whether others reach this peer on the fast way, as far as is known."""

    async def addresses(self) -> tuple[str, ...]:
        """Multiaddrs, each with ``/p2p/<own id>``, at which others can dial this peer."""

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Call ``handler`` for every stream that a peer opens; the stream is closed when it returns or raises."""

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> Stream:
        """A new stream to ``peer``, dialled at ``addresses`` unless already connected.

        Raises: Unreachable, within a bounded time.
        """

    async def close(self) -> None:
        """Close every stream and end what was started for them."""


class Discovery(Protocol):
    """A shared table of expiring sub-keyed values. Anyone can write anything: the reader checks."""

    async def store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
        """Publish ``value`` until the Unix time ``expires_at``; False if nobody stored it."""

    async def get(self, key: str) -> dict[str, bytes]:
        """All unexpired values under ``key`` by sub-key; empty if there are none or the table cannot be reached."""
