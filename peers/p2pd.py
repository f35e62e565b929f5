"""The transport over libp2p: a ``p2pd`` child process does dialling, relaying, encryption and multiplexing.

hivemind's wheel carries the daemon; its ``P2P`` object serves only the DHT (``peers.discovery``). Streams use the
daemon's own protocol: one Unix connection each, a protobuf request and answer, then raw bytes both ways.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import base58
import hivemind.hivemind_cli
from hivemind.p2p import P2P, P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.multiaddr import exceptions as multiaddr_exceptions

from peers.errors import NetworkError, PeerError, ProtocolViolation, StreamClosed, Unreachable
from peers.identity import Identity, is_peer_id
from peers.transport import Frame, Stream, StreamHandler

# Importing hivemind renames WARNING to WARN for everybody and installs a handler of its own.
logging.addLevelName(logging.WARNING, "WARNING")
use_hivemind_log_handler("nowhere")

logger = logging.getLogger(__name__)

STARTUP_TIMEOUT_S = 15.0
OPEN_TIMEOUT_S = 5.0
# Part of OPEN_TIMEOUT_S: what is left is for a stream over a connection that exists already.
_CONNECT_TIMEOUT_S = 4.0
_CLOSE_TIMEOUT_S = 2.0
# At close, first for what is queued here to reach p2pd, then for p2pd to hand it to the kernel, which delivers it
# even though p2pd is then killed. With 0 instead of 0.2 s one close in ten loses the last of 4 MB.
_FLUSH_S = 0.5
_FORWARD_S = 0.2
# One frame of 256 KiB and its successor fit, so that neither end pauses its socket within a frame.
_BUFFER_BYTES = 1 << 19
# What p2pd says about itself: a peer id and a few addresses.
_MAX_CONTROL_BYTES = 1 << 16
# A record may list any number of addresses; p2pd dials all of them at once.
_MAX_ADDRESSES = 16
# sockaddr_un holds 104 bytes on macOS and 108 on Linux, with the final zero; the file names take 12.
_MAX_FOLDER_BYTES = 90
_MAX_REASON_CHARACTERS = 300
_HEADER_BYTES = 4
# The multiaddr component p2p (421 as a varint), then the length of an Ed25519 peer id.
_P2P_COMPONENT = b"\xa5\x03\x26"

# p2pd must end with us, SIGKILL included, and macOS has no PR_SET_PDEATHSIG: this shell blocks on a pipe whose other
# end only we hold, and the kernel closes it however we die. Its copies of p2pd's output are closed, so that the end
# of that output is the end of p2pd.
_WATCHDOG = """
folder=$1; shift
"$@" </dev/null &
child=$!
exec >/dev/null 2>&1
trap 'kill -9 "$child"; wait "$child"; rm -rf "$folder"' EXIT
trap exit HUP INT TERM
read -r _
"""

_lifelines: set[int] = set()


def _close_lifelines_after_fork() -> None:
    # A forked data loader would otherwise keep p2pd alive after we were killed.
    for descriptor in _lifelines:
        with contextlib.suppress(OSError):
            os.close(descriptor)


os.register_at_fork(after_in_child=_close_lifelines_after_fork)


class _LiveCalls(dict[Any, "asyncio.Future[Any]"]):
    """hivemind's table of pending calls, in which a cancelled call is absent.

    hivemind sets results without looking: an answer in the same loop iteration as its caller's timeout raises
    InvalidStateError, which ends the task that reads answers, and every later call hangs.
    """

    def __contains__(self, call_id: object) -> bool:
        future = self.get(call_id)
        return future is not None and not future.done()


class P2pdStream:
    """One libp2p stream; each frame is preceded by its length, 4 bytes big-endian."""

    def __init__(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._frame_bytes: int | None = None
        writer.transport.set_write_buffer_limits(high=_BUFFER_BYTES)

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
            self._writer.write(b"".join((length.to_bytes(_HEADER_BYTES, "big"), *parts)))
            await self._writer.drain()
        except OSError as error:
            raise StreamClosed(self._peer, f"stream broke: {error}") from error

    async def receive(self, max_bytes: int) -> bytes:
        """See ``peers.transport.Stream``. A cancelled receive has consumed no part of a frame."""
        try:
            if self._frame_bytes is None:
                self._frame_bytes = int.from_bytes(await self._reader.readexactly(_HEADER_BYTES), "big")
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

    @property
    def closed(self) -> bool:
        """This end is closed."""
        return self._writer.is_closing()

    def close(self) -> None:
        """See ``peers.transport.Stream``. What was sent before is still delivered if the link allows it."""
        self._writer.close()

    async def wait_flushed(self) -> None:
        """After ``close``: until p2pd has taken what was sent, or is gone."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class P2pdTransport:
    """A ``Transport`` over one p2pd child, which ends with this process whatever happens.

    ``p2p`` is hivemind's view of the same daemon, for ``peers.discovery``.
    """

    p2p: P2P

    def __init__(self, identity: Identity, daemon: "_Daemon", client_mode: bool) -> None:
        self._identity = identity
        self._daemon = daemon
        self._client_mode = client_mode
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[P2pdStream] = set()
        self._handlers: dict[str, StreamHandler] = {}
        self._server: asyncio.Server | None = None

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
        daemon = Path(hivemind.hivemind_cli.__file__).parent / "p2pd"
        if not os.access(daemon, os.X_OK):
            raise NetworkError(f"the libp2p daemon {daemon} is missing: reinstall it with `pip install hivemind`.")
        for address in listen:
            _check_listen_address(address)
        for address in bootstrap:
            _check_bootstrap_address(address)
        # An organiser that comes back finds its own address in the invite.
        bootstrap = [address for address in bootstrap if not address.endswith(f"/p2p/{identity.peer}")]
        self = cls(identity, _Daemon(_make_socket_folder()), client_mode)
        try:
            await self._start(_daemon_arguments(daemon, identity_path, listen, bootstrap, client_mode), bootstrap)
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
            self._server = await asyncio.start_unix_server(self._accept, self._daemon.accept_path, limit=_BUFFER_BYTES)
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
        dialable = _dialable(peer, addresses)
        if not dialable:
            return
        request = p2pd_pb2.ConnectRequest(
            peer=base58.b58decode(peer), addrs=dialable, timeout=round(_CONNECT_TIMEOUT_S)
        )
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
        await _end_tasks(task for task in self._tasks if task is not asyncio.current_task())
        await self._flush()
        await self._close_hivemind()
        await self._daemon.end()

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
                    raise NetworkError(_startup_failure(self._daemon.last_words(), bootstrap))
                self.p2p = await P2P.replicate(Multiaddr(f"/unix{self._daemon.path}"))
        except TimeoutError:
            said = f"no answer in {STARTUP_TIMEOUT_S:.0f} s; {self._daemon.last_words()}"
            raise NetworkError(_startup_failure(said, bootstrap)) from None
        except (OSError, asyncio.IncompleteReadError, P2PDaemonError) as error:
            raise NetworkError(_startup_failure(str(error), bootstrap)) from error
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
        return self._track(P2pdStream(base58.b58encode(answer.streamInfo.peer).decode("ascii"), reader, writer))

    async def _ask(self, request: Any) -> Any:
        answer, _, writer = await self._request(request)
        writer.close()
        return answer

    async def _request(self, request: Any) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        """One request on a new connection to p2pd, which stays open only if it succeeds.

        Raises: NetworkError with p2pd's reason.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._daemon.path, limit=_BUFFER_BYTES)
        except OSError as error:
            raise NetworkError(f"p2pd cannot be reached ({error}): start again.") from error
        try:
            message = request.SerializeToString()
            writer.write(_varint(len(message)) + message)
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
        stream = self._track(P2pdStream(peer, reader, writer))
        try:
            await self._handlers[info.proto](stream)
        except PeerError as error:
            logger.debug("stream_ended", extra={"peer": peer, "protocol": info.proto, "reason": error.reason})
        except Exception:
            logger.exception("stream_handler_failed", extra={"peer": peer, "protocol": info.proto})
        finally:
            stream.close()

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
        await _end_tasks([control._read_task, control._write_task, *control._handler_tasks.values()])
        for future in control._pending_calls.values():
            future.cancel()


class _Daemon:
    """The p2pd process, its watchdog, and the folder of their sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ready = asyncio.Event()
        """p2pd has said who it is, or has ended."""
        self.ended = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=3)
        self._lifeline: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._reader_task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """The socket on which p2pd takes requests."""
        return str(self.folder / "p2pd.sock")

    @property
    def accept_path(self) -> str:
        """The socket to which p2pd brings incoming streams."""
        return str(self.folder / "in.sock")

    def start(self, arguments: Sequence[str]) -> None:
        """Start watchdog and p2pd; takes 1-3 ms."""
        read_end, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        try:
            # Not the event loop's subprocess: uvloop's children inherit stray copies of the pipes, which never end.
            self._watchdog = subprocess.Popen(
                [
                    "/bin/sh",
                    "-c",
                    _WATCHDOG,
                    "p2pd-watchdog",
                    str(self.folder),
                    *arguments,
                    f"-listen=/unix{self.path}",
                ],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env={"GOLOG_LOG_LEVEL": "ERROR", **os.environ},
                # Ctrl-C in a terminal goes to its process group: p2pd has to outlive our goodbye.
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        self._reader_task = asyncio.create_task(self._read_output())

    def last_words(self) -> str:
        return " ".join(self._last_lines) or "without a word"

    async def end(self) -> None:
        """Kill p2pd, wait until it and its watchdog are gone, and remove the folder. Bounded by 6 s."""
        self._cut_lifeline()
        if self._watchdog is not None:
            try:
                await asyncio.to_thread(self._watchdog.wait, _CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # Somebody stopped the shell; p2pd has ended by itself, 13 ms after hivemind's connection to it.
                logger.warning("p2pd_watchdog_silent", extra={"pid": self._watchdog.pid})
                self._watchdog.kill()
        if self._reader_task is not None:
            await asyncio.wait([self._reader_task], timeout=_CLOSE_TIMEOUT_S)
            await _end_tasks([self._reader_task])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)
            self._lifeline = None

    async def _read_output(self) -> None:
        """Until its end, which is the end of p2pd; unread, a full pipe would stop p2pd.

        Not cancelled together with ``create``: uvloop would close the pipe behind the back of its file object.
        """
        assert self._watchdog is not None
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), self._watchdog.stdout
        )
        try:
            while line := await _next_line(output):
                logger.debug("p2pd", extra={"line": line})
                if not self.ready.is_set() or "ERROR" in line or "panic" in line:
                    self._last_lines.append(line)
                if line.startswith("Peer ID:"):
                    self._last_lines.clear()
                    self.ready.set()
        finally:
            transport.close()
            # The watchdog knows p2pd by its number, which is now free for others.
            self._cut_lifeline()
            self.ended.set()
            self.ready.set()


