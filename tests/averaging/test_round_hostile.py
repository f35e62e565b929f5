"""What a member that follows no rules can say, and what comes of it: nothing."""

from dataclasses import replace
from typing import Any

import pytest
from lone_round import NOW, PEERS, kinds, order, plan_of, ready_of, says, seated
from round_table import N_ELEMENTS, ROOT, sha, weight_of

from peers.membership import Down
from runtime.averaging import events
from runtime.averaging.messages import Accepted, Commit, Descriptor, Ready

WRONG_BEGINS: list[dict[str, Any]] = [
    {"lineage": sha(1)},
    {"state": sha(1)},
    {"outer_step": 1},
    {"codec": "float32"},
    {"run_id": "6" * 40},
    {"bounds": (0, 4096, 8192, N_ELEMENTS + 1)},
    {"bounds": (0, 4096, 8191, N_ELEMENTS)},
    {"bounds": (0, 8192, 4096, N_ELEMENTS)},
    {"bounds": (4096, 8192, 12288, N_ELEMENTS)},
    {"bounds": (0, 4096, N_ELEMENTS)},
    {"reducers": (0, 1, 3)},
    {"reducers": (0, 1)},
    {"voters": (0, 1, 3)},
    {"voters": (1, 0)},
    {"settled": (b"", b"", b"x")},
    {"settled": (b"", b"")},
    {"members": tuple(reversed(plan_of("peer-a", PEERS[:3]).members))},
]


@pytest.mark.parametrize("wrong", WRONG_BEGINS, ids=str)
def test_a_begin_that_does_not_fit_is_never_followed(wrong: dict[str, Any]) -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    actions = says(machine, leader, plan_of(leader, PEERS[:3], **wrong))
    assert kinds(actions) <= {events.Strike, events.Report}
    assert machine.descriptor is None


def test_a_plan_with_fewer_contributions_than_the_quorum_is_refused_before_anything_is_reduced() -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own], quorum=2)
    assert kinds(says(machine, leader, plan_of(leader, [own]))) == {events.Strike}
    assert events.Follow in kinds(says(machine, leader, plan_of(leader, sorted([leader, own]))))


def test_under_a_weight_that_this_peer_never_claimed_its_share_is_not_sent() -> None:
    # Nor is it a lie: before this peer was started anew it may have claimed that.
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    members = tuple(
        replace(entry, weight=entry.weight + (entry.peer == own)) for entry in plan_of(leader, PEERS[:3]).members
    )
    assert kinds(says(machine, leader, plan_of(leader, PEERS[:3], members=members))) == {events.Follow}


@pytest.mark.parametrize("wrong", [one for one in WRONG_BEGINS if "run_id" not in one], ids=str)
def test_a_commit_that_does_not_fit_is_never_applied(wrong: dict[str, Any]) -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    says(machine, leader, plan_of(leader, PEERS[:3]))
    commit = Commit(plan_of(leader, PEERS[:3], **wrong), (sha(1), sha(2), sha(3)))
    # From another state than this peer's, it may be this one's that is wrong: what others have is looked at.
    looks = {events.Resync} if "state" in wrong else set()
    assert kinds(says(machine, leader, commit)) <= {events.Strike, events.Report, *looks}
    assert machine.pending_commit is None


def test_a_commit_from_another_state_than_most_have_said_that_they_have_moves_nobody() -> None:
    leader, own, last = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    for peer in (leader, last):
        says(machine, peer, ready_of(peer))
    wrong = next(one for one in WRONG_BEGINS if "state" in one)
    commit = Commit(plan_of(leader, PEERS[:3], **wrong), (sha(1), sha(2), sha(3)))
    assert kinds(says(machine, leader, commit)) <= {events.Report}
    assert machine.pending_commit is None


def test_a_commit_with_too_few_digests_is_never_applied() -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    assert kinds(says(machine, leader, Commit(plan_of(leader, PEERS[:3]), (sha(1), sha(2))))) == {events.Strike}


