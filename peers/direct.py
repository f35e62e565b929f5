"""Streams over TLS 1.3 on TCP between peers that can dial each other, five times as fast as through p2pd.

The listener's certificate is made of its own Ed25519 key: that the handshake succeeds and that the key is the one in
the peer id proves who it is, and nothing has to be published but its address. The dialler then signs a nonce. Where a
peer cannot be dialled, and for what is not bulk, streams go over p2pd.
"""

import asyncio
import datetime
import functools
import os
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from peers.addresses import MARK, direct_address, host_and_port
from peers.connection import Connection, DirectStream
from peers.daemon import end_tasks
from peers.dialback import Reach
from peers.errors import NetworkError, PeerError, StreamClosed, Unreachable
from peers.identity import Identity, peer_id_of, verify
from peers.transport import Stream, StreamHandler, Transport

HELLO_CONTEXT = "atoll direct dialler"
NONCE_BYTES = 32
HANDSHAKE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 3.0
# A peer that could not be dialled is reached over p2pd for so long before it is tried again.
DIAL_AGAIN_S = 30.0
# A connection without a stream is kept so long, and by who was dialled a little longer: it is the dialler's to end.
IDLE_S = 60.0
# Of one peer, in each direction; beyond it streams go over p2pd.
MOST_CONNECTIONS = 32
# Of those whose name is not known yet; and of all that have dialled.
MOST_STRANGERS, MOST_ACCEPTED = 128, 2048
MAX_PROTOCOL_BYTES = 64
# Of whom addresses are kept, beside those with a connection: a run of 256 has room to change.
MOST_KNOWN = 1024
# Of each kind; a record has room for both.
MOST_ADDRESSES = 8


