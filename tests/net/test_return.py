"""Who comes back, to whom, with what: real processes that all die, start again, meet and do not usurp."""

import shutil
import time
from pathlib import Path

from swarm import swarm

# Phases of two seconds: long enough to be killed in.
SLOW = ("--inner-step-s", "0.5")


def test_a_peer_that_starts_again_listens_where_it_did_and_meets_those_who_did_too(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=1000, quorum=1, options=SLOW)
        second = made.join("second", invite, *SLOW)
        second.wait_for_step(2)
        for peer in (first, second):
            peer.kill()
        # Nobody is left, and the invite's peer is among the dead: each knows the other from its own folder.
        one = made.join("second", invite, *SLOW)
        other = made.join("first", invite, *SLOW)
        for peer in (one, other):
            peer.wait_for("outer_step_committed", lambda event: set(event["members"]) == {first.id, second.id})
        assert (one.id, other.id) == (second.id, first.id)
        step = max(one.commits().keys() & other.commits().keys())
        assert one.commits()[step] == other.commits()[step]


def test_a_newcomer_comes_in_by_the_invite_of_a_joiner_when_the_first_peer_is_gone(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=1000, quorum=1, options=SLOW)
        second = made.join("second", invite, *SLOW)
        second.wait_for_step(1)
        first.kill()
        own = next(line for line in second.output.splitlines() if line.startswith("invite: "))
        assert first.id in own, "the address of the first invite is in it as well: that peer may come back"
        third = made.join("third", own, *SLOW)
        third.wait_for("outer_step_committed", lambda event: set(event["members"]) == {second.id, third.id})


def test_a_peer_without_an_outer_step_waits_says_so_and_begins_only_anew(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=1000, quorum=1, options=("--inner-step-s", "30"))
        fresh = made.join("fresh", invite, "--inner-step-s", "30")
        fresh.wait_for("joined")
        for peer in (first, fresh):
            peer.kill()
        waiting = made.join("fresh", invite, *SLOW)
        waiting.wait_to_say("only who has one can go on with it: waiting for a member (--anew begins the run again")
        time.sleep(3.0)
        assert not waiting.all("outer_step_committed")
        waiting.kill()
        anew = made.join("fresh", invite, *SLOW, "--anew")
        anew.wait_for_step(1)


def test_after_all_have_died_within_a_round_the_run_goes_on_from_the_heaviest_state_that_comes_back(
    tmp_path: Path,
) -> None:
    """The first to come has never been in it, the second has no state of it: they wait, and say so."""
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=1000, quorum=1, options=SLOW)
        second, third = (made.join(name, invite, *SLOW) for name in ("second", "third"))
        second.wait_for_step(2)
        third.wait_for_step(2)
        second.kill()
        third.kill()
        first.wait_for_step(second.outer_step + 2)
        deadline = time.monotonic() + 20.0
        while not first.is_in_round() and time.monotonic() < deadline:
            time.sleep(0.001)
        first.kill()
        # Read now: whoever comes back with its folder goes on with its log.
        died_at = first.outer_step
        shutil.rmtree(tmp_path / "third" / "checkpoints")
        fresh = made.join("fourth", invite, *SLOW)
        fresh.wait_to_say("waiting until one of its peers is back")
        without = made.join("third", invite, *SLOW)
        without.wait_to_say("only who has one can go on with it: waiting for a member")
        peers = [fresh, without, made.join("first", invite, *SLOW), made.join("second", invite, *SLOW)]
        ids = {peer.id for peer in peers}
        for peer in peers:
            together = peer.wait_for("outer_step_committed", lambda event: set(event["members"]) == ids)
            assert together["outer_step"] > died_at
        commits = [peer.commits() for peer in peers]
        shared = set.intersection(*(set(one) for one in commits))
        assert shared
        assert all(len({one[step] for one in commits}) == 1 for step in shared)