HOSTILE = plan_of("peer-b", PEERS[:3])
BROKEN = [
    replace(HOSTILE, reducers=(200, 201, 202)),
    replace(HOSTILE, voters=(255,)),
    replace(HOSTILE, settled=(b"",)),
    replace(HOSTILE, bounds=(0, 1)),
    replace(HOSTILE, members=HOSTILE.members[:1]),
    replace(HOSTILE, outer_step=7),
    replace(HOSTILE, lineage=sha(7)),
    replace(HOSTILE, codec="none"),
    replace(HOSTILE, run_id="7" * 40),
    HOSTILE,
]


@pytest.mark.parametrize("n_digests", [None, 1, 3, 9])
@pytest.mark.parametrize("broken", BROKEN, ids=[str(index) for index in range(len(BROKEN))])
def test_what_a_hostile_ready_says_of_the_past_never_breaks_a_leader(broken: Descriptor, n_digests: int | None) -> None:
    peers = PEERS[:3]
    own = order(peers, attempt=1)[0]
    others = [peer for peer in peers if peer != own]
    machine = seated(own, others)
    accepted = None if n_digests is None else Accepted(broken, tuple(sha(i) for i in range(n_digests)))
    actions: list[events.Action] = []
    for peer in others:
        actions += says(machine, peer, ready_of(peer, attempt=1, following=broken, accepted=accepted))
    actions += machine.handle(events.Tick(), NOW + 60.0)
    announced = [a.message for a in actions if isinstance(a, events.Send) and isinstance(a.message, Descriptor)]
    for descriptor in announced:
        descriptor.check(N_ELEMENTS, 4096)
        assert (descriptor.outer_step, descriptor.lineage, descriptor.codec) == (0, ROOT, "int8")
    assert announced or events.Strike in kinds(actions)


@pytest.mark.parametrize("attempt", [64, 1_000_000, 2**62, 2**63 - 1])
def test_no_ready_can_drive_the_others_to_an_attempt_that_they_refuse_from_each_other(attempt: int) -> None:
    one, other = seated("peer-a", PEERS[1:3]), seated("peer-c", PEERS[:2])
    for machine in (one, other):
        says(machine, "peer-b", ready_of("peer-b", attempt=attempt))
    actions = one.handle(Down("peer-b", "dead"), NOW) + one.handle(events.Tick(), NOW + 10_000.0)
    readies = [a.message for a in actions if isinstance(a, events.Send) and isinstance(a.message, Ready)]
    assert readies
    assert not [a for ready in readies for a in says(other, "peer-a", ready) if isinstance(a, events.Strike)]
    assert max(ready.attempt for ready in readies) < 2**63


@pytest.mark.parametrize(("weight", "loss"), [((1 << 40) + 1, 2.0), ((1 << 63) - 1, 2.0), (100, 1e300), (100, -1e10)])
def test_a_weight_or_a_loss_that_no_training_has_is_a_strike(weight: int, loss: float) -> None:
    """The sum of all weights has to fit on the wire for as long as the run lasts."""
    machine = seated("peer-a", ["peer-b", "peer-c"])
    assert kinds(says(machine, "peer-b", ready_of("peer-b", weight=weight, loss=loss))) == {events.Strike}
    plan = plan_of("peer-b", PEERS[:3])
    members = tuple(replace(entry, weight=weight, loss=loss) for entry in plan.members)
    with pytest.raises(ValueError, match="no training has"):
        replace(plan, members=members).check(N_ELEMENTS, 4096)


def test_a_leader_that_guesses_a_weight_before_it_is_told_gets_the_share_when_it_is_ready() -> None:
    """Whoever knows the inner steps knows the weight: the plan may be there before this peer's own Ready."""
    leader, own, third = order(PEERS[:3])
    machine = seated(own, [leader, third], ready=False)
    plan = plan_of(leader, PEERS[:3])
    assert events.SendContribution not in kinds(says(machine, leader, plan))
    actions = machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW + 1.0)
    machine.validate()
    shares = [action for action in actions if isinstance(action, events.SendContribution)]
    assert {share.to for share in shares} == {leader, third}
    mine = plan.reducers.index(plan.peers.index(own))
    for sender in (leader, third):
        actions = machine.handle(events.ContributionArrived(plan.plan_id, mine, sender), NOW + 2.0)
    assert [action.contributors for action in actions if isinstance(action, events.Reduce)] == [(0, 1, 2)]
