"""Direct streams on real sockets: fast where a peer can be dialled, over p2pd where not, with nobody else at all."""

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from peers.addresses import MARK, host_and_port
from peers.direct import MOST_CONNECTIONS, DirectTransport, _owner
from peers.errors import PeerError, ProtocolViolation, StreamClosed
from peers.identity import Identity, peer_id_of
from peers.p2pd import P2pdTransport
from peers.transport import Stream

BULK, OTHER = "bulk", "other"
LIMIT_BYTES = 1 << 22
Scenario = Callable[["Pair"], Awaitable[None]]


class Pair:
    def __init__(self, server: DirectTransport, client: DirectTransport, address: tuple[str, ...]) -> None:
        self.server, self.client, self.addresses = server, client, address
        self.links: list[tuple[str, str]] = []
        client.linked = lambda peer, kind: self.links.append((peer, kind))
        self.port = server._port

    async def open(self, protocol: str = BULK) -> Stream:
        return await self.client.open(self.server.peer, self.addresses, protocol)

    @property
    def connections(self) -> int:
        return len(self.client._open.get(self.server.peer, ()))


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name in ("server", "client"):
            Identity.generate().save(folder / name)
            p2pd = await P2pdTransport.create(folder / name)
            stack.push_async_callback(p2pd.close)
            direct = DirectTransport(Identity.load(folder / name), p2pd, [BULK])
            await direct.listen("127.0.0.1", 0)
            stack.push_async_callback(direct.close)
            made.append(direct)
        yield Pair(made[0], made[1], await made[0].addresses())


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def main(scenario: Scenario) -> None:
        async with asyncio.timeout(30), pair(tmp_path) as both:
            await scenario(both)

    def run_to_its_end(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main(scenario))

    return run_to_its_end


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT_BYTES))


async def until(done: Callable[[], bool]) -> None:
    while True:
        if done():
            return
        await asyncio.sleep(0.001)


