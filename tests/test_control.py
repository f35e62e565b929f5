"""The local socket: who is answered, what anyone may send, and where it lies."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from runtime.commands.control import limits, pause
from runtime.control import (
    ANSWER_S,
    MOST_CLIENTS,
    MOST_LINE_BYTES,
    SOCKET,
    NoAnswerError,
    NotRunningError,
    ask,
    is_running,
    may_ask,
    serve_control,
)
from runtime.errors import ConfigError
from runtime.running import find_running, note_running, running_folders


def echo(request: Any) -> dict[str, object]:
    if request.get("do") == "fail":
        raise ConfigError("no such thing")
    return {"heard": request}


def while_served(folder: Path, use: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            assert await serve_control(stack, folder, echo)
            await use()

    uvloop.run(main())


async def answers(folder: Path, *lines: bytes) -> list[Any]:
    """To these, each sent as it is, from one connection."""
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET)
    try:
        found = []
        for line in lines:
            writer.write(line)
            found.append(json.loads(await reader.readline()))
        return found
    finally:
        writer.close()


def test_a_request_is_answered_and_one_connection_may_have_several(tmp_path: Path) -> None:
    async def use() -> None:
        assert await asyncio.to_thread(ask, tmp_path, {"do": "status"}) == {"heard": {"do": "status"}}
        assert await answers(tmp_path, b'{"do": 1}\n', b"{}\n") == [{"heard": {"do": 1}}, {"heard": {}}]
        with pytest.raises(ConfigError, match="says: no such thing"):
            await asyncio.to_thread(ask, tmp_path, {"do": "fail"})

    while_served(tmp_path, use)
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(NotRunningError):
        ask(tmp_path, {"do": "status"})


@pytest.mark.parametrize("line", [b"\n", b"status\n", b"[]\n", b'"x"\n', b"\xff\xfe\n", b"[" * 60_000 + b"\n", b"{\n"])
def test_garbage_is_told_to_be_garbage_and_the_next_request_is_answered(tmp_path: Path, line: bytes) -> None:
    async def use() -> None:
        refused, answered = await answers(tmp_path, line, b"{}\n")
        assert "JSON object" in refused["error"]
        assert answered == {"heard": {}}

    while_served(tmp_path, use)


def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def use() -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET)
        writer.write(b"x" * (3 * MOST_LINE_BYTES))
        assert "at most" in json.loads(await reader.readline())["error"]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()

    while_served(tmp_path, use)


def test_many_may_ask_at_once_but_not_any_number(tmp_path: Path) -> None:
    async def use() -> None:
        held = [await asyncio.open_unix_connection(tmp_path / SOCKET) for _ in range(MOST_CLIENTS)]
        for reader, writer in held:
            writer.write(b"{}\n")
            assert json.loads(await reader.readline()) == {"heard": {}}
        reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET)
        assert "too many" in json.loads(await reader.readline())["error"]
        for _, one in [*held, (reader, writer)]:
            one.close()
        await asyncio.sleep(0.1)
        assert await answers(tmp_path, b"{}\n") == [{"heard": {}}]

    while_served(tmp_path, use)


def test_others_are_not_answered(tmp_path: Path) -> None:
    assert may_ask(1000, own=1000)
    assert may_ask(0, own=1000)
    assert may_ask(None, own=1000), "where the system does not say, the mode of the socket keeps them out"
    assert not may_ask(1001, own=1000)

    async def use() -> None:
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600

    while_served(tmp_path, use)


CONNECTS = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    print("kept out")
else:
    print(connection.recv(1000).decode())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user: sudo .venv/bin/python -m pytest")
def test_a_process_of_another_user_is_kept_out_twice() -> None:
    def as_nobody() -> str:
        command = [sys.executable, "-c", CONNECTS, str(folder / SOCKET)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    async def use() -> None:
        assert "kept out" in await asyncio.to_thread(as_nobody)
        # And were its mode another one:
        (folder / SOCKET).chmod(0o777)
        assert "another user's" in await asyncio.to_thread(as_nobody)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        while_served(folder, use)


def test_what_a_killed_peer_has_left_is_no_peer_and_in_nobodys_way(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / SOCKET))
    left.close()
    assert (tmp_path / SOCKET).is_socket()
    assert not is_running(tmp_path)

    async def use() -> None:
        assert await answers(tmp_path, b"{}\n") == [{"heard": {}}]

    while_served(tmp_path, use)


def test_a_name_that_is_too_long_leads_elsewhere_and_nothing_is_left_there(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("down" * 20)
    folder.mkdir(parents=True)
    places: list[Path] = []

    async def use() -> None:
        places.append((folder / SOCKET).readlink())
        assert stat.S_IMODE(places[0].parent.stat().st_mode) == 0o700
        assert await asyncio.to_thread(ask, folder, {}) == {"heard": {}}

    while_served(folder, use)
    assert not places[0].parent.exists()
    assert not os.path.lexists(folder / SOCKET)


@pytest.mark.parametrize("is_long", ["target", "link"])
def test_a_folder_is_the_same_by_the_name_of_a_link_and_by_its_own(tmp_path: Path, is_long: str) -> None:
    long, short = tmp_path / ("deep" * 20) / ("down" * 20), tmp_path / "short"
    folder, link = (long, short) if is_long == "target" else (short, long)
    folder.mkdir(parents=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)

    async def use() -> None:
        for name in (link, folder):
            assert await asyncio.to_thread(is_running, name)
            assert await asyncio.to_thread(ask, name, {}) == {"heard": {}}

    for served in (link, folder):
        while_served(served, use)
        assert not os.path.lexists(folder / SOCKET)


def test_where_no_link_can_be_made_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("deep" * 20) / ("down" * 20)
    places = tmp_path / "t"
    places.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            # A folder that is not there takes no link, root's neither.
            assert not await serve_control(stack, folder, echo)

    uvloop.run(main())
    assert not list(places.iterdir())


def test_who_hangs_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ANSWER_S <= 5
    monkeypatch.setattr("runtime.control.ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / SOCKET))
        hung.listen()
        with pytest.raises(NoAnswerError, match="no answer"):
            ask(tmp_path, {})
        assert is_running(tmp_path), "it is there all the same"


def test_a_pause_is_told_once_the_peer_has_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doing = ["paused", "pausing", "pausing"]

    def answer(request: Any) -> dict[str, object]:
        return {"doing": doing.pop(), "paused": "as you said"}

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await serve_control(stack, tmp_path, answer)
            assert await asyncio.to_thread(pause, str(tmp_path)) == 0

    uvloop.run(main())
    assert not doing
    assert capsys.readouterr().out == "paused: as you said; atoll resume lets it go on\n"


def test_a_saved_limit_that_the_command_line_will_override_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--up", "2MB/s", "--memory=4GB", "--no-pause-on-battery", "--down", "9MB/s")

    async def main(pid: int, save: bool) -> None:
        async with AsyncExitStack() as stack:
            await serve_control(stack, tmp_path, lambda request: {"pid": pid, "limits": {}})
            changes: dict[str, Any] = {"up": "1MB/s", "memory": "3GB", "disk": "10GB", "pause_on_battery": True}
            assert await asyncio.to_thread(limits, str(tmp_path), **changes, save=save) == 0

    with subprocess.Popen([sys.executable, "-c", "input()", *flags], stdin=subprocess.PIPE) as peer:
        uvloop.run(main(peer.pid, save=True))
        saved, first = capsys.readouterr().err.splitlines()
        assert saved == "atoll: saved for later starts: disk, memory, pause-on-battery, up"
        assert "was started with --up, --memory, --no-pause-on-battery, which comes before what is saved" in first
        uvloop.run(main(peer.pid, save=False))
        assert capsys.readouterr().err == ""
        assert peer.stdin is not None
        peer.stdin.write(b"\n")


def test_the_only_running_peer_is_meant_unless_there_are_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(ConfigError, match="no peer of yours runs"):
        find_running(None)
    listening = []
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(tmp_path / name / SOCKET))
        one.listen()
        listening.append((one, note_running(tmp_path / name)))
        if name == "ann":
            assert find_running(None) == tmp_path / "ann"
    with pytest.raises(ConfigError, match="2 of your peers run here"):
        find_running(None)
    assert find_running(str(tmp_path / "bob")) == tmp_path / "bob"
    with pytest.raises(ConfigError, match="no peer of yours runs for 'cat'"):
        find_running("cat")
    # One ends without a word, the other as it should.
    listening[0][0].close()
    assert running_folders() == [tmp_path / "bob"]
    assert len(list((tmp_path / "data" / "atoll" / "running").iterdir())) == 1, "the note is cleared away"
    listening[1][1]()
    listening[1][0].close()
    assert running_folders() == []