def _daemon_arguments(
    daemon: Path, identity: Path, listen: Sequence[str], bootstrap: Sequence[str], client_mode: bool
) -> list[str]:
    local = all("/127.0.0.1/" in address or "/::1/" in address for address in listen)
    arguments = [
        str(daemon),
        f"-id={identity.absolute()}",
        "-dhtClient=1" if client_mode else "-dhtServer=1",
        "-tls=1",
        "-noise=1",
        "-relay=1",
        "-autonat=1",
        "-connManager=1",
        f"-natPortMap={int(not local)}",
        f"-b={int(bool(bootstrap))}",
        # p2pd ends when hivemind's connection ends, or if none comes for this long: a second defence.
        "-idleTimeout=30s",
    ]
    if bootstrap:
        arguments.append(f"-bootstrapPeers={','.join(bootstrap)}")
    arguments.append(f"-hostAddrs={','.join(listen)}" if listen else "-noListenAddrs=1")
    return arguments


def _startup_failure(said: str, bootstrap: Sequence[str]) -> str:
    if bootstrap and "address already in use" not in said:
        return (
            f"none of the peers at {', '.join(bootstrap)} can be reached ({said}): check that one of them is running "
            "and that this machine is online, or ask for a newer invite."
        )
    return f"the libp2p daemon p2pd does not start ({said}): check the listen addresses."


