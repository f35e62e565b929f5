"""A libp2p connection to one peer and the streams on it, dialled from a program without p2pd, on py-libp2p and trio.

Of py-libp2p here are Noise, yamux and the negotiation of both, and not its host: that one also offers plaintext, under
which anybody may call himself anybody, blacklists for a minute whom it failed to reach once, dials what it hears of and
answers strangers.
"""

import os
import uuid
from typing import Any

import base58
import trio
from libp2p.crypto.ed25519 import create_new_key_pair as create_identity
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import InvalidSignature, PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux

from peers.addresses import tcp_endpoint, varint
from peers.errors import ProtocolViolation, StreamClosed, Unreachable
from peers.observer_dht import (
    FIND_PROTOCOL,
    MAX_ANSWER_BYTES,
    PEER_PROTOCOL,
    Found,
    address_request,
    find_request,
    read_addresses,
    read_found,
    read_varint,
)

DIAL_TIMEOUT_S = 4.0
OPEN_TIMEOUT_S = 4.0
ASK_TIMEOUT_S = 3.0
# No matter how fast it flows: 4 MiB at 600 kbit/s.
FRAME_TIMEOUT_S = 60.0

_RESET_TIMEOUT_S = 0.5
_HEADER_BYTES = 4
# Each read of py-libp2p's is answered by a message that opens the window again.
_READ_BYTES = 1 << 16
# A Noise message has at most 65535 bytes, what is said in a negotiation is a name.
_MAX_READ_BYTES, _MAX_NAME_BYTES = 65_535, 1024
# py-libp2p's window of one stream ends at 16 MiB, of which it only warns.
_MAX_UNREAD_BYTES = 1 << 25
_LOOK_S = 1.0


class LinkStream:
    """One stream to ``peer``, of frames that are preceded by their length, 4 bytes big-endian."""

    def __init__(self, peer: str, stream: Any) -> None:
        self.peer = peer
        self._stream = stream
        self._read = bytearray()
        """What is here already of later reads, less than 64 KiB."""

    async def send(self, frame: bytes) -> None:
        """Raises: StreamClosed."""
        await self.write(len(frame).to_bytes(_HEADER_BYTES, "big") + frame)

    async def receive(self, max_bytes: int, silence_s: float) -> bytes:
        """The next frame.

        Raises: StreamClosed at the end of the stream or if nothing comes for ``silence_s``; ProtocolViolation, before
        any memory is taken, if the frame is longer than ``max_bytes``.
        """
        length = int.from_bytes(await self.read(_HEADER_BYTES, silence_s), "big")
        if length > max_bytes:
            raise ProtocolViolation(self.peer, f"frame of {length} bytes, limit is {max_bytes}")
        with trio.move_on_after(FRAME_TIMEOUT_S):
            return await self.read(length, silence_s)
        raise StreamClosed(self.peer, f"a frame of {length} bytes took more than {FRAME_TIMEOUT_S:.0f} s")

    async def write(self, data: bytes) -> None:
        """Raises: StreamClosed."""
        try:
            with trio.move_on_after(OPEN_TIMEOUT_S):
                await self._stream.write(data)
                return
        except Exception as error:
            raise StreamClosed(self.peer, _reason(error)) from error
        raise StreamClosed(self.peer, f"takes nothing for {OPEN_TIMEOUT_S:.0f} s")

    async def read(self, count: int, silence_s: float) -> bytes:
        """Exactly ``count`` bytes; ``silence_s`` is the longest wait for any of them.

        Raises: StreamClosed.
        """
        while len(self._read) < count:
            piece = b""
            try:
                with trio.move_on_after(silence_s) as waiting:
                    piece = await self._stream.read(max(count - len(self._read), _READ_BYTES))
            except Exception as error:
                raise StreamClosed(self.peer, _reason(error)) from error
            if waiting.cancelled_caught:
                raise StreamClosed(self.peer, f"silent for {silence_s:.0f} s")
            if not piece:
                raise StreamClosed(self.peer, "end of stream")
            self._read += piece
        data = bytes(self._read[:count])
        del self._read[:count]
        return data

    async def reset(self) -> None:
        """Let go of both directions at once, also when cancelled."""
        with trio.CancelScope(deadline=trio.current_time() + _RESET_TIMEOUT_S, shield=True):
            await _quietly(self._stream.reset)


class Link:
    """A connection to ``peer``, whose key it has proved to hold."""

    def __init__(self, peer: str, muxer: Yamux, scope: trio.CancelScope) -> None:
        self.peer = peer
        self._muxer, self._scope = muxer, scope

    @property
    def closed(self) -> bool:
        return bool(self._scope.cancel_called or self._muxer.event_shutting_down.is_set())

    def close(self) -> None:
        self._scope.cancel()

    async def open(self, protocol: str) -> LinkStream:
        """A new stream.

        Raises: Unreachable within 4 s, also if the peer does not know the protocol.
        """
        stream: LinkStream | None = None
        try:
            with trio.move_on_after(OPEN_TIMEOUT_S):
                muxed = await self._muxer.open_stream()
                stream = LinkStream(self.peer, muxed)
                await _select(muxed, protocol)
                opened, stream = stream, None
                return opened
        except Exception as error:
            raise Unreachable(self.peer, f"no stream of {protocol}: {_reason(error)}") from error
        finally:
            if stream is not None:
                await stream.reset()
        raise Unreachable(self.peer, f"no stream of {protocol} in {OPEN_TIMEOUT_S:.0f} s")

    async def find(self, key: int) -> Found:
        """What this peer of hivemind's table knows of ``key``.

        Raises: PeerError within 7 s.
        """
        request = find_request(self.peer, key, uuid.uuid4().bytes)
        return read_found(await self._ask(FIND_PROTOCOL, request), key, self.peer)

    async def find_addresses(self, peer: str) -> tuple[str, ...]:
        """Where this peer would dial another one.

        Raises: PeerError within 7 s.
        """
        return read_addresses(await self._ask(PEER_PROTOCOL, address_request(peer)), peer, self.peer)

    async def _ask(self, protocol: str, request: bytes) -> bytes:
        """One question and one answer, each behind its length as a varint, on a stream of their own."""
        stream = await self.open(protocol)
        try:
            with trio.move_on_after(ASK_TIMEOUT_S):
                await stream.write(varint(len(request)) + request)
                header = b""
                while not header or header[-1] >= 0x80:
                    header += await stream.read(1, ASK_TIMEOUT_S)
                    if len(header) > 4:
                        raise ProtocolViolation(self.peer, "an answer of more than 256 MiB")
                length, _ = read_varint(header)
                if length > MAX_ANSWER_BYTES:
                    raise ProtocolViolation(self.peer, f"answer of {length} bytes, limit is {MAX_ANSWER_BYTES}")
                return await stream.read(length, ASK_TIMEOUT_S)
        finally:
            await stream.reset()
        raise StreamClosed(self.peer, f"no answer to {protocol} in {ASK_TIMEOUT_S:.0f} s")