class DirectTransport:
    """A ``Transport`` that carries the ``bulk`` protocols directly where it can, all else and the rest over p2pd.

    Args: linked is called with a peer and "direct" or "p2pd" when that is found out or changes.
    """

    def __init__(
        self,
        identity: Identity,
        p2pd: Transport,
        bulk: Sequence[str],
        linked: Callable[[str, str], None] = lambda peer, kind: None,
    ) -> None:
        self.linked = linked
        self.reach: Reach | None = None
        """What others have found, None while nobody has been asked."""
        self._identity, self._p2pd, self._bulk = identity, p2pd, frozenset(bulk)
        self._accepting, self._dialling = _tls_contexts(identity)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: dict[str, tuple[str, ...]] = {}
        self._idle: dict[str, list[tuple[float, Connection]]] = {}
        self._open: dict[str, set[Connection]] = {}
        self._accepted = Counter[str]()
        self._strangers = 0
        self._not_before: dict[str, float] = {}
        self._kinds: dict[str, str] = {}
        self._came_directly = self._came_over_p2pd = False

    async def listen(self, host: str, port: int) -> None:
        """Accept connections at ``port``, or at any free one if that is taken or 0."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for wanted in dict.fromkeys((port, 0)):
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, wanted))
            except OSError:
                listener.close()
                continue
            self._port = listener.getsockname()[1]
            self._server = await loop.create_server(
                self._on_dialled, sock=listener, ssl=self._accepting, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
            return
        raise NetworkError(f"no port can be listened on at {host}: choose another --host")

    @property
    def peer(self) -> str:
        return self._identity.peer

    @property
    def dialable(self) -> bool:
        """See ``peers.transport.Transport``: others say so or, while they do not, none has had to go over p2pd."""
        if self.reach is not None:
            return self.reach.dialable
        return self._came_directly or not self._came_over_p2pd

    async def addresses(self) -> tuple[str, ...]:
        """See ``peers.transport.Transport``: p2pd's, and where this transport itself can be dialled.

        Without the latter where others have found that it cannot be: each would wait for seconds to find it anew.
        """
        reach = self.reach or Reach(direct=True, port=0)
        # Where a router passes on what comes, p2pd may not know its address.
        kinds = {host: "ip6" if ":" in host else "ip4" for host in reach.hosts}
        outside = [f"/{kind}/{host}/tcp/{reach.port}/p2p/{self.peer}" for host, kind in kinds.items()]
        addresses = list(dict.fromkeys((*(outside if reach.port else ()), *await self._p2pd.addresses())))
        if self._server is None or not reach.direct:
            return tuple(addresses[:MOST_ADDRESSES])
        # There too where the router passes on this port and not p2pd's.
        direct = dict.fromkeys(direct_address(address, self._port) for address in (*outside, *addresses))
        return (*addresses[:MOST_ADDRESSES], *[one for one in direct if one][:MOST_ADDRESSES])

    @property
    def port(self) -> int:
        """Where it listens, 0 while it does not."""
        return self._port

    def know(self, peer: str, addresses: Sequence[str]) -> None:
        """Where the peer can be dialled by its latest word, which may be nowhere."""
        direct = tuple(address for address in addresses if MARK in address)
        if self._known.pop(peer, ()) != direct:
            self._not_before.pop(peer, None)
        self._known[peer] = direct
        if len(self._known) > MOST_KNOWN:
            # Of whom nothing was heard for longest.
            oldest = next((other for other in self._known if other not in self._open), peer)
            for table in (self._known, self._not_before, self._kinds):
                table.pop(oldest, None)

    async def answers(self, peer: str, host: str, port: int) -> bool:
        """Whether the peer itself answers there."""
        kind = "ip6" if ":" in host else "ip4"
        try:
            connection = await self._dial(peer, f"/{kind}/{host}/tcp/{port}{MARK}{peer}")
        except (OSError, ValueError, PeerError):
            return False
        connection.abort("only to see whether it answers")
        return True

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """See ``peers.transport.Transport``."""
        if protocol not in self._bulk:
            await self._p2pd.serve(protocol, handler)
            return
        self._handlers[protocol] = handler

        async def over_p2pd(stream: Stream) -> None:
            self._came_over_p2pd = True
            await handler(stream)

        await self._p2pd.serve(protocol, over_p2pd)

    async def open(self, peer: str, addresses: Sequence[str], protocol: str) -> Stream:
        """See ``peers.transport.Transport``. Bounded by 8 s."""
        if addresses and protocol in self._bulk:
            self.know(peer, addresses)
        if protocol in self._bulk and (connection := await self._connection(peer)) is not None:
            stream = DirectStream(connection)
            with suppress(StreamClosed):
                await connection.send(protocol.encode())
                return stream
        return await self._p2pd.open(peer, [address for address in addresses if MARK not in address], protocol)

    def drop(self, peer: str) -> None:
        """The peer was lost: when it is back it is dialled anew.

        On a connection whose link was down nothing moves for seconds more: TCP doubles its wait at each try.
        """
        for _, connection in self._idle.pop(peer, []):
            connection.abort("the peer was lost")
        loop = asyncio.get_running_loop()
        for connection in self._open.get(peer, ()):
            # Its stream ends by itself. Not at once then: this is called while TLS still reads.
            connection.freed = functools.partial(loop.call_soon, connection.abort, "the peer was lost")
        self._not_before.pop(peer, None)

    async def close(self) -> None:
        """End every direct connection; p2pd is its owner's to close."""
        if self._server is not None:
            self._server.close()
        await end_tasks(task for task in self._tasks if task is not asyncio.current_task())
        for connections in list(self._open.values()):
            for connection in list(connections):
                connection.abort("closed by us")

    # Dialling.

    async def _connection(self, peer: str) -> Connection | None:
        """A free connection to the peer, None if it has to be p2pd."""
        loop = asyncio.get_running_loop()
        idle = self._idle.get(peer, [])
        while idle:
            since, connection = idle.pop()
            if connection.ended is None and loop.time() - since < IDLE_S:
                return connection
            connection.abort("idle")
        addresses = self._known.get(peer, ())
        full = len(self._open.get(peer, ())) >= MOST_CONNECTIONS
        if not addresses or full or loop.time() < self._not_before.get(peer, 0.0):
            return None
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                connection = await self._dial_any(peer, addresses)
        except (Unreachable, TimeoutError):
            self._not_before[peer] = loop.time() + DIAL_AGAIN_S
            self._tell(peer, "p2pd")
            return None
        self._tell(peer, "direct")
        return connection

    def _tell(self, peer: str, kind: str) -> None:
        if self._kinds.get(peer) != kind:
            self._kinds[peer] = kind
            self.linked(peer, kind)

    async def _dial_any(self, peer: str, addresses: Sequence[str]) -> Connection:
        """The first of the addresses that answers as this peer.

        Raises: Unreachable if none does.
        """
        dials = [asyncio.create_task(self._dial(peer, address)) for address in addresses]
        try:
            for dialled in asyncio.as_completed(dials):
                with suppress(OSError, ValueError, PeerError):
                    connection = await dialled
                    self._keep(peer, connection)
                    return connection
        finally:
            for dial in dials:
                if not dial.cancel() and not dial.cancelled() and not dial.exception():
                    spare = dial.result()
                    if spare not in self._open.get(peer, ()):
                        spare.abort("another address was quicker")
        raise Unreachable(peer, "no address answers as this peer")

    async def _dial(self, peer: str, address: str) -> Connection:
        host, port = host_and_port(address)
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(
            Connection, host, port, ssl=self._dialling, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S, server_hostname=""
        )
        try:
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            # Before anything is said to whoever it is.
            if _owner(certificate or b"") != peer:
                raise Unreachable(peer, f"another peer answers at {address}")
            connection.peer = peer
            nonce = await connection.receive(NONCE_BYTES)
            signature = self._identity.sign(HELLO_CONTEXT, nonce + peer.encode())
            await connection.send(self.peer.encode(), signature)
        except BaseException:
            connection.abort("not who was dialled")
            raise
        return connection

    def _keep(self, peer: str, connection: Connection) -> None:
        self._open.setdefault(peer, set()).add(connection)

        def freed() -> None:
            self._idle.setdefault(peer, []).append((asyncio.get_running_loop().time(), connection))

        def lost() -> None:
            self._open.get(peer, set()).discard(connection)
            self._idle[peer] = [one for one in self._idle.get(peer, []) if one[1] is not connection]
            for table in (self._open, self._idle):
                if not table.get(peer):
                    table.pop(peer, None)

        connection.freed, connection.lost = freed, lost

    # Being dialled.

    def _on_dialled(self) -> Connection:
        connection = Connection()
        made = connection.connection_made

        def begin(transport: asyncio.BaseTransport) -> None:
            made(transport)
            task = asyncio.get_running_loop().create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        connection.connection_made = begin  # type: ignore[method-assign]
        return connection

    async def _serve(self, connection: Connection) -> None:
        """Who has dialled says who it is, and then opens one stream after another."""
        counted = ""
        try:
            if self._strangers >= MOST_STRANGERS:
                return
            self._strangers += 1
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    connection.peer = await self._greet(connection)
            finally:
                self._strangers -= 1
            counted, self._came_directly = connection.peer, True
            self._accepted[counted] += 1
            # Twice what an honest peer opens: its end of a connection may be over before ours.
            while self._accepted[counted] <= 2 * MOST_CONNECTIONS and self._accepted.total() <= MOST_ACCEPTED:
                await self._serve_stream(connection)
        except (PeerError, TimeoutError):
            return
        finally:
            connection.abort("over")
            if counted:
                self._accepted[counted] -= 1
                if not self._accepted[counted]:
                    del self._accepted[counted]

    async def _greet(self, connection: Connection) -> str:
        nonce = os.urandom(NONCE_BYTES)
        await connection.send(nonce)
        hello = await connection.receive(52 + 64)
        peer, signature = hello[:52].decode("ascii", "replace"), hello[52:]
        if not verify(peer, HELLO_CONTEXT, nonce + self.peer.encode(), signature):
            raise Unreachable(peer, "does not prove who it is")
        return peer

    async def _serve_stream(self, connection: Connection) -> None:
        over = asyncio.Event()
        connection.freed = connection.lost = over.set
        stream = DirectStream(connection)
        try:
            async with asyncio.timeout(1.5 * IDLE_S):
                protocol = (await connection.receive(MAX_PROTOCOL_BYTES)).decode("ascii", "replace")
            handler = self._handlers.get(protocol)
            if handler is None:
                raise Unreachable(connection.peer, f"asks for the unknown protocol {protocol!r}")
            await handler(stream)
        finally:
            stream.close()
        await over.wait()
        if connection.ended is not None:
            raise StreamClosed(connection.peer, connection.ended)


def _owner(certificate: bytes) -> str | None:
    """The peer whose key a certificate has; None for one that is no peer's, or cannot be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    return peer_id_of(key) if isinstance(key, Ed25519PublicKey) else None


def _tls_contexts(identity: Identity) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """To be dialled with, and to dial with."""
    key, now = identity.private_key, datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, identity.peer)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        # No clock is compared: who reads it looks at the key alone.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, None)
    )
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.num_tickets = 0
    with tempfile.TemporaryDirectory() as folder:
        # Python's ssl reads keys from files only; the folder is this user's alone.
        file = Path(folder) / "key.pem"
        file.touch(mode=0o600)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(private + certificate.public_bytes(Encoding.PEM))
        accepting.load_cert_chain(file)
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.check_hostname = False
    dialling.verify_mode = ssl.CERT_NONE
    for context in (accepting, dialling):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return accepting, dialling
