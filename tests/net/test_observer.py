"""A real observer on py-libp2p against real p2pds and hivemind's table, each in processes of their own.

The observer's process is this Python where it has py-libp2p, else ``$MONITOR_PYTHON`` or that of ``.venv-monitor``.
Every deadline is ten times what was measured, but for those that the observer is built for.
"""

import importlib.util
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from peers.identity import Identity

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RUN_ID = "5f" * 20
DEADLINE_S = 30.0

Line = dict[str, Any]


def monitor_python() -> str | None:
    if importlib.util.find_spec("libp2p") is not None:
        return sys.executable
    for path in (os.environ.get("MONITOR_PYTHON", ""), str(ROOT / ".venv-monitor" / "bin" / "python")):
        if path and os.access(path, os.X_OK):
            return path
    return None


PYTHON = monitor_python()
pytestmark = pytest.mark.skipif(PYTHON is None, reason="py-libp2p is not installed: make monitor")


class Program:
    """A process that says lines of JSON."""

    def __init__(self, python: str, *arguments: str) -> None:
        self.seen: list[Line] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            [python, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def next(self, timeout_s: float = DEADLINE_S) -> Line:
        """The next line, with the time at which it was read."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"silent for {timeout_s} s after {self.seen[-20:]}") from None
        assert line, f"ended after {self.seen[-20:]}"
        self.seen.append({**json.loads(line), "at": time.monotonic()})
        return self.seen[-1]

    def wait_for(
        self, kind: str, wanted: Callable[[Line], bool] = lambda line: True, timeout_s: float = DEADLINE_S
    ) -> Line:
        """The first line of this kind from now on that is ``wanted``."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self.next(max(0.0, deadline - time.monotonic()))
            if line["event"] == kind and wanted(line):
                return line

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.end_input()
        self._reader.join()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Stage:
    """The processes of one test, which end with it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack

    def _start(self, python: str, *arguments: str) -> Program:
        program = Program(python, *arguments)
        self._stack.callback(program.kill)
        return program

    def at_end(self, call: Callable[[], object]) -> None:
        self._stack.callback(call)

    def members(self, name: str, *options: str) -> tuple[Program, Line]:
        """A process of members, and who they are."""
        member = self._start(sys.executable, str(HERE / "member.py"), str(self._folder), name, RUN_ID, *options)
        return member, member.next()

    def watcher(self, *arguments: str, ready: bool = True) -> Program:
        assert PYTHON is not None
        watcher = self._start(PYTHON, str(HERE / "watcher.py"), RUN_ID, *arguments)
        if ready:
            assert watcher.next()["event"] == "Ready"
        return watcher

    def impostor(self, *arguments: str) -> Program:
        assert PYTHON is not None
        return self._start(PYTHON, str(HERE / "impostor.py"), *arguments)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack)


def follows(watcher: Program, peer: str, timeout_s: float = DEADLINE_S) -> Line:
    """A stream to ``peer`` is open and has brought a frame."""
    watcher.wait_for("Followed", lambda line: line["peer"] == peer, timeout_s)
    return watcher.wait_for("Frame", lambda line: line["peer"] == peer)


def let_it_look(watcher: Program) -> None:
    """For a second of frames: the observer looks for members as soon as it follows one."""
    for _ in range(10):
        watcher.wait_for("Frame")


def test_the_first_frame_comes_within_three_seconds_and_without_torch_or_hivemind(stage: Stage) -> None:
    _, member = stage.members("a")
    watcher = stage.watcher(*member["addresses"])
    frame = follows(watcher, member["peers"][0])
    assert frame["body"] == "welcome greeting 1"
    assert frame["at"] - watcher.seen[0]["at"] < 3.0
    assert watcher.seen[0]["heavy"] == []


def test_when_the_followed_member_is_killed_another_is_followed_with_a_new_greeting(stage: Stage) -> None:
    first, invited = stage.members("a")
    _, other = stage.members("b", "--bootstrap", invited["addresses"][0])
    watcher = stage.watcher(*invited["addresses"])
    follows(watcher, invited["peers"][0])
    let_it_look(watcher)
    first.kill()
    killed_at = time.monotonic()
    assert watcher.wait_for("LostMember")["peer"] == invited["peers"][0]
    frame = follows(watcher, other["peers"][0])
    assert frame["body"] == "welcome greeting 2"
    assert frame["at"] - killed_at < 3.0


def test_when_the_followed_member_is_frozen_another_is_followed_ten_seconds_later(stage: Stage) -> None:
    """Its p2pd lives on, and with it the connection."""
    first, invited = stage.members("a")
    _, other = stage.members("b", "--bootstrap", invited["addresses"][0])
    watcher = stage.watcher(*invited["addresses"])
    follows(watcher, invited["peers"][0])
    let_it_look(watcher)
    first.freeze()
    frozen_at = time.monotonic()
    lost = watcher.wait_for("LostMember")
    assert "silent for 10 s" in lost["reason"]
    assert 9.0 < lost["at"] - frozen_at < 14.0
    follows(watcher, other["peers"][0], 5.0)
    first.process.send_signal(signal.SIGCONT)


def test_members_are_found_through_peers_that_do_not_hold_their_records(stage: Stage) -> None:
    """Of eight members five hold the records. One that does not is in the invite, and knows where they are."""
    crowd, members = stage.members("a", "--members", "8")
    farthest = max(range(8), key=lambda number: members["distances"][number])
    watcher = stage.watcher(members["addresses"][farthest])
    follows(watcher, members["peers"][farthest])
    let_it_look(watcher)
    crowd.tell(f"close {farthest}")
    assert watcher.wait_for("LostMember")["peer"] == members["peers"][farthest]
    followed = watcher.wait_for("Followed")["peer"]
    assert followed in members["peers"]
    watcher.wait_for("Frame", lambda line: line["peer"] == followed)


def test_a_peer_of_the_invite_that_does_not_tell_is_asked_for_members(stage: Stage) -> None:
    _, invited = stage.members("a", "--serves", "nothing", "--hidden")
    _, other = stage.members("b", "--bootstrap", invited["addresses"][0])
    watcher = stage.watcher(*invited["addresses"])
    follows(watcher, other["peers"][0])


def test_lies_in_the_table_hide_no_member(stage: Stage) -> None:
    first, invited = stage.members("a", "--lies")
    _, other = stage.members("b", "--bootstrap", invited["addresses"][0])
    watcher = stage.watcher(*invited["addresses"])
    follows(watcher, invited["peers"][0])
    let_it_look(watcher)
    first.kill()
    follows(watcher, other["peers"][0])


def test_who_refuses_is_left_for_another(stage: Stage) -> None:
    _, refuses = stage.members("a", "--serves", "refuse")
    _, other = stage.members("b", "--bootstrap", refuses["addresses"][0])
    watcher = stage.watcher(*refuses["addresses"], *other["addresses"])
    follows(watcher, other["peers"][0])
    let_it_look(watcher)
    asked = [line["peer"] for line in watcher.seen if line["event"] == "Followed"]
    assert asked.count(refuses["peers"][0]) <= 1


def test_who_refuses_and_is_alone_is_asked_ever_more_rarely(stage: Stage) -> None:
    _, refuses = stage.members("a", "--serves", "refuse")
    watcher = stage.watcher(*refuses["addresses"])
    waits_s = []
    for _ in range(4):
        assert watcher.wait_for("Frame")["body"] == "refused"
        assert watcher.wait_for("LostMember")["reason"] == "end of stream"
        waits_s.append(watcher.wait_for("Nobody")["retry_s"])
    for wait_s, longest_s in zip(waits_s, (0.2, 0.4, 0.8, 1.6), strict=True):
        assert 0.75 * longest_s <= wait_s <= longest_s


def test_when_all_are_gone_it_waits_longer_and_longer_and_follows_who_comes_back(stage: Stage) -> None:
    member, invited = stage.members("a")
    address, peer = invited["addresses"][0], invited["peers"][0]
    watcher = stage.watcher(address)
    follows(watcher, peer)
    member.kill()
    watcher.wait_for("LostMember")
    waits_s = [watcher.wait_for("Nobody")["retry_s"] for _ in range(3)]
    assert waits_s == sorted(waits_s)
    assert "refused" in watcher.seen[-1]["reason"]
    # On its old port, with its old key.
    stage.members("a", "--listen", address.partition("/p2p/")[0])
    follows(watcher, peer, 15.0)


def test_another_peer_at_the_same_address_is_not_followed(stage: Stage) -> None:
    member, invited = stage.members("a")
    address, peer = invited["addresses"][0], invited["peers"][0]
    member.kill()
    _, other = stage.members("b", "--listen", address.partition("/p2p/")[0])
    assert other["addresses"][0].partition("/p2p/")[0] == address.partition("/p2p/")[0]
    watcher = stage.watcher(address)
    assert f"{peer[-6:]} another peer answers at {address}" in watcher.wait_for("Nobody")["reason"]
    watcher.wait_for("Nobody")
    assert all(line["event"] in ("Ready", "Nobody") for line in watcher.seen)


@pytest.mark.parametrize(
    ("security", "reason"),
    [
        ("plaintext", "protocol not supported: /noise"),
        ("noise", "has not the key of the peer that it says it is"),
    ],
)
def test_who_claims_to_be_a_member_without_having_its_key_is_not_followed(
    stage: Stage, security: str, reason: str
) -> None:
    victim = Identity.generate().peer
    said = stage.impostor(security, "--claims", victim).next()
    assert said["peer"] == victim
    watcher = stage.watcher(said["address"])
    assert reason in watcher.wait_for("Nobody")["reason"]
    watcher.wait_for("Nobody")
    assert all(line["event"] in ("Ready", "Nobody") for line in watcher.seen)


def test_the_same_program_under_its_own_name_is_followed(stage: Stage) -> None:
    said = stage.impostor("noise").next()
    follows(stage.watcher(said["address"]), said["peer"])


def test_a_frame_may_have_four_mebibytes_and_no_more(stage: Stage) -> None:
    _, boaster = stage.members("a", "--serves", "boast")
    watcher = stage.watcher(*boaster["addresses"])
    assert watcher.wait_for("Frame")["bytes"] == 1 << 22
    assert watcher.wait_for("LostMember")["reason"] == "frame of 4194305 bytes, limit is 4194304"


@pytest.mark.parametrize(
    "says",
    [b"", b"SSH-2.0-x\r\n", bytes(1 << 20), b"\xff\xff\xff\xff\x7f" + b"x" * (1 << 20)],
    ids=["nothing", "another protocol", "zeros", "a name without end"],
)
def test_who_does_not_speak_libp2p_costs_a_dial_and_no_memory(stage: Stage, says: bytes) -> None:
    """It goes on saying it for as long as it is listened to."""
    victim = Identity.generate().peer
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stranger = threading.Thread(target=repeat, args=(server, says, over))
        stranger.start()
        stage.at_end(stranger.join)
        stage.at_end(over.set)
        watcher = stage.watcher(f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{victim}")
        watcher.wait_for("Nobody", timeout_s=8.0)
        watcher.wait_for("Nobody", timeout_s=8.0)
        assert resident_bytes(watcher.process.pid) < 120e6
        watcher.end_input()
        left = watcher.wait_for("Left")
    assert (left["threads"], left["sockets"]) == ([], 0)


def test_a_member_that_floods_a_watcher_that_does_not_read_fills_no_memory(stage: Stage) -> None:
    _, flooder = stage.members("a", "--serves", "flood")
    watcher = stage.watcher(*flooder["addresses"], "--idle")
    watcher.wait_for("Frame")
    deadline = time.monotonic() + 4.0
    while time.monotonic() < deadline:
        assert resident_bytes(watcher.process.pid) < 200e6
        time.sleep(0.1)


@pytest.mark.parametrize("by", ["cancellation", "break"])
def test_leaving_ends_the_thread_and_closes_every_socket(stage: Stage, by: str) -> None:
    _, member = stage.members("a")
    watcher = stage.watcher(*member["addresses"], *(("--one",) if by == "break" else ()))
    follows(watcher, member["peers"][0])
    left_at = time.monotonic()
    if by == "cancellation":
        watcher.end_input()
    left = watcher.wait_for("Left")
    assert left["at"] - left_at < 2.0
    assert (left["threads"], left["sockets"]) == ([], 0)
    assert left["error"] == ("cancelled" if by == "cancellation" else "")


def test_leaving_while_nobody_answers_ends_the_thread_as_well(stage: Stage) -> None:
    _, member = stage.members("a")
    watcher = stage.watcher(f"/ip4/127.0.0.1/tcp/1/p2p/{member['peers'][0]}")
    watcher.wait_for("Nobody")
    watcher.end_input()
    left = watcher.wait_for("Left")
    assert (left["threads"], left["sockets"], left["error"]) == ([], 0, "cancelled")


def test_what_the_greeting_raises_reaches_the_caller(stage: Stage) -> None:
    _, invited = stage.members("a")
    watcher = stage.watcher(*invited["addresses"], "--greetings", "0")
    left = watcher.wait_for("Left")
    assert (left["threads"], left["sockets"], left["error"]) == ([], 0, "no more greetings")


def repeat(server: socket.socket, says: bytes, over: threading.Event) -> None:
    while not over.is_set():
        try:
            connection, _ = server.accept()
        except OSError:
            continue
        with connection, suppress(OSError):
            connection.setblocking(True)
            while says:
                connection.sendall(says)
            while connection.recv(1 << 16):
                pass


def resident_bytes(pid: int) -> int:
    listing = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listing.stdout) * 1024
