"""On real sockets and, where a death is at stake, real processes. Every deadline is ten times what was measured."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hivemind.utils.multiaddr import Multiaddr
from hypothesis import given
from hypothesis import strategies as st

from peers.addresses import dialable, encode_multiaddr
from peers.errors import NetworkError, ProtocolViolation, StreamClosed, Unreachable
from peers.identity import Identity, IdentityError
from peers.p2pd import P2pdTransport
from peers.transport import Stream

LIMIT_BYTES = 1 << 20
NOBODY = Identity.from_seed(b"\x07" * 32).peer
ROOT = Path(__file__).parents[2]

# A peer that says where it is, serves, and then does as it was told on its standard input.
PEER_PROGRAM = """
import asyncio, json, signal, sys, uvloop
from pathlib import Path
from peers.p2pd import P2pdTransport

async def hold(stream):
    await stream.send(b"hello")
    await stream.receive(64)

async def main():
    transport = await P2pdTransport.create(Path(sys.argv[1]))
    await transport.serve("hold", hold)
    print(json.dumps({"peer": transport.peer, "addresses": await transport.addresses(),
                      "folder": str(transport._daemon.folder)}), flush=True)
    if await asyncio.to_thread(sys.stdin.readline) == "fork\\n":
        import os
        if os.fork() == 0:
            signal.pause()
        print("forked", flush=True)
        await asyncio.Event().wait()
    await transport.close()

uvloop.run(main())
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_to_its_end(main: Any) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main, 30))

    return run_to_its_end


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    Identity.generate().save(path)
    return path


@contextlib.asynccontextmanager
async def two_peers(folder: Path) -> AsyncIterator[tuple[P2pdTransport, P2pdTransport]]:
    for name in ("server", "client"):
        Identity.generate().save(folder / name)
    server = await P2pdTransport.create(folder / "server")
    try:
        client = await P2pdTransport.create(folder / "client")
        try:
            yield server, client
        finally:
            await client.close()
    finally:
        await server.close()


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT_BYTES))


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """For what no event tells: the end of a process that is not our child."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


def processes_of(folder: str) -> list[int]:
    """Ids of the processes with our socket folder in their command line: the watchdog and p2pd."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if folder in line]


def p2pd_of(folder: str) -> int:
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
    (line,) = (line for line in listing.stdout.splitlines() if folder in line and "/bin/sh" not in line)
    return int(line.split()[0])


