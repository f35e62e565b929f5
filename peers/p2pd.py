"""The transport over libp2p: a ``p2pd`` child process does dialling, relaying, encryption and multiplexing.

hivemind's wheel carries the daemon; its ``P2P`` object serves only the DHT (``peers.discovery``). Streams use the
daemon's own protocol: one Unix connection each, a protobuf request and answer, then raw bytes both ways.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import base58

from peers.addresses import check_bootstrap_address, dialable, hold_listen_address, seen_endpoint, varint
from peers.daemon import Daemon, daemon_arguments, end_tasks, make_socket_folder, startup_failure
from peers.errors import NetworkError, PeerError, Unreachable
from peers.hivemind_parts import P2P, P2PD, Multiaddr, P2PDaemonError, p2pd_pb2
from peers.identity import Identity, is_peer_id
from peers.p2pd_stream import READ_AHEAD_BYTES, P2pdStream
from peers.transport import Stream, StreamHandler

logger = logging.getLogger(__name__)

STARTUP_TIMEOUT_S = 15.0
OPEN_TIMEOUT_S = 5.0
# That others have opened: one that passes on for many pairs takes 256. Each is a file descriptor here.
MOST_STREAMS, MOST_STREAMS_PER_PEER = 4096, 512
# Part of OPEN_TIMEOUT_S: what is left is for a stream over a connection that exists already.
_CONNECT_TIMEOUT_S = 4.0
# At close, first for what is queued here to reach p2pd, then for p2pd to hand it to the kernel, which delivers it
# even though p2pd is then killed. With 0 instead of 0.2 s one close in ten loses the last of 4 MB.
_FLUSH_S = 0.5
_FORWARD_S = 0.2
# What p2pd says about itself: a peer id and a few addresses.
_MAX_CONTROL_BYTES = 1 << 16
_MAX_REASON_CHARACTERS = 300


class _LiveCalls(dict[Any, "asyncio.Future[Any]"]):
    """hivemind's table of pending calls, in which a cancelled call is absent.

    hivemind sets results without looking: an answer in the same loop iteration as its caller's timeout raises
    InvalidStateError, which ends the task that reads answers, and every later call hangs.
    """

    def __contains__(self, call_id: object) -> bool:
        future = self.get(call_id)
        return future is not None and not future.done()


class P2pdTransport:
    """A ``Transport`` over one p2pd child, which ends with this process whatever happens.

    ``p2p`` is hivemind's view of the same daemon, for ``peers.discovery``.
    """

    p2p: P2P

    def __init__(self, identity: Identity, daemon: Daemon, client_mode: bool) -> None:
        self._identity = identity
        self._daemon = daemon
        self._client_mode = client_mode
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[P2pdStream] = set()
        self._accepted = Counter[str]()
        self._handlers: dict[str, StreamHandler] = {}
        self._server: asyncio.Server | None = None
        self._held = contextlib.ExitStack()

    @classmethod
    async def create(
        cls,
        identity_path: Path,
        *,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        bootstrap: Sequence[str] = (),
        client_mode: bool = False,
    ) -> "P2pdTransport":
        """Start p2pd under the key in ``identity_path`` and connect it to at least one of ``bootstrap``.

        ``listen`` has multiaddrs, port 0 for any free one; ``client_mode`` dials out only. Takes 0.1-0.4 s.

        Raises: IdentityError for the key file; NetworkError within 15 s for everything else.
        """
        identity = Identity.load(identity_path)
        daemon = P2PD
        if not os.access(daemon, os.X_OK):
            raise NetworkError(f"the libp2p daemon {daemon} is missing: reinstall it with `pip install hivemind`.")
        for address in bootstrap:
            check_bootstrap_address(address)
        # An organiser that comes back finds its own address in the invite.
        bootstrap = [address for address in bootstrap if not address.endswith(f"/p2p/{identity.peer}")]
        self = cls(identity, Daemon(make_socket_folder()), client_mode)
        try:
            for address in listen:
                self._held.enter_context(hold_listen_address(address))
            await self._start(daemon_arguments(daemon, identity_path, listen, bootstrap, client_mode), bootstrap)
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def peer(self) -> str:
        return self._identity.peer

    @property
    def client_mode(self) -> bool:
        """Whether this peer only dials out."""
        return self._client_mode

    @property
    def dialable(self) -> bool:
        """See ``peers.transport.Transport``."""
        return not self._client_mode

    async def addresses(self) -> tuple[str, ...]:
        """See ``peers.transport.Transport``; none in client mode. Asks p2pd each time: observed ones come late.

        Raises: NetworkError if p2pd has ended.
        """
        if self._client_mode:
            return ()
        answer = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        return tuple(f"{Multiaddr(address)}/p2p/{self.peer}" for address in answer.identify.addrs)

    async def connected_peers(self) -> tuple[str, ...]:
        """Ids of the peers to which p2pd has a connection now, in order.

        Raises: NetworkError if p2pd has ended.
        """
        answer = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        return tuple(sorted(base58.b58encode(info.id).decode("ascii") for info in answer.peers))

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``peers.transport.Transport``.

        Raises: NetworkError if p2pd refuses or has ended.
        """
        if self._server is None:
            self._server = await asyncio.start_unix_server(
                self._accept, self._daemon.accept_path, limit=READ_AHEAD_BYTES
            )
        self._handlers[protocol] = handler
        address = Multiaddr(f"/unix{self._daemon.accept_path}").to_bytes()
        registration = p2pd_pb2.StreamHandlerRequest(addr=address, proto=[protocol], balanced=False)
        await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=registration))

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> Stream:
        """See ``peers.transport.Transport``. Bounded by 5 s."""
        if not is_peer_id(peer):
            raise Unreachable(peer, "not an Ed25519 peer id")
        reason = ""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                try:
                    await self.connect(peer, addresses)
                except Unreachable as error:
                    # A connection that the other side has dialled may serve all the same.
                    reason = f"{error.reason}; "
                return await self._open_stream(peer, protocol)
        except TimeoutError:
            raise Unreachable(peer, f"{reason}no stream in {OPEN_TIMEOUT_S:.0f} s") from None
        except NetworkError as error:
            raise Unreachable(peer, f"{reason}{error}") from error

    async def connect(self, peer: str, addresses: Sequence[str]) -> None:
        """Have p2pd connect to ``peer`` unless it is connected. Does nothing without a well-formed address.

        Raises: Unreachable, within 4 s.
        """
        encoded = dialable(peer, addresses)
        if not encoded:
            return
        request = p2pd_pb2.ConnectRequest(peer=base58.b58decode(peer), addrs=encoded, timeout=round(_CONNECT_TIMEOUT_S))
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request))
        except TimeoutError:
            raise Unreachable(peer, f"no answer in {_CONNECT_TIMEOUT_S:.0f} s") from None
        except NetworkError as error:
            raise Unreachable(peer, str(error)) from error

    async def wait_failed(self) -> str:
        """Wait until p2pd ends by itself, which a peer cannot survive.

        Returns: a sentence for the user. Never returns after ``close``.
        """
        await self._daemon.ended.wait()
        if self._closed:
            await asyncio.Event().wait()
        return f"The libp2p daemon p2pd ended ({self._daemon.last_words()}): start again."

    async def close(self) -> None:
        """Close every stream and end p2pd; what was sent gets 0.2-0.7 s to leave. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        await end_tasks(task for task in self._tasks if task is not asyncio.current_task())
        await self._flush()
        await self._close_hivemind()
        await self._daemon.end()
        self._held.close()

    async def _flush(self) -> None:
        for stream in self._streams:
            stream.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                for stream in self._streams:
                    await stream.wait_flushed()
        if self._streams:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._daemon.ended.wait(), _FORWARD_S)

    async def _start(self, arguments: Sequence[str], bootstrap: Sequence[str]) -> None:
        self._daemon.start(arguments)
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT_S):
                await self._daemon.ready.wait()
                if self._daemon.ended.is_set():
                    raise NetworkError(startup_failure(self._daemon.last_words(), bootstrap))
                self.p2p = await P2P.replicate(Multiaddr(f"/unix{self._daemon.path}"))
        except TimeoutError:
            said = f"no answer in {STARTUP_TIMEOUT_S:.0f} s; {self._daemon.last_words()}"
            raise NetworkError(startup_failure(said, bootstrap)) from None
        except (OSError, asyncio.IncompleteReadError, P2PDaemonError) as error:
            raise NetworkError(startup_failure(str(error), bootstrap)) from error
        self.p2p._client.control._pending_calls = _LiveCalls()
        if str(self.p2p.peer_id) != self.peer:
            raise NetworkError(f"p2pd calls itself {self.p2p.peer_id}, the key says {self.peer}: reinstall hivemind.")

    async def _open_stream(self, peer: str, protocol: str) -> P2pdStream:
        request = p2pd_pb2.StreamOpenRequest(
            peer=base58.b58decode(peer), proto=[protocol], timeout=round(OPEN_TIMEOUT_S)
        )
        answer, reader, writer = await self._request(
            p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request)
        )
        info = answer.streamInfo
        name = base58.b58encode(info.peer).decode("ascii")
        return self._track(P2pdStream(name, reader, writer, seen_endpoint(info.addr)))

    async def _ask(self, request: Any) -> Any:
        answer, _, writer = await self._request(request)
        writer.close()
        return answer

    async def _request(self, request: Any) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        """One request on a new connection to p2pd, which stays open only if it succeeds.

        Raises: NetworkError with p2pd's reason.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._daemon.path, limit=READ_AHEAD_BYTES)
        except OSError as error:
            raise NetworkError(f"p2pd cannot be reached ({error}): start again.") from error
        try:
            message = request.SerializeToString()
            writer.write(varint(len(message)) + message)
            answer = p2pd_pb2.Response()
            answer.ParseFromString(await _read_message(reader))
            if answer.type == p2pd_pb2.Response.ERROR:
                # p2pd lists every address that it tried, one a line.
                raise NetworkError(" ".join(answer.error.msg.split())[:_MAX_REASON_CHARACTERS])
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.transport.abort()
            raise NetworkError(f"p2pd cannot be reached ({error}): start again.") from error
        except BaseException:
            writer.transport.abort()
            raise
        return answer, reader, writer

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = p2pd_pb2.StreamInfo()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                info.ParseFromString(await _read_message(reader))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            logger.debug("stream_not_announced", extra={"reason": str(error)})
            writer.transport.abort()
            return
        peer = base58.b58encode(info.peer).decode("ascii")
        if self._closed or not is_peer_id(peer):
            # libp2p also knows RSA identities; nothing of ours can verify what such a peer signs.
            writer.transport.abort()
            return
        if self._accepted.total() >= MOST_STREAMS or self._accepted[peer] >= MOST_STREAMS_PER_PEER:
            writer.transport.abort()
            return
        stream = self._track(P2pdStream(peer, reader, writer, seen_endpoint(info.addr)))
        self._accepted[peer] += 1
        try:
            await self._handlers[info.proto](stream)
        except PeerError as error:
            logger.debug("stream_ended", extra={"peer": peer, "protocol": info.proto, "reason": error.reason})
        except Exception:
            logger.exception("stream_handler_failed", extra={"peer": peer, "protocol": info.proto})
        finally:
            stream.close()
            self._accepted[peer] -= 1
            if not self._accepted[peer]:
                del self._accepted[peer]

    def _track(self, stream: P2pdStream) -> P2pdStream:
        self._streams = {known for known in self._streams if not known.closed}
        self._streams.add(stream)
        return stream

    async def _close_hivemind(self) -> None:
        """hivemind cancels its tasks without awaiting them, and keeps calls waiting for answers for ever."""
        if not hasattr(self, "p2p"):
            return
        control = self.p2p._client.control
        await self.p2p.shutdown()
        await end_tasks([control._read_task, control._write_task, *control._handler_tasks.values()])
        for future in control._pending_calls.values():
            future.cancel()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """One protobuf message from p2pd, preceded by its length as a varint.

    Raises: OSError, IncompleteReadError.
    """
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if length > _MAX_CONTROL_BYTES or shift > 35:
            raise ConnectionError(f"p2pd sent a message of more than {_MAX_CONTROL_BYTES} bytes")
        if byte < 0x80:
            return await reader.readexactly(length)
