"""Whoever dies, peer, p2pd or the watchdog between them: nothing is left behind, and the others are told at once."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from p2pd_pair import echo, two_peers

from peers.errors import NetworkError, StreamClosed, Unreachable
from peers.identity import Identity
from peers.p2pd import P2pdTransport

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