@contextlib.contextmanager
def peer_process(key_path: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PEER_PROGRAM, str(key_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        try:
            info = json.loads(process.stdout.readline())
            yield process, info
        finally:
            process.kill()
    wait_until(lambda: not processes_of(info["folder"]) and not Path(info["folder"]).exists(), 2)


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


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_nothing_and_its_streams_end_at_once(
    tmp_path: Path, key: Path, death: signal.Signals
) -> None:
    Identity.generate().save(tmp_path / "victim")

    async def main() -> None:
        with peer_process(tmp_path / "victim") as (process, info):
            assert len(processes_of(info["folder"])) == 2
            transport = await P2pdTransport.create(key)
            stream = await transport.open(info["peer"], info["addresses"], "hold")
            assert await stream.receive(8) == b"hello"
            started = time.monotonic()
            process.send_signal(death)
            with pytest.raises(StreamClosed):
                await stream.receive(8)
            assert time.monotonic() - started < 1
            wait_until(lambda: not processes_of(info["folder"]) and not Path(info["folder"]).exists(), 2)
            await transport.close()

    asyncio.run(main())


def test_a_process_that_closes_leaves_nothing(tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "leaver")
    with peer_process(tmp_path / "leaver") as (process, info):
        process.communicate("close\n", timeout=10)
        assert process.returncode == 0
        assert processes_of(info["folder"]) == []
        assert not Path(info["folder"]).exists()


def test_p2pd_ends_even_if_its_watchdog_was_killed_first(key: Path) -> None:
    async def main() -> None:
        transport = await P2pdTransport.create(key)
        watchdog = transport._daemon._watchdog
        assert watchdog is not None
        watchdog.kill()
        folder = str(transport._daemon.folder)
        await transport.close()
        wait_until(lambda: not processes_of(folder), 2)

    asyncio.run(main())


def test_a_forked_helper_does_not_keep_p2pd_alive(tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "forker")
    with peer_process(tmp_path / "forker") as (process, info):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert process.stdout.readline() == "forked\n"
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
        helpers = [pid for pid, parent in rows if parent == process.pid and pid not in processes_of(info["folder"])]
        assert helpers
        try:
            process.kill()
            wait_until(lambda: not processes_of(info["folder"]), 2)
        finally:
            for helper in helpers:
                os.kill(helper, signal.SIGKILL)


def test_the_death_of_p2pd_ends_streams_and_is_told(run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        async with two_peers(tmp_path) as (server, client):
            await server.serve("echo", echo)
            stream = await client.open(server.peer, await server.addresses(), "echo")
            await stream.send(b"x")
            assert await stream.receive(8) == b"x"
            failed = asyncio.create_task(client.wait_failed())
            os.kill(p2pd_of(str(client._daemon.folder)), signal.SIGKILL)
            with pytest.raises(StreamClosed):
                await asyncio.wait_for(stream.receive(8), 1)
            assert "p2pd ended" in await asyncio.wait_for(failed, 1)
            with pytest.raises(Unreachable):
                await client.open(server.peer, (), "echo")
            with pytest.raises(NetworkError):
                await client.addresses()
            folder = client._daemon.folder
        assert not folder.exists()
        assert processes_of(str(folder)) == []

    run(main())


def test_a_cancelled_start_leaves_nothing(
    run: Callable[[Any], None], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    async def main() -> None:
        for ticks in (1, 3, 10, 30):
            start = asyncio.create_task(P2pdTransport.create(key))
            for _ in range(ticks):
                await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start

    run(main())
    assert list(tmp_path.iterdir()) == [key]
    assert processes_of(str(tmp_path)) == []


@given(st.text())
def test_any_text_encodes_or_is_a_value_error(text: str) -> None:
    for address in (text, f"/{text}", f"/ip4/{text}", f"/ip4/1.2.3.4/tcp/{text}", f"/p2p/{NOBODY}/{text}"):
        with contextlib.suppress(ValueError):
            encode_multiaddr(address)


@given(
    st.one_of(
        st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}"),
        st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}"),
        st.from_regex(r"/(dns|dns4|dns6|dnsaddr)/[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,20}){0,3}", fullmatch=True),
    ),
    st.sampled_from(["/tcp/", "/udp/"]),
    st.integers(0, 65535),
    st.lists(st.sampled_from(["/quic", "/quic-v1", "/tls", "/ws", "/wss", "/p2p-circuit"]), max_size=3).map("".join),
)
def test_an_address_without_a_peer_id_encodes_as_hivemind_has_it(host: str, kind: str, port: int, tail: str) -> None:
    address = f"{host}{kind}{port}{tail}"
    assert encode_multiaddr(address) == Multiaddr(address).to_bytes()


def test_a_relay_address_encodes_as_libp2p_has_it() -> None:
    relay = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}/p2p-circuit"
    identity = (
        bytes.fromhex("a503260024080112 20") + Identity.from_seed(b"\x07" * 32)._key.public_key().public_bytes_raw()
    )
    assert encode_multiaddr(relay) == bytes.fromhex("047f000001060009") + identity + bytes.fromhex("a202")
    peer = Identity.from_seed(b"\x08" * 32).peer
    assert dialable(peer, [f"{relay}/p2p/{peer}"]) == [encode_multiaddr(relay)]
    assert dialable(peer, [f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}", f"/p2p/{peer}"]) == []


def test_importing_leaves_the_names_and_handlers_of_logging_alone() -> None:
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    assert logging.getLogger("hivemind").handlers == []