def test_frames_of_every_size_come_back_as_they_were(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        await both.server.serve(BULK, echo)
        stream = await both.open()
        assert stream.peer == both.server.peer
        for size in (0, 1, 5000, 1 << 17, (1 << 17) - 4, 1 << 20, LIMIT_BYTES):
            frame = os.urandom(size)
            await stream.send(frame[: size // 2], memoryview(frame)[size // 2 :])
            buffer = bytearray(LIMIT_BYTES)
            n_bytes = await stream.receive_into(memoryview(buffer))
            assert buffer[:n_bytes] == frame
        stream.close()
        assert both.links == [(both.server.peer, "direct")]

    run(scenario)


def test_a_connection_that_is_not_used_any_more_is_ended_by_who_was_dialled(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.direct.IDLE_S", 0.2)

    async def scenario(both: Pair) -> None:
        await both.server.serve(BULK, echo)
        stream = await both.open()
        # A stream may be silent for longer.
        await asyncio.sleep(0.5)
        await stream.send(b"x")
        assert await stream.receive(8) == b"x"
        stream.close()
        await until(lambda: not both.server._accepted)
        await (await both.open()).send(b"y")

    run(scenario)


def test_whoever_shows_a_certificate_that_cannot_be_read_is_nobody() -> None:
    """None of these may be more than a dial that failed."""
    now = datetime.datetime.now(datetime.UTC)

    def made(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        name = x509.Name([])
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(key, algorithm).public_bytes(Encoding.DER)

    key = ed25519.Ed25519PrivateKey.generate()
    good = made(key)
    version = bytes.fromhex("a003020102")
    assert good.count(version) == 1
    assert _owner(good) == peer_id_of(key.public_key())
    for bad in (b"", b"x" * 300, good[:-9], good.replace(version, bytes.fromhex("a003020101"))):
        assert _owner(bad) is None
    assert _owner(made(ec.generate_private_key(ec.SECP256R1()))) is None


@pytest.mark.parametrize("port", ["0", "65536", "99999999"])
def test_a_port_that_cannot_be_is_no_direct_address(port: str) -> None:
    with pytest.raises(ValueError, match="no such port"):
        host_and_port(f"/ip4/192.0.2.1/tcp/{port}{MARK}{Identity.from_seed(bytes(32)).peer}")


def test_a_peer_that_was_lost_is_dialled_anew(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        async def answer(stream: Stream) -> None:
            with contextlib.suppress(StreamClosed):
                await echo(stream)

        await both.server.serve(BULK, answer)
        idle, busy = await both.open(), await both.open()
        idle.close()
        await until(lambda: len(both.client._idle.get(both.server.peer, ())) == 1)
        both.client.drop(both.server.peer)
        await until(lambda: both.connections == 1)
        await busy.send(b"to its end")
        assert await busy.receive(20) == b"to its end"
        busy.close()
        await until(lambda: both.connections == 0)
        stream = await both.open()
        await stream.send(b"back")
        assert await stream.receive(4) == b"back"
        assert both.connections == 1

    run(scenario)


def test_one_stream_after_another_costs_one_connection(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        async def answer(stream: Stream) -> None:
            await stream.send(b"to " + await stream.receive(100))
            # Left unread by the client, and of no stream after this one.
            await stream.send(bytes(100_000))

        await both.server.serve(BULK, answer)
        for number in range(20):
            stream = await both.open()
            await stream.send(b"%d" % number)
            assert await stream.receive(100) == b"to %d" % number
            stream.close()
            await until(lambda: bool(both.client._idle.get(both.server.peer)))
        assert both.connections == 1

    run(scenario)


def test_streams_at_once_have_connections_of_their_own_and_beyond_some_go_over_p2pd(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        await both.server.serve(BULK, echo)
        streams = [await both.open() for _ in range(MOST_CONNECTIONS + 3)]
        for number, stream in enumerate(streams):
            await stream.send(b"%d" % number)
        for number, stream in enumerate(streams):
            assert await stream.receive(100) == b"%d" % number
        assert both.connections == MOST_CONNECTIONS

    run(scenario)


def test_a_peer_that_cannot_be_dialled_is_reached_over_p2pd_and_that_is_told(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        await both.server.serve(BULK, echo)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}{MARK}{both.server.peer}"
        plain = [address for address in both.addresses if MARK not in address]
        stream = await both.client.open(both.server.peer, (*plain, nowhere), BULK)
        await stream.send(b"over p2pd")
        assert await stream.receive(100) == b"over p2pd"
        assert both.links == [(both.server.peer, "p2pd")]
        assert not both.connections
        # Another address of the same peer, as after it has come back, is tried at once.
        await (await both.open()).send(b"direct")
        assert both.links[-1] == (both.server.peer, "direct")

    run(scenario)


def test_what_is_not_bulk_goes_over_p2pd(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        await both.server.serve(OTHER, echo)
        stream = await both.open(OTHER)
        await stream.send(b"control")
        assert await stream.receive(100) == b"control"
        assert not both.connections

    run(scenario)


def test_whoever_answers_with_another_key_gets_not_one_byte_of_payload(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        heard = []

        async def listen(stream: Stream) -> None:
            heard.append(await stream.receive(100))

        await both.server.serve(BULK, listen)
        somebody = Identity.generate().peer
        with pytest.raises(PeerError):
            await both.client.open(somebody, (f"/ip4/127.0.0.1/tcp/{both.port}{MARK}{somebody}",), BULK)
        assert both.links == [(somebody, "p2pd")]
        assert not heard

    run(scenario)


@pytest.mark.parametrize("forged", [False, True], ids=["garbage", "another's signature"])
def test_a_dialler_that_does_not_prove_who_it_is_is_cut_off(run: Any, forged: bool) -> None:
    async def scenario(both: Pair) -> None:
        served = []

        async def note(stream: Stream) -> None:
            served.append(stream.peer)

        await both.server.serve(BULK, note)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", both.port, ssl=context)
        nonce = (await reader.readexactly(36))[4:]
        victim, thief = Identity.generate(), Identity.generate()
        # Signed by the right one, but for a connection to somebody else.
        signature = victim.sign("atoll direct dialler", nonce + thief.peer.encode()) if forged else bytes(64)
        hello = victim.peer.encode() + signature
        writer.write(len(hello).to_bytes(4, "big") + hello + len(BULK).to_bytes(4, "big") + BULK.encode())
        assert await reader.read(100) == b""
        writer.close()
        assert not served

    run(scenario)


def test_plain_tcp_and_tls_before_1_3_are_refused(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", both.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"atoll" not in await reader.read(1000)
        writer.close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", both.port, ssl=context)

    run(scenario)


def test_a_frame_beyond_the_limit_is_a_violation_before_memory_is_taken(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        seen: asyncio.Queue[PeerError] = asyncio.Queue()

        async def strict(stream: Stream) -> None:
            try:
                await stream.receive(10)
            except PeerError as error:
                seen.put_nowait(error)

        await both.server.serve(BULK, strict)
        stream = await both.open()
        await stream.send(bytes(11))
        error = await seen.get()
        assert isinstance(error, ProtocolViolation)
        assert error.peer == both.client.peer

    run(scenario)


def test_the_end_of_a_peer_ends_its_streams_and_the_next_is_dialled_anew(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        await both.server.serve(BULK, echo)
        stream = await both.open()
        waiting = asyncio.create_task(stream.receive(100))
        await asyncio.sleep(0.05)
        for task in list(both.server._tasks):
            task.cancel()
        with pytest.raises(StreamClosed):
            await waiting
        again = await both.open()
        await again.send(b"here")
        assert await again.receive(100) == b"here"

    run(scenario)


def test_a_receiver_that_does_not_read_makes_the_sender_wait(run: Any) -> None:
    async def scenario(both: Pair) -> None:
        async def sleepy(stream: Stream) -> None:
            await asyncio.Event().wait()

        await both.server.serve(BULK, sleepy)
        stream = await both.open()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await stream.send(bytes(1 << 20))
                sent += 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 1.0)
        assert sent < 64

    run(scenario)


def test_the_port_that_is_wanted_is_taken_unless_it_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        Identity.generate().save(tmp_path / "key")
        p2pd = await P2pdTransport.create(tmp_path / "key")
        try:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                direct = DirectTransport(Identity.load(tmp_path / "key"), p2pd, [BULK])
                await direct.listen("127.0.0.1", port)
                assert direct._port not in (0, port)
                await direct.close()
            again = DirectTransport(Identity.load(tmp_path / "key"), p2pd, [BULK])
            await again.listen("127.0.0.1", port)
            assert again._port == port
            await again.close()
        finally:
            await p2pd.close()

    asyncio.run(main())
