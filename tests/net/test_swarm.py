"""Whole peers: processes of the real command line, on real sockets, judged by their event logs."""

import signal
import time
from pathlib import Path

import pytest
from swarm import DEADLINE_S, Event, Peer, alive, descendants, swarm, wait_until_gone

# What `atoll` promises of Ctrl-C and SIGTERM.
GOODBYE_S = 5.0
# After SIGKILL of a peer, for p2pd and its watchdog.
ORPHANS_S = 2.0
# A round takes some tens of milliseconds: who wants to hit the middle of one has to look this often.
HUNT_POLL_S = 0.002


def catch_in_round(candidates: list[Peer], as_leader: bool) -> Peer:
    """Freeze one of ``candidates`` in the middle of a round, which it leads or, unless ``as_leader``, does not."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        for peer in candidates:
            if not peer.is_in_round(as_leader):
                continue
            peer.freeze()
            if peer.is_in_round(as_leader):
                return peer
            peer.thaw()
        assert time.monotonic() < deadline, "\n".join(peer.story() for peer in candidates)
        time.sleep(HUNT_POLL_S)


def assert_equal_steps(peers: list[Peer], first: int, last: int) -> None:
    """Every one of ``peers`` has committed every outer step from ``first`` to ``last``, with one hash and lineage."""
    for step in range(first, last + 1):
        committed = {peer.folder.name: peer.commits().get(step) for peer in peers}
        assert None not in committed.values(), f"outer step {step}: {committed}"
        assert len(set(committed.values())) == 1, f"outer step {step}: {committed}"


def test_two_peers_commit_the_same_bytes_in_every_outer_step(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=12, quorum=2)
        second = made.join("second", invite)
        assert [peer.wait_for_exit() for peer in made.peers] == [0, 0], made.story()
        assert_equal_steps([first, second], 1, 12)
        for event in first.all("outer_step_committed"):
            assert event["members"] == sorted([first.id, second.id], key=event["members"].index)
        assert [event["event"] for event in second.all("joined")] == ["joined"]
        assert not any(peer.all("strike") for peer in made.peers), made.story()


@pytest.mark.parametrize(("n_peers", "leader"), [(4, False), (3, True)])
def test_the_survivors_of_a_kill_in_a_round_commit_every_later_step(tmp_path: Path, n_peers: int, leader: bool) -> None:
    last = 80
    with swarm(tmp_path) as made:
        _, invite = made.start(outer_steps=last, quorum=n_peers - 1)
        joiners = [made.join(f"joiner-{number}", invite) for number in range(1, n_peers)]
        for joiner in joiners:
            joiner.wait_for("joined")
        orphans = {peer.id: descendants(peer.process.pid) for peer in made.peers}
        # The leader is whoever hash order says, the first peer included.
        victim = catch_in_round(made.peers if leader else joiners[-1:], leader)
        began = victim.all("round_began")[-1]
        assert len(orphans[victim.id]) == 2
        victim.kill()
        wait_until_gone(orphans[victim.id], ORPHANS_S)
        survivors = [peer for peer in made.peers if peer is not victim]
        assert [peer.wait_for_exit() for peer in survivors] == [0] * len(survivors), made.story()
        assert_equal_steps(survivors, began["outer_step"], last)
        # The step whose round it was in may be the last that has the victim's contribution.
        for event in survivors[0].all("outer_step_committed"):
            assert event["outer_step"] <= began["outer_step"] or victim.id not in event["members"]


def takes_part(peer: Peer, other: Peer, after: int) -> Event:
    """The first commit after an outer step in which ``peer`` and ``other`` saw a contribution of ``other``."""
    event = peer.wait_for(
        "outer_step_committed", lambda event: event["outer_step"] > after and other.id in event["members"]
    )
    other.wait_for_step(event["outer_step"])
    return event


def test_a_late_joiner_downloads_the_state_and_takes_part_with_equal_bytes(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=100_000)
        first.wait_for_step(5)
        late = made.join("late", invite)
        joined = late.wait_for("joined")["outer_step"]
        assert joined >= 5
        assert late.all("state_downloaded")
        together = takes_part(first, late, joined)["outer_step"]
        first.wait_for_step(together + 10)
        late.wait_for_step(together + 10)
        assert_equal_steps(made.peers, joined + 1, together + 10)
        for peer in made.peers:
            peer.process.terminate()
        assert [peer.wait_for_exit(GOODBYE_S) for peer in made.peers] == [0, 0], made.story()


def test_whoever_is_told_to_end_says_goodbye_and_leaves_nothing(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=100_000)
        second, third = made.join("second", invite), made.join("third", invite)
        for peer in (second, third):
            takes_part(first, peer, 0)
        for leaver, number, exit_code in ((second, signal.SIGINT, 130), (first, signal.SIGTERM, 0)):
            children = descendants(leaver.process.pid)
            assert len(children) == 2
            leaver.process.send_signal(number)
            assert leaver.wait_for_exit(GOODBYE_S) == exit_code, leaver.story()
            assert alive(children) == []
            assert leaver.read()[-1]["event"] == "left", leaver.story()
            down = third.wait_for("member_down", lambda event, leaver=leaver: event["member"] == leaver.id)  # type: ignore[misc]
            assert down["reason"].startswith("left"), down
            assert "Traceback" not in leaver.output
        third.wait_for_step(third.outer_step + 3)
        # Nobody calls back who has said goodbye.
        returned = [event for event in third.read() if event["event"] == "member_up" and event["time"] > down["time"]]
        assert returned == []
        third.process.send_signal(signal.SIGHUP)
        assert third.wait_for_exit(GOODBYE_S) == 0, third.story()
        assert third.read()[-1]["reason"] == "its terminal was closed", third.story()


def test_a_killed_peer_that_comes_back_with_its_folder_takes_part_again(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=100_000)
        before = made.join("second", invite)
        takes_part(first, before, 0)
        before.kill()
        first.wait_for("member_down", lambda event: event["member"] == before.id)
        after = made.join("second", invite)
        assert after.id == before.id
        joined = after.wait_for("joined")["outer_step"]
        assert joined > before.outer_step
        together = takes_part(first, after, joined)["outer_step"]
        assert_equal_steps([first, after], joined + 1, together)


def test_an_opener_that_starts_again_joins_those_who_went_on_without_it(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        before, invite = made.start(outer_steps=100_000)
        second = made.join("second", invite)
        takes_part(before, second, 0)
        before.kill()
        second.wait_for("member_down", lambda event: event["member"] == before.id)
        second.wait_for_step(second.outer_step + 3)
        after, _ = made.start(outer_steps=100_000)
        joined = after.wait_for("joined")["outer_step"]
        assert joined > before.outer_step
        together = takes_part(second, after, joined)["outer_step"]
        assert_equal_steps([second, after], joined + 1, together)


def test_an_auxiliary_peer_reduces_for_the_others_and_is_with_them_to_the_end(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=12, quorum=2, options=("--inner-step-s", "0.2"))
        auxiliary = made.join("auxiliary", invite, "--auxiliary", "--up", "50Mbit/s", "--down", "50Mbit/s")
        auxiliary.wait_for("joined")
        other = made.join("other", invite, "--inner-step-s", "0.2")
        both = {first.id, other.id}
        reduced = auxiliary.wait_for(
            "round_began", lambda event: {*both, auxiliary.id} == set(event["members"]) and event["outer_step"] < 12
        )
        assert auxiliary.id in reduced["reducers"]
        step = reduced["outer_step"]
        committed = auxiliary.wait_for("outer_step_committed", lambda event: event["outer_step"] == step)
        assert set(committed["members"]) == both, "who only reduces contributes nothing"
        assert committed["live"] == 2
        for peer in (first, auxiliary, other):
            assert peer.wait_for_exit() == 0
        assert first.commits()[12] == auxiliary.commits()[12] == other.commits()[12]
