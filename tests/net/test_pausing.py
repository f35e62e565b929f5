"""Peers that pause: gone for the others, their work kept, back in the rounds when they may be. In real processes."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from swarm import DEADLINE_S, POLL_S, ROOT, Event, Peer, descendants, environment, swarm

from runtime.control import NotRunningError, ask
from runtime.disk import folder_bytes

# Phases of a fifth of a second.
SLOW = ("--inner-step-s", "0.05")


def say(peer: Peer, do: str, **change: Any) -> dict[str, Any]:
    return ask(peer.folder, {"do": do, **({"change": change} if change else {})})


def until(peer: Peer, doing: str) -> dict[str, Any]:
    """Its status, once it does that."""
    deadline, told = time.monotonic() + DEADLINE_S, dict[str, Any]()
    while told.get("doing") != doing:
        assert time.monotonic() < deadline, f"{told}\n{peer.story()}"
        time.sleep(POLL_S)
        # A process that has just begun has no socket yet.
        with suppress(NotRunningError):
            told = say(peer, "status")
    return told


def atoll(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=30)


def has(*peers: Peer) -> Any:
    return lambda event: {peer.id for peer in peers} <= set(event["members"])


def commits_since(peer: Peer, moment: float) -> list[Event]:
    return [event for event in peer.all("outer_step_committed") if event["time"] > moment]


def test_a_paused_peer_is_gone_for_the_others_and_comes_back_with_its_work(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=10_000, options=SLOW)
        second, third = made.join("second", invite, *SLOW), made.join("third", invite, *SLOW)
        second.wait_for("outer_step_committed", has(first, second, third))
        before = say(second, "status")
        assert (before["run"], before["healthy"], before["paused"]) == ("atoll", True, None)
        assert before["limits"]["threads"] == 1

        assert say(second, "pause")["paused"] == "as you said"
        assert first.wait_for("member_down", lambda event: event["member"] == second.id)["reason"] == "left: paused"
        paused = until(second, "paused")
        assert paused["healthy"]
        assert not descendants(second.process.pid), "p2pd has ended, and its ports are free"
        assert second.all("left")[-1]["reason"] == "paused"
        moment, at = time.time(), first.outer_step
        first.wait_for_step(at + 3)
        assert all(second.id not in event["members"] for event in commits_since(first, moment + 0.5))
        assert second.outer_step <= at + 1, "a paused peer does nothing"

        assert say(second, "resume")["paused"] is None
        second.wait_for("outer_step_committed", lambda event: event["time"] > moment and has(second)(event))
        after = say(second, "status")
        assert after["given_tokens"] > before["given_tokens"]
        assert len(second.output.split("invite: ")) == 2, "its invite is the same, and not printed again"

        # The same by the commands.
        told = atoll(tmp_path, "status", "--json", str(third.folder))
        assert told.returncode == 0
        assert json.loads(told.stdout)["peer"] == third.id
        assert atoll(tmp_path, "leave", str(third.folder)).returncode == 0
        assert third.wait_for_exit() == 0
        assert third.all("left")[-1]["reason"] == "told to leave"


def test_hours_memory_and_caps_hold_from_when_they_are_said(tmp_path: Path) -> None:
    later = datetime.now() + timedelta(hours=2)
    hours = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=10_000, options=SLOW)
        second = made.join("second", invite, *SLOW, "--hours", hours)
        told = until(second, "paused")
        assert told["paused"] == f"outside {hours}, again at {later:%H:%M}"
        assert told["run"] is None, "it has not even looked for the run"
        done = atoll(tmp_path, "limits", str(second.folder), "--hours", "off", "--up", "1MB/s", "--save")
        assert done.returncode == 0, done.stderr
        assert "up                1MB/s" in done.stdout
        assert (second.folder / "peer.toml").read_text().splitlines()[1:] == ['up = "1MB/s"', 'hours = "off"']
        second.wait_for("outer_step_committed", has(first, second))
        # The others plan with its cap: it rides on its Ready, and comes back with the commit.
        first.wait_for("outer_step_committed", lambda event: 0 < up_of(event, second) < 1_000_000)
        say(second, "limits", up="500kB/s")
        first.wait_for("outer_step_committed", lambda event: 0 < up_of(event, second) < 500_000)

        held = until(second, "training")["memory_bytes"]
        assert held > 100_000_000
        say(second, "limits", memory="100MB")
        assert "and the limit is 100 MB" in until(second, "paused")["paused"]
        assert say(second, "resume")["paused"] is None, "once more, if that is what the user wants"
        assert "and the limit is 100 MB" in until(second, "paused")["paused"]
        say(second, "limits", memory="off")
        moment = time.time()
        first.wait_for("outer_step_committed", lambda event: event["time"] > moment and has(first, second)(event))


def up_of(event: Event, peer: Peer) -> int:
    """What it said of its upload, bytes a second; 0 if it has said nothing."""
    if peer.id not in event["members"]:
        return 0
    figures = event["figures"][event["members"].index(peer.id)]
    return int(figures["up"]) if figures else 0


def test_a_folder_stays_within_its_limit_for_the_disk(tmp_path: Path) -> None:
    limit = 17_000_000
    with swarm(tmp_path) as made:
        peer, _ = made.start(outer_steps=10_000, options=("--disk", "17MB", "--keep", "50"))
        while len(list((peer.folder / "checkpoints").glob("0*"))) < 3 or peer.outer_step < 20:
            assert folder_bytes(peer.folder) <= limit
            assert peer.process.poll() is None, peer.story()
            time.sleep(POLL_S)
        assert not peer.all("checkpoint_failed"), "fewer are kept, and that is enough"
        # Something that stays, as a kept fork does.
        (peer.folder / "kept").write_bytes(bytes(6_000_000))
        say(peer, "limits", disk="10MB")
        peer.wait_to_say("could not be saved, what was saved before stands: the limit for the disk has no room")
        peer.wait_to_say("the event log has gaps from here on: the limit for the disk is reached")
        held = log_bytes(peer)
        time.sleep(0.5)
        assert log_bytes(peer) == held
        say(peer, "limits", disk="off")
        peer.wait_for_step(peer.outer_step + 1)


def log_bytes(peer: Peer) -> int:
    """Of what the peer itself writes as it goes on; that its output is in its folder too is the tests' doing."""
    return sum((peer.folder / name).stat().st_size for name in ("events.jsonl", "history.jsonl"))


def test_a_run_that_needs_more_than_is_lent_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('name = "large for that"\n')
    refused = atoll(tmp_path, "start", str(tmp_path / "run.toml"), "--host", "127.0.0.1", "--memory", "200MB")
    assert refused.returncode == 2, refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("atoll: this run needs ")
    assert "--memory is 200 MB" in last
