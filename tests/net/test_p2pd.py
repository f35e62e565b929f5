"""On real sockets. Every deadline is ten times what was measured."""

import asyncio
import contextlib
import logging
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from p2pd_pair import LIMIT_BYTES, echo, two_peers

from peers.errors import NetworkError, ProtocolViolation, StreamClosed, Unreachable
from peers.identity import Identity, IdentityError
from peers.p2pd import P2pdTransport
from peers.transport import Stream

NOBODY = Identity.from_seed(b"\x07" * 32).peer


def test_p2pd_calls_itself_what_the_identity_says(run: Callable[[Any], None], key: Path) -> None:
    async def main() -> None:
        transport = await P2pdTransport.create(key)
        peer = Identity.load(key).peer
        assert transport.peer == peer
        assert str(transport.p2p.peer_id) == peer
        (address,) = await transport.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{peer}")
        await transport.close()
        await transport.close()

    run(main())


def test_a_frame_comes_back_as_it_was_sent(run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("echo", echo)
            stream = await client.open(server.peer, await server.addresses(), "echo")
            assert stream.peer == server.peer
            for frame_bytes in (0, 1, 300 * 1024):
                frame = random.Random(frame_bytes).randbytes(frame_bytes)
                # A buffer that is used again at once, in parts: send must have copied it.
                buffer = bytearray(frame)
                await stream.send(buffer[:1], memoryview(buffer)[1:])
                buffer[:] = bytes(frame_bytes)
                assert await stream.receive(LIMIT_BYTES) == frame

    run(main())


def test_the_acceptor_sees_the_id_of_the_opener_and_both_see_the_end(
    run: Callable[[Any], None], tmp_path: Path
) -> None:
    async def main() -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()

        async def handler(stream: Stream) -> None:
            await seen.put(stream.peer)
            try:
                await stream.receive(8)
            except StreamClosed as error:
                await seen.put(error.peer)

        async with two_peers(tmp_path) as (server, client):
            await server.serve("who", handler)
            stream = await client.open(server.peer, await server.addresses(), "who")
            assert await seen.get() == client.peer
            stream.close()
            stream.close()
            assert await seen.get() == client.peer
            with pytest.raises(StreamClosed):
                await stream.send(b"late")
            with pytest.raises(StreamClosed):
                await stream.receive(8)

    run(main())


def test_a_frame_over_the_limit_is_a_violation_that_names_its_sender(
    run: Callable[[Any], None], tmp_path: Path
) -> None:
    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("echo", echo)
            stream = await client.open(server.peer, await server.addresses(), "echo")
            await stream.send(bytes(101))
            with pytest.raises(ProtocolViolation, match="frame of 101 bytes, limit is 100") as caught:
                await stream.receive(100)
            assert caught.value.peer == server.peer

    run(main())


def test_a_cancelled_receive_loses_nothing(run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()

        async def handler(stream: Stream) -> None:
            await arrived.put(stream)
            await asyncio.Event().wait()

        async with two_peers(tmp_path) as (server, client):
            await server.serve("slow", handler)
            sender = await client.open(server.peer, await server.addresses(), "slow")
            receiver = await arrived.get()
            sender._writer.write(b"\0\0\0\5he")  # type: ignore[attr-defined]
            while receiver._frame_bytes is None:  # type: ignore[attr-defined]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(receiver.receive(8), 0.02)
            sender._writer.write(b"llo")  # type: ignore[attr-defined]
            assert await receiver.receive(8) == b"hello"

    run(main())


def test_a_failing_handler_ends_its_stream_and_is_logged_and_others_go_on(
    run: Callable[[Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(stream: Stream) -> None:
        raise LookupError("a bug")

    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("broken", broken)
            await server.serve("echo", echo)
            for _ in range(2):
                stream = await client.open(server.peer, await server.addresses(), "broken")
                with pytest.raises(StreamClosed):
                    await stream.receive(8)
            stream = await client.open(server.peer, (), "echo")
            await stream.send(b"still here")
            assert await stream.receive(16) == b"still here"

    with caplog.at_level(logging.ERROR):
        run(main())
    assert [record.message for record in caplog.records] == ["stream_handler_failed"] * 2
    assert all(record.exc_info is not None for record in caplog.records)


def test_the_last_words_before_close_arrive(run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def handler(stream: Stream) -> None:
            while True:
                await heard.put(await stream.receive(LIMIT_BYTES))

        async with two_peers(tmp_path) as (server, client):
            await server.serve("words", handler)
            stream = await client.open(server.peer, await server.addresses(), "words")
            for _ in range(16):
                await stream.send(bytes(1 << 18))
            await stream.send(b"goodbye")
            await client.close()
            for _ in range(16):
                await heard.get()
            assert await heard.get() == b"goodbye"

    run(main())


def test_a_peer_that_cannot_be_found_is_unreachable(key: Path) -> None:
    async def main() -> None:
        transport = await P2pdTransport.create(key)
        for addresses in (
            (),
            ("/ip4/127.0.0.1/tcp/9",),
            (f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}", "nonsense", "/ip4/300.1.1.1/tcp/1"),
        ):
            for peer in (NOBODY, transport.peer, "not-an-id"):
                started = time.monotonic()
                with pytest.raises(Unreachable):
                    await transport.open(peer, addresses, "echo")
                assert time.monotonic() - started < 6
        await transport.close()

    asyncio.run(main())


def test_an_open_with_wrong_addresses_uses_the_connection_that_exists(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("echo", echo)
            await client.serve("echo", echo)
            await client.open(server.peer, await server.addresses(), "echo")
            stream = await server.open(client.peer, ("/ip4/127.0.0.1/tcp/9", "nonsense"), "echo")
            await stream.send(b"x")
            assert await stream.receive(8) == b"x"
            with pytest.raises(Unreachable, match="not supported"):
                await server.open(client.peer, (), "no such protocol")

    asyncio.run(main())


def test_who_leaves_too_many_streams_open_gets_no_more_and_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.p2pd.MOST_STREAMS_PER_PEER", 8)

    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("echo", echo)
            addresses = await server.addresses()

            async def ask(asking: P2pdTransport) -> Stream:
                stream = await asking.open(server.peer, addresses, "echo")
                await stream.send(b"x")
                assert await stream.receive(8) == b"x"
                return stream

            kept = [await ask(client) for _ in range(8)]
            with pytest.raises(StreamClosed):
                await ask(client)
            Identity.generate().save(tmp_path / "other")
            other = await P2pdTransport.create(tmp_path / "other")
            try:
                await ask(other)
            finally:
                await other.close()
            kept.pop().close()
            while True:
                if server._accepted[client.peer] < 8:
                    break
                await asyncio.sleep(0.001)
            await ask(client)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_peer_in_client_mode_opens_streams_and_has_no_address(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("server", "client"):
            Identity.generate().save(tmp_path / name)
        server = await P2pdTransport.create(tmp_path / "server")
        await server.serve("echo", echo)
        addresses = await server.addresses()
        client = await P2pdTransport.create(tmp_path / "client", bootstrap=addresses, listen=(), client_mode=True)
        assert await client.addresses() == ()
        assert await client.connected_peers() == (server.peer,)
        stream = await client.open(server.peer, (), "echo")
        await stream.send(b"x")
        assert await stream.receive(8) == b"x"
        await client.close()
        await server.close()

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract name by which one of two holds a port is Linux's own")
def test_of_two_that_begin_in_one_moment_one_has_the_port(key: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = (f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}",)
        later = asyncio.ensure_future(P2pdTransport.create(key, listen=listen))
        first = await P2pdTransport.create(key, listen=listen)
        with pytest.raises(NetworkError, match="is in use: choose another with --port"):
            await later
        await first.close()
        again = await P2pdTransport.create(key, listen=listen)
        await again.close()

    asyncio.run(main())


def test_what_the_user_got_wrong_is_one_sentence_with_the_fix(key: Path, tmp_path: Path) -> None:
    def error_of(**arguments: Any) -> str:
        with pytest.raises(NetworkError) as caught:
            asyncio.run(P2pdTransport.create(key, **arguments))
        return str(caught.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert error_of(listen=(f"/ip4/127.0.0.1/tcp/{port}",)).startswith(f"port {port} is in use: choose another")
        assert f"port {port} is in use" in error_of(listen=("/ip4/127.0.0.1/tcp/0", f"/ip4/0.0.0.0/tcp/{port}"))
    for listen in (
        "",
        "4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/tcp/65536",
        "/dns4/example.org/tcp/1",
        "/ip4/1.2.3,4/tcp/1",
    ):
        assert "is no address to listen on" in error_of(listen=(listen,))
    assert "cannot listen on" in error_of(listen=("/ip4/203.0.113.7/tcp/0",))
    for peer in ("", "nonsense", "/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/tcp/9/p2p/QmNotOurs"):
        assert "is no address of a peer" in error_of(bootstrap=(peer,))
    dead = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"
    message = error_of(bootstrap=(dead,))
    assert dead in message
    assert "ask for a newer invite" in message
    with pytest.raises(IdentityError, match="does not exist"):
        asyncio.run(P2pdTransport.create(tmp_path / "absent"))


def test_one_live_bootstrap_peer_of_two_is_enough_and_ones_own_address_does_not_count(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("server", "client"):
            Identity.generate().save(tmp_path / name)
        own = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.load(tmp_path / 'server').peer}"
        server = await P2pdTransport.create(tmp_path / "server", bootstrap=(own,))
        bootstrap = (f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}", *await server.addresses())
        client = await P2pdTransport.create(tmp_path / "client", bootstrap=bootstrap)
        assert await client.connected_peers() == (server.peer,)
        await client.close()
        await server.close()

    asyncio.run(main())


def test_importing_leaves_the_names_and_handlers_of_logging_alone() -> None:
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    assert logging.getLogger("hivemind").handlers == []
