"""A peer that ends and starts again goes on from its own disk as if it had never been away."""

import shutil
import signal
import time
from pathlib import Path

from swarm import Peer, Swarm, swarm

from runtime.checkpoints import CHECKPOINTS
from runtime.control import ask
from runtime.log import commits, read_log

STEPS = 8
# Phases of a fifth of a second: long enough to be ended in.
SLOW = ("--inner-step-s", "0.05")


def anchors(peer: Peer) -> dict[int, set[str]]:
    """By outer step, the hashes of the anchor in all of the log, of earlier processes as well."""
    found: dict[int, set[str]] = {}
    for event in commits(read_log(peer.folder / "events.jsonl")):
        found.setdefault(event["outer_step"], set()).add(event["anchor_sha256"])
    return found


def start(made: Swarm, until: int) -> Peer:
    peer, _ = made.start(outer_steps=STEPS, options=SLOW)
    peer.wait_for_step(until)
    return peer


def test_a_lone_peer_that_was_stopped_paused_and_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    with swarm(whole) as made:
        peer = start(made, STEPS)
        assert peer.wait_for_exit() == 0
        expected = anchors(peer)
    (parts / "first").mkdir()
    # What a peer draws from its data follows from its key.
    shutil.copy(whole / "first" / "identity.key", parts / "first" / "identity.key")
    with swarm(parts) as made:
        peer = start(made, 2)
        time.sleep(0.12)
        peer.process.send_signal(signal.SIGINT)
        assert peer.wait_for_exit() == 130
        within = [path.name for path in (peer.folder / CHECKPOINTS).glob("*.0000[1-3]-*")]
        assert within, "it was stopped within a phase, and has kept that"
        peer = start(made, 4)
        time.sleep(0.12)
        ask(peer.folder, {"do": "pause"})
        while ask(peer.folder, {"do": "status"})["doing"] != "paused":
            assert peer.process.poll() is None, peer.story()
            time.sleep(0.02)
        ask(peer.folder, {"do": "resume"})
        peer.wait_for_step(6)
        time.sleep(0.1)
        peer.kill()
        peer = start(made, STEPS)
        assert peer.wait_for_exit() == 0
        assert anchors(peer) == expected
        assert set(expected) == set(range(1, STEPS + 1))
        assert all(len(hashes) == 1 for hashes in expected.values())


def test_a_torn_checkpoint_is_told_and_the_one_before_is_used(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        peer = start(made, 3)
        peer.process.send_signal(signal.SIGTERM)
        assert peer.wait_for_exit() == 0
        newest = sorted((peer.folder / CHECKPOINTS).glob("0*"))[-1]
        file = newest / "state.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        peer = start(made, STEPS)
        assert peer.wait_for("checkpoint_torn")["path"] == f"{CHECKPOINTS}/{newest.name}"
        assert "is set aside" in peer.output
        assert peer.all("outer_step_committed")[0]["outer_step"] > 1, "it has not begun again"


def test_a_lone_peer_whose_checkpoints_are_all_torn_begins_again_only_if_it_is_told_to(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        peer = start(made, 2)
        peer.process.send_signal(signal.SIGTERM)
        assert peer.wait_for_exit() == 0
        for checkpoint in (peer.folder / CHECKPOINTS).glob("0*"):
            (checkpoint / "state.safetensors").write_bytes(b"torn")
        # The second time there are none but those that were set aside.
        for _ in range(2):
            peer, _ = made.start(outer_steps=STEPS, options=SLOW)
            peer.wait_to_say("(--anew begins the run again from its first weights)")
            peer.process.send_signal(signal.SIGTERM)
            assert peer.wait_for_exit() == 0
            assert not peer.all("outer_step_committed"), made.story()
        peer, _ = made.start(outer_steps=STEPS, options=(*SLOW, "--anew"))
        assert peer.wait_for_step(1)["outer_step"] == 1
