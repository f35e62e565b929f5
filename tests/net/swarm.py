"""Peers as processes of their own: start them, read their event logs, do things to them, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.identity import Identity
from runtime.rotation import Tail

ROOT = Path(__file__).parents[2]
# Ten times what an idle machine takes: the tests share two cores with others.
DEADLINE_S = 40.0
POLL_S = 0.02

Event = dict[str, Any]

RUN_FILE = """
[model]
preset = "toy"
[data]
source = "files"
[inner]
steps = {inner_steps}
batch = 4
warmup_steps = 4
[outer]
steps = {outer_steps}
[averaging]
quorum = {quorum}
"""


class Peer:
    """One ``atoll start`` or ``atoll join``; a folder that exists already is gone on with, key included.

    Args: prefix runs a command on a host of its own.
    """

    def __init__(self, folder: Path, *arguments: str, prefix: Sequence[str] = ()) -> None:
        folder.mkdir(exist_ok=True)
        key = folder / "identity.key"
        if not key.exists():
            Identity.generate().save(key)
        self.id = Identity.load(key).peer
        self.folder = folder
        self.events: list[Event] = []
        """Of this process; what an earlier one has logged in the same folder is left out."""
        self._tail = Tail(folder / "events.jsonl")
        self._tail.read()
        self.started = time.monotonic()
        with (folder / "output.log").open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "runtime.cli", *arguments, "--folder", str(folder), "--key", str(key)),
                    *("--data", str(folder.parent / "text.txt"), "--threads", "1"),
                    *("--host", "0.0.0.0" if prefix else "127.0.0.1"),
                    "--exit-with-stdin",
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment(folder.parent),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text("utf-8", "replace")

    def read(self) -> list[Event]:
        """All events so far."""
        self.events += map(json.loads, self._tail.read().splitlines())
        return self.events

    def all(self, kind: str) -> list[Event]:
        return [event for event in self.read() if event["event"] == kind]

    def wait_for(self, kind: str, wanted: Callable[[Event], bool] = lambda event: True) -> Event:
        """The first event of this kind that is ``wanted``, past ones included; AssertionError after the deadline."""
        seen = 0
        deadline = time.monotonic() + DEADLINE_S
        while True:
            ended = self.process.poll() is not None
            events = self.read()
            for event in events[seen:]:
                if event["event"] == kind and wanted(event):
                    return event
            seen = len(events)
            assert not ended, f"exit code {self.process.returncode} before {kind}\n{self.story()}"
            assert time.monotonic() < deadline, f"no {kind} in {DEADLINE_S:.0f} s\n{self.story()}"
            time.sleep(POLL_S)

    def wait_for_step(self, outer_step: int) -> Event:
        return self.wait_for("outer_step_committed", lambda event: event["outer_step"] >= outer_step)

    def wait_to_say(self, words: str) -> None:
        """Until the words are in its output; AssertionError after the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in self.output:
            assert time.monotonic() < deadline, self.story()
            time.sleep(POLL_S)

    def wait_for_exit(self, timeout_s: float = DEADLINE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {timeout_s:.1f} s\n{self.story()}") from None

    def commits(self) -> dict[int, tuple[str, str]]:
        """Outer step -> hash of the anchor and lineage."""
        return {
            event["outer_step"]: (event["anchor_sha256"], event["lineage"])
            for event in self.all("outer_step_committed")
        }

    @property
    def outer_step(self) -> int:
        return max(
            (event["outer_step"] for event in self.read() if event["event"] == "outer_step_committed"), default=0
        )

    def is_in_round(self, as_leader: bool = False) -> bool:
        """Whether the last thing that it has logged about rounds is the beginning of one."""
        for event in reversed(self.read()):
            if event["event"] in ("round_began", "outer_step_committed"):
                return event["event"] == "round_began" and (not as_leader or event["leader"] == self.id)
        return False

    def freeze(self) -> None:
        """SIGSTOP, and wait until every thread stands still: only then is what it has logged all it ever will."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def story(self) -> str:
        last = "\n".join(json.dumps(event)[:300] for event in self.read()[-40:])
        return f"--- {self.folder.name} {self.id}\n{self.output[-3000:]}\n{last}"


class Swarm:
    def __init__(self, folder: Path) -> None:
        self.peers: list[Peer] = []
        self._folder = folder

    def start(
        self,
        outer_steps: int,
        quorum: int = 1,
        inner_steps: int = 4,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> tuple[Peer, str]:
        """The first peer and its invite."""
        write_text(self._folder)
        run_file = self._folder / "run.toml"
        run_file.write_text(RUN_FILE.format(inner_steps=inner_steps, outer_steps=outer_steps, quorum=quorum))
        peer = self._add(Peer(self._folder / "first", "start", str(run_file), *options, prefix=prefix))
        return peer, read_invite(peer)

    def join(self, name: str, invite: str, *options: str, prefix: Sequence[str] = ()) -> Peer:
        return self._add(Peer(self._folder / name, "join", invite, *options, prefix=prefix))

    def _add(self, peer: Peer) -> Peer:
        self.peers.append(peer)
        return peer

    def story(self) -> str:
        return "\n".join(peer.story() for peer in self.peers)


@contextmanager
def swarm(folder: Path) -> Iterator[Swarm]:
    """Whatever happens inside, no process is left behind, nor any process of such a process."""
    made = Swarm(folder)
    try:
        yield made
    finally:
        alive = [peer for peer in made.peers if peer.process.poll() is None]
        left = [pid for peer in alive for pid in descendants(peer.process.pid)]
        for peer in made.peers:
            peer.process.kill()
            peer.process.wait()
            assert peer.process.stdin is not None
            peer.process.stdin.close()
        wait_until_gone(left, 2.0)


def read_invite(peer: Peer) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while "invite: " not in peer.output or not peer.output.endswith("\n"):
        assert peer.process.poll() is None, peer.story()
        assert time.monotonic() < deadline, peer.story()
        time.sleep(POLL_S)
    (line,) = (line for line in peer.output.splitlines() if line.startswith("invite: "))
    return line.removeprefix("invite: ")


def environment(home: Path) -> dict[str, str]:
    own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data")}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def write_text(folder: Path) -> None:
    """64 KiB to train on."""
    sentences = (
        f"Sentence {number} has {number % 7} of the {number * number} words in it.\n" for number in range(2000)
    )
    (folder / "text.txt").write_text("".join(sentences))


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, zombies left out. To be asked before ``pid`` ends: orphans change parents."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    found = [pid]
    for one in found:
        found += [int(child) for child, parent, state in rows if int(parent) == one and not state.startswith("Z")]
    return found[1:]


def alive(pids: Sequence[int]) -> list[int]:
    """Those of ``pids`` that still run; nobody may have reaped the others yet."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    running = {int(pid) for pid, state in (line.split() for line in listing.splitlines()) if not state.startswith("Z")}
    return [pid for pid in pids if pid in running]


def wait_until_gone(pids: Sequence[int], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while left := alive(pids):
        assert time.monotonic() < deadline, f"processes {left} are still there after {timeout_s} s"
        time.sleep(POLL_S)