def _make_socket_folder() -> Path:
    """A new folder that only we may enter, its name short enough for Unix sockets in it."""
    for parent in (None, "/tmp"):
        try:
            folder = tempfile.mkdtemp(prefix="atoll-", dir=parent)
        except OSError as error:
            raise NetworkError(f"no folder for sockets can be made ({error}): set TMPDIR to one of yours.") from error
        if len(os.fsencode(folder)) <= _MAX_FOLDER_BYTES:
            return Path(folder)
        Path(folder).rmdir()
    raise NetworkError("no folder for sockets has a short enough name: set TMPDIR to one under 80 characters.")


def _encode_multiaddr(text: str) -> bytes:
    """The binary form. hivemind's own encoder writes Ed25519 ids in ``/p2p/`` wrongly, so these are encoded here.

    Raises: ValueError.
    """
    if "," in text:
        raise ValueError("a comma in a multiaddr")  # p2pd takes lists separated by commas
    head, *rest = text.split("/p2p/")
    try:
        encoded: bytes = Multiaddr(head).to_bytes() if head else b""
        for piece in rest:
            peer, _, tail = piece.partition("/")
            if not is_peer_id(peer):
                raise ValueError(f"{peer!r} is not an Ed25519 peer id")
            encoded += _P2P_COMPONENT + base58.b58decode(peer)
            encoded += Multiaddr(f"/{tail}").to_bytes() if tail else b""
    except multiaddr_exceptions.Error as error:
        raise ValueError(str(error)) from error
    return encoded


