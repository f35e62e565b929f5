"""What a leader waits for, and what it does not: each of these once stood still or turned in circles."""

from dataclasses import replace

import pytest
from lone_round import NOW, PEERS, assert_never_spins, kinds, order, ready_of, says, seated
from round_table import N_ELEMENTS, ROOT, RUN_ID, begun, sha, weight_of

from peers.membership import Down, Up
from peers.messages import Role, Status
from runtime.averaging import events
from runtime.averaging.messages import Descriptor, Held
from runtime.averaging.round import Round


def begun_by(own: str, peers: list[str]) -> tuple[Round, Descriptor]:
    """A leader with everyone ready."""
    machine = seated(own, [peer for peer in peers if peer != own])
    for peer in peers:
        if peer != own:
            says(machine, peer, ready_of(peer))
    assert machine.descriptor is not None
    return machine, machine.descriptor


def test_a_reducer_that_lives_and_is_far_behind_all_others_is_replaced() -> None:
    own = order(PEERS[:4])[0]
    machine, descriptor = begun_by(own, PEERS[:4])
    slow = next(shard for shard, reducer in enumerate(descriptor.reducers) if descriptor.peers[reducer] != own)
    for peer in descriptor.peers:
        for shard in range(descriptor.n_shards):
            if shard != slow:
                says(machine, peer, Held(0, 0, 0, shard, sha(shard)), NOW + 0.1)
    deadline = machine.next_deadline()
    assert deadline is not None
    machine.handle(events.Tick(), deadline)
    while machine.descriptor == descriptor and deadline < NOW + 3.0:
        deadline = machine.next_deadline() or NOW + 3.0
        machine.handle(events.Tick(), deadline)
    assert machine.descriptor is not None
    assert machine.descriptor.revision == 1
    assert machine.descriptor.reducers[slow] != descriptor.reducers[slow]


def test_of_two_peers_neither_takes_the_other_for_a_slow_reducer() -> None:
    own = order(PEERS[:2])[0]
    machine, descriptor = begun_by(own, PEERS[:2])
    mine = next(shard for shard, reducer in enumerate(descriptor.reducers) if descriptor.peers[reducer] == own)
    for peer in descriptor.peers:
        says(machine, peer, Held(0, 0, 0, mine, sha(mine)), NOW + 0.1)
    assert_never_spins(machine, NOW + 100.0)


def test_a_minority_that_may_not_decide_waits_and_says_for_what_and_does_not_spin() -> None:
    own = order(PEERS[:3])[0]
    machine = Round(own, RUN_ID, N_ELEMENTS, "int8", 1, "stop")
    group = frozenset(PEERS[:3])
    machine.handle(events.StepBegun(0, ROOT, sha(ROOT), 0, group), NOW)
    for peer in PEERS[:3]:
        if peer != own:
            machine.handle(Up(peer, Status(Role.MEMBER, 0, ROOT, 0)), NOW)
            machine.handle(Down(peer, "cut off"), NOW)
    actions = machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW + 60.0)
    assert events.Report in kinds(actions)
    assert any(isinstance(action, events.Report) and action.event == "waiting" for action in actions)
    assert_never_spins(machine, NOW + 1000.0)
    assert machine.descriptor is None


def test_a_member_that_said_goodbye_still_counts_for_the_majority_of_the_step() -> None:
    """It may be back within the step, on the other side of a cut: without it, both sides could have a majority."""
    own, other, third = order(PEERS[:3])
    machine = Round(own, RUN_ID, N_ELEMENTS, "int8", 1, "stop")
    machine.handle(events.StepBegun(0, ROOT, sha(ROOT), 0, frozenset(PEERS[:3])), NOW)
    for peer in (other, third):
        machine.handle(Up(peer, Status(Role.MEMBER, 0, ROOT, 0)), NOW)
        machine.handle(Down(peer, "left: done", left=True), NOW)
    machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW + 60.0)
    machine.handle(events.Tick(), NOW + 120.0)
    assert machine.descriptor is None


def test_who_has_come_in_the_middle_of_a_phase_stops_at_the_first_ready() -> None:
    own, other, third = order(PEERS[:3])
    machine = Round(own, RUN_ID, N_ELEMENTS, "int8", 1)
    machine.handle(begun(5), NOW)
    for peer in (other, third):
        machine.handle(Up(peer, Status(Role.MEMBER, 5, ROOT, 0)), NOW)
    says(machine, other, ready_of(other, outer_step=5, state=sha(ROOT)), NOW + 0.3)
    assert machine.next_deadline() == pytest.approx(NOW + 0.3)
    assert events.StopTraining in kinds(machine.handle(events.Tick(), NOW + 0.3))


@pytest.mark.parametrize(("rate", "codec"), [(0, "int8"), (10_000_000, "int8"), (1 << 40, "float32")])
def test_with_auto_the_leader_writes_what_the_slowest_link_is_best_served_with(rate: int, codec: str) -> None:
    own = order(PEERS[:3])[0]
    machine = Round(own, RUN_ID, N_ELEMENTS, "auto", 1, codec_costs={"int8": 4e-9, "float32": 1e-9})
    machine.handle(begun(), NOW)
    for peer in PEERS[:3]:
        if peer != own:
            machine.handle(Up(peer, Status(Role.MEMBER, 0, ROOT, 0)), NOW)
    machine.handle(events.ContributionReady(0, weight_of(own), 1.0, rate, rate), NOW)
    for peer in PEERS[:3]:
        if peer != own:
            says(machine, peer, replace(ready_of(peer), up=1 << 41, down=1 << 41))
    assert machine.descriptor is not None
    assert machine.descriptor.codec == codec
