"""Machines next to a live run: one that is fit, and one of another protocol version, which nobody has noticed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm import Peer, environment, swarm

from peers.identity import Identity
from peers.messages import PROTOCOL_VERSION

# As the other release would be.
PROGRAM = "import peers.messages as m; m.PROTOCOL_VERSION = {version}; from runtime.cli import main; main()"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peer, str]]:
    with swarm(tmp_path_factory.mktemp("live")) as made:
        peer, invite = made.start(outer_steps=1000, options=("--inner-step-s", "0.2"))
        peer.wait_for("outer_step_committed")
        yield peer, invite


def told(version: int, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(version=version), *arguments],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (
            PROTOCOL_VERSION - 1,
            f"speaks protocol {PROTOCOL_VERSION} and this Atoll {PROTOCOL_VERSION - 1}: its peers are newer",
        ),
        (PROTOCOL_VERSION + 1, "its peers are older, so install the release that they use"),
    ],
    ids=["older", "newer"],
)
def test_a_joiner_of_another_version_is_told_and_disturbs_nobody(
    tmp_path: Path, live: tuple[Peer, str], version: int, said: str
) -> None:
    peer, invite = live
    Identity.generate().save(tmp_path / "key")
    stranger = Identity.load(tmp_path / "key").peer
    done = told(version, tmp_path, "join", invite, "--key", "key", "--host", "127.0.0.1")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("atoll: ")
    assert said in last
    assert "Traceback" not in done.stderr
    # It left nothing that would stop it from joining with the right release.
    assert not list((tmp_path / "data").rglob("manifest"))
    after = peer.outer_step
    peer.wait_for_step(after + 2)
    assert not [event for event in peer.read() if event.get("member") == stranger]
    assert not peer.all("strike")


def test_a_machine_next_door_is_fit(tmp_path: Path, live: tuple[Peer, str]) -> None:
    """Before the other doctor: a member measures once in half a minute."""
    peer, invite = live
    done = told(PROTOCOL_VERSION, tmp_path, "doctor", invite, "--json", "--host", "127.0.0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    # What else this machine does with its memory, and where the tests are run from, is nothing of the run's.
    besides = ("memory", "packages")
    assert {check["verdict"] for name, check in checks.items() if name not in besides} == {"pass"}, checks
    assert "this model needs" in checks["disk"]["words"] or "take" in checks["disk"]["words"]
    assert "own address, 127.0.0.1" in checks["nat"]["words"]
    assert "Mbit/s up" in checks["rate"]["words"]
    # It was no member, and nobody has heard of it since.
    after = peer.outer_step
    peer.wait_for_step(after + 1)
    assert not peer.all("member_up")
    assert not peer.all("strike")


def test_the_doctor_says_so_too(tmp_path: Path, live: tuple[Peer, str]) -> None:
    _, invite = live
    done = told(PROTOCOL_VERSION + 1, tmp_path, "doctor", invite, "--json", "--host", "127.0.0.1")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert checks["run"]["verdict"] == "fail"
    assert f"speaks protocol {PROTOCOL_VERSION}" in checks["run"]["words"]
    assert "install the release" in checks["run"]["fix"]
