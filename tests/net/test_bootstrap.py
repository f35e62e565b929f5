"""Peers that lead others to each other: real ones, in an interpreter that has no PyTorch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from swarm import DEADLINE_S, POLL_S, ROOT, alive, descendants, environment, swarm

from peers.identity import Identity
from runtime.invite import format_invite, parse_invite

# What only those need who train, and hivemind's own list demands: the small image has none of it.
ABSENT = ("torch", "numpy", "scipy", "grpc", "yaml", "prefetch_generator", "safetensors", "segno")
SLOW = ("--inner-step-s", "0.2")


class Guide:
    """One ``atoll bootstrap``."""

    def __init__(self, home: Path, *arguments: str) -> None:
        """``home`` has its key, made if it is not there."""
        home.mkdir(exist_ok=True)
        key = home / "bootstrap.key"
        if not key.exists():
            Identity.generate().save(key)
        for name in ABSENT:
            (home / f"{name}.py").write_text(f'raise ImportError("no {name} here")\n')
        self.id = Identity.load(key).peer
        self._output = home / "output.log"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "runtime.cli", "bootstrap", *arguments),
                    *("--key", str(key), "--host", "127.0.0.1", "--port", "0"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=home,
                env={**environment(home), "PYTHONPATH": f"{home}:{ROOT}"},
                start_new_session=True,
            )

    def said(self, what: str) -> str:
        """The rest of the first line that begins with ``what``; AssertionError after the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            output = self._output.read_text()
            for line in output.splitlines(keepends=True):
                if line.startswith(what) and line.endswith("\n"):
                    return line.removeprefix(what).strip()
            assert self.process.poll() is None, output
            assert time.monotonic() < deadline, output
            time.sleep(POLL_S)

    @property
    def address(self) -> str:
        return self.said("address: ")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def guides() -> Iterator[list[Guide]]:
    """Those that a test starts; none is left behind."""
    started = list[Guide]()
    yield started
    for guide in started:
        guide.kill()


def test_an_invite_with_bootstrap_peers_alone_leads_to_the_run_whoever_of_it_and_of_them_is_gone(
    tmp_path: Path, guides: list[Guide]
) -> None:
    one = Guide(tmp_path / "guide-1")
    other = Guide(tmp_path / "guide-2", "--peers", one.address)
    guides += [one, other]
    with swarm(tmp_path) as made:
        flags = ("--bootstrap", f"{one.address},{other.address}")
        first, printed = made.start(outer_steps=1000, options=(*SLOW, *flags))
        invite = parse_invite(printed)
        assert invite.addresses[:2] == (one.address, other.address)
        one.kill()
        second = made.join("second", format_invite(replace(invite, addresses=(one.address, other.address))), *SLOW)
        second.wait_for("outer_step_committed", lambda event: set(event["members"]) == {first.id, second.id})
        first.kill()
        # Of the addresses in the invite one lives. This guide puts its own in front, and alone leads to who is left.
        third_guide = Guide(tmp_path / "guide-3", printed)
        guides.append(third_guide)
        newer = parse_invite(third_guide.said("invite: "))
        assert newer == replace(invite, addresses=(third_guide.address, *invite.addresses))
        third = made.join("third", format_invite(replace(newer, addresses=(third_guide.address,))), *SLOW)
        third.wait_for("outer_step_committed", lambda event: set(event["members"]) == {second.id, third.id})
        # What a bootstrap peer has not, a newcomer asks it for once, and takes it for no failure.
        assert not second.all("manifest_failed")
        assert not third.all("manifest_failed")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    guide = Guide(tmp_path / "guide")
    try:
        assert guide.address.startswith("/ip4/127.0.0.1/tcp/")
        children = descendants(guide.process.pid)
        assert children
        guide.process.send_signal(number)
        assert guide.process.wait(10) == exit_code
        assert not alive(children)
    finally:
        guide.kill()


def test_a_signal_before_it_is_ready_ends_it_as_well(tmp_path: Path) -> None:
    guide = Guide(tmp_path / "guide")
    try:
        deadline = time.monotonic() + DEADLINE_S
        # The first thing that takes long is libp2p's daemon.
        while not (children := descendants(guide.process.pid)):
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        guide.process.send_signal(signal.SIGTERM)
        assert guide.process.wait(20) == 0
        assert not alive(children)
    finally:
        guide.kill()


def test_that_nobody_reads_what_it_says_does_not_end_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from runtime.bootstrap import _say; _say('address: /ip4/...'); _say('invite: atoll:...')"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