class Dialler:
    """Makes connections, all under one identity that lasts as long as this object."""

    def __init__(self) -> None:
        identity = create_identity()
        self._noise = Noise(identity, noise_privkey=create_noise_key().private_key)

    async def connect(self, nursery: trio.Nursery, peer: str, address: str) -> Link:
        """A connection to ``peer``, which lives in ``nursery``.

        Raises: Unreachable within 4 s.
        """
        endpoint = tcp_endpoint(address)
        if endpoint is None:
            raise Unreachable(peer, f"{address} is no TCP address")
        try:
            with trio.move_on_after(DIAL_TIMEOUT_S):
                link: Link = await nursery.start(self._run, peer, *endpoint)
                return link
        except PeerIDMismatchesPubkey:
            raise Unreachable(peer, f"another peer answers at {address}") from None
        except Exception as error:
            raise Unreachable(peer, f"{address}: {_reason(error)}") from error
        raise Unreachable(peer, f"no answer from {address} in {DIAL_TIMEOUT_S:.0f} s")

    async def _run(self, peer: str, host: str, port: int, *, task_status: Any) -> None:
        """Until the connection ends; what ends it is told by the streams on it, not by an exception from here."""
        socket = await trio.open_tcp_stream(host, port)
        muxer: Yamux | None = None
        started = False
        try:
            raw: Any = _Bounded(RawConnection(TrioTCPStream(socket), True), _MAX_READ_BYTES)
            await _select(raw, NOISE)
            expected = ID(base58.b58decode(peer))
            secured = await self._noise.secure_outbound(raw, expected)
            if secured.get_remote_peer() != expected:
                raise Unreachable(peer, "proved to be another peer")
            await _select(secured, YAMUX)
            muxer = Yamux(secured, expected, is_initiator=True)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(muxer.start)
                    nursery.start_soon(_refuse_streams, muxer)
                    nursery.start_soon(_bound_memory, muxer, scope)
                    await muxer.event_started.wait()
                    task_status.started(Link(peer, muxer, scope))
                    started = True
                    await muxer.event_shutting_down.wait()
                    scope.cancel()
        except Exception:
            if not started:
                raise
        finally:
            # Closes at once, whatever py-libp2p was doing with it, and wakes whoever reads a stream.
            socket.socket.close()
            if muxer is not None:
                muxer.event_shutting_down.set()
                for event in list(muxer.stream_events.values()):
                    event.set()


class _Bounded:
    """A connection from which nothing longer than ``max_bytes`` is read at once.

    py-libp2p takes a stranger's word for how long the next name of a protocol is.
    """

    def __init__(self, inner: Any, max_bytes: int) -> None:
        self._inner, self._max_bytes = inner, max_bytes

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > self._max_bytes:
            raise ValueError(f"{n} bytes to be read, limit is {self._max_bytes}")
        data: bytes = await self._inner.read(n)
        if not data:
            # Otherwise asked again, a hundred times.
            raise EOFError("closed")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def _select(connection: Any, protocol: str) -> None:
    """Agree on ``protocol`` at the beginning of a connection or stream. Raises what py-libp2p raises."""
    bounded: Any = _Bounded(connection, _MAX_NAME_BYTES)
    await MultiselectClient().select_one_of([TProtocol(protocol)], MultiselectCommunicator(bounded))


async def _refuse_streams(muxer: Yamux) -> None:
    """An observer serves nothing; unread, a dozen of them would block the connection."""
    while True:
        try:
            stream = await muxer.accept_stream()
        except MuxedConnUnavailable:
            return
        await _quietly(stream.reset)


async def _bound_memory(muxer: Yamux, scope: trio.CancelScope) -> None:
    while True:
        await trio.sleep(_LOOK_S)
        if sum(map(len, muxer.stream_buffers.values())) > _MAX_UNREAD_BYTES:
            scope.cancel()


async def _quietly(reset: Any) -> None:
    try:
        await reset()
    except Exception:
        # The stream is of no interest any more, and py-libp2p has no common exception for a broken connection.
        return


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    match error:
        case MuxedStreamEOF():
            return "end of stream"
        case MuxedStreamReset():
            return "stream broke"
        case InvalidSignature():
            return "has not the key of the peer that it says it is"
        case OSError(errno=int(number)):
            return os.strerror(number)
    return " ".join(str(error).split())[:200] or type(error).__name__