def _dialable(peer: str, addresses: Iterable[str]) -> list[bytes]:
    """Binary addresses without the final ``/p2p/<peer>``; what is malformed or names another peer is left out."""
    found = []
    for address in list(addresses)[:_MAX_ADDRESSES]:
        with contextlib.suppress(ValueError):
            rest = address.removesuffix(f"/p2p/{peer}")
            if encoded := b"" if is_peer_id(rest.rpartition("/p2p/")[2]) else _encode_multiaddr(rest):
                found.append(encoded)
    return found


def _check_bootstrap_address(address: str) -> None:
    try:
        _encode_multiaddr(address)
        if not is_peer_id(address.rpartition("/p2p/")[2]):
            raise ValueError("it does not end in /p2p/<peer id>")
    except ValueError as error:
        raise NetworkError(
            f"{address!r} is no address of a peer ({error}): it looks like /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW..."
        ) from error


def _check_listen_address(address: str) -> None:
    """Refuse what is malformed, and a port in use: p2pd shares ports (SO_REUSEPORT) with other p2pds, silently."""
    parts = address.split("/")
    try:
        _encode_multiaddr(address)
        _, ip, host, protocol, port_text = parts[:5]
        family = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}[ip]
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
        port = int(port_text)
    except (ValueError, KeyError) as error:
        raise NetworkError(
            f"{address!r} is no address to listen on ({error}): it looks like /ip4/0.0.0.0/tcp/4001."
        ) from error
    try:
        with socket.socket(family, kind) as probe:
            if protocol == "tcp":
                # Connections of an earlier run in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"port {port} is in use: choose another with --port, or 0 for any.") from None
        raise NetworkError(f"cannot listen on {address} ({error.strerror}): choose another address or port.") from None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


async def _next_line(output: asyncio.StreamReader) -> str:
    """Without its end; empty only at the end of the output, and never longer than 64 KiB."""
    while True:
        with contextlib.suppress(ValueError):  # too long; readline has dropped it
            raw = await output.readline()
            line = raw.decode(errors="replace").strip()
            if line or not raw:
                return line


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


async def _end_tasks(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    """Cancel and await, for at most 2 s; how they ended is looked at, so that nothing warns of it later."""
    alive = [task for task in tasks if task is not None]
    for task in alive:
        task.cancel()
    if alive:
        done, _ = await asyncio.wait(alive, timeout=_CLOSE_TIMEOUT_S)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                logger.debug("task_ended", extra={"reason": repr(task.exception())})
