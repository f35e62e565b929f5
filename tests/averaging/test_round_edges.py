"""The round where it is thin: late, lost and rival messages, and who is left with what."""

from collections import Counter
from dataclasses import replace

import pytest
from lone_round import NOW, PEERS, assert_never_spins, kinds, order, plan_of, ready_of, says, seated
from round_table import ROOT, Table, sha, weight_of

from peers.membership import Changed, Down, Up
from peers.messages import Role, Status
from runtime.averaging import events
from runtime.averaging.messages import Commit, Descriptor, Held, Past, Ready
from runtime.averaging.round import Round


def test_the_second_descriptor_of_one_attempt_is_ignored() -> None:
    leader, own, rival = order(PEERS[:3])
    machine = seated(own, [leader, rival])
    assert events.Follow in kinds(says(machine, leader, plan_of(leader, PEERS[:3])))
    assert says(machine, rival, plan_of(rival, PEERS[:3])) == []
    assert machine.descriptor == plan_of(leader, PEERS[:3])


def test_a_descriptor_that_was_seen_before_is_ignored() -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    says(machine, leader, plan_of(leader, PEERS[:3], revision=1))
    assert says(machine, leader, plan_of(leader, PEERS[:3], revision=1)) == []
    assert says(machine, leader, plan_of(leader, PEERS[:3], revision=0)) == []


def test_who_follows_a_leader_does_not_lead_the_same_attempt() -> None:
    # The other leader sees less peers than this one and so began first: both would count this peer's word.
    own, other, third = order(PEERS[:3])
    machine = seated(own, [other, third])
    assert events.Follow in kinds(says(machine, other, plan_of(other, PEERS[:3])))
    actions = says(machine, other, ready_of(other)) + says(machine, third, ready_of(third))
    actions += machine.handle(events.Tick(), NOW + 60.0)
    sent = [action.message for action in actions if isinstance(action, events.Send)]
    assert not [message for message in sent if isinstance(message, Descriptor)]
    assert machine.descriptor is not None
    assert machine.descriptor.leader == other


def test_nothing_is_applied_twice() -> None:
    machine = seated("peer-a", [])
    plan_id = machine.descriptor.plan_id if machine.descriptor else b""
    applied: list[events.Action] = []
    for _ in range(2):
        for shard in range(1):
            applied += machine.handle(events.ResultReady(plan_id, shard, "peer-a", sha(shard)), NOW)
    assert sum(isinstance(action, events.Apply) for action in applied) == 1


def test_waiting_for_shares_that_never_come_does_not_spin() -> None:
    # The quorum is two, both are linked, and the other's share is lost on its way.
    leader, own = order(PEERS[:2])
    machine = seated(own, [leader], quorum=2)
    says(machine, leader, plan_of(leader, PEERS[:2]))
    assert_never_spins(machine, NOW + 1000.0)


def test_nothing_spins_while_others_are_ahead_and_nobody_has_the_commit() -> None:
    machine = seated("peer-a", PEERS[1:3])
    machine.handle(Changed("peer-b", Status(Role.MEMBER, 9, sha(9), 0)), NOW)
    assert_never_spins(machine, NOW + 100.0)


def test_who_is_far_behind_asks_to_download_the_state() -> None:
    machine = seated("peer-a", PEERS[1:3])
    machine.handle(Changed("peer-b", Status(Role.MEMBER, 9, sha(9), 0)), NOW)
    found: set[type] = set()
    for second in range(1, 20):
        found |= kinds(machine.handle(events.Tick(), NOW + second))
    assert events.Resync in found


def test_a_shard_that_comes_back_to_a_reducer_is_reduced_again() -> None:
    # Leaders of two attempts gave this peer's shard away and back: what it made of it at first was forgotten.
    peers = PEERS[:3]
    first, own = order(peers)[0], order(peers)[1]
    machine = seated(own, [peer for peer in peers if peer != own])
    me, first_index = peers.index(own), peers.index(first)
    descriptor = plan_of(first, peers)
    says(machine, first, descriptor)
    for peer in peers:
        if peer != own:
            machine.handle(events.ContributionArrived(descriptor.plan_id, me, peer), NOW)
    machine.handle(events.ResultReady(descriptor.plan_id, me, own, sha("first")), NOW)
    away = tuple(first_index if reducer == me else reducer for reducer in descriptor.reducers)
    says(machine, first, replace(descriptor, attempt=1, reducers=away))
    actions = says(machine, first, replace(descriptor, attempt=2))
    actions += machine.handle(events.Tick(), NOW + 30.5)
    held = {a.message.shard for a in actions if isinstance(a, events.Send) and isinstance(a.message, Held)}
    assert me in held | {action.shard for action in actions if isinstance(action, events.Reduce)}


def test_a_commit_is_fetched_although_another_result_of_the_shard_was_being_fetched() -> None:
    leader, own, _ = order(PEERS[:3])
    machine = seated(own, [peer for peer in PEERS[:3] if peer != own])
    descriptor = plan_of(leader, PEERS[:3], settled=(sha("old"), b"", b""))
    says(machine, leader, descriptor)
    digests = (sha("new"), sha(1), sha(2))
    says(machine, leader, Commit(replace(descriptor, attempt=1, settled=(b"",) * 3), digests))
    fetched: set[bytes] = set()
    for second in range(1, 10):
        actions = machine.handle(events.Tick(), NOW + second)
        if second == 5:
            actions = machine.handle(events.ResultReady(descriptor.plan_id, 0, None, sha("old")), NOW + second)
        fetched |= {action.digest for action in actions if isinstance(action, events.Fetch)}
    assert fetched == set(digests)


def test_a_commit_is_given_up_after_three_fetches_of_one_result_and_not_after_one_of_each() -> None:
    leader, own, third = order(PEERS[:3])
    machine = seated(own, [leader, third])
    descriptor, digests = plan_of(leader, PEERS[:3]), (sha(0), sha(1), sha(2))
    says(machine, leader, Commit(descriptor, digests))
    fetched = Counter[int]()
    for second in range(1, 12):
        for action in machine.handle(events.Tick(), NOW + second):
            assert isinstance(action, events.Fetch), "its results are fetched as long as somebody may have them"
            # A connection has just broken: all fail at once.
            fetched[action.shard] += 1
            told = machine.handle(events.FetchFailed(descriptor.plan_id, action.shard, action.digest), NOW + second)
            if any(isinstance(one, events.Report) and one.event == "commit_lost" for one in told):
                assert fetched == {0: 3, 1: 2, 2: 2}
                return
        # Of a result that the commit does not have, nothing follows.
        machine.handle(events.FetchFailed(descriptor.plan_id, 0, sha("old")), NOW + second)
    raise AssertionError("nobody has them, and that is never noticed")


def test_who_came_back_without_its_contribution_sends_none() -> None:
    # The process that was in the plan died; its successor leads the next attempt while it is still training.
    peers = PEERS[:3]
    own = order(peers, attempt=1)[0]
    others = [peer for peer in peers if peer != own]
    machine = seated(own, others, ready=False)
    following = plan_of(others[0], peers)
    actions: list[events.Action] = []
    for peer in others:
        actions += says(machine, peer, ready_of(peer, attempt=1, following=following))
    actions += machine.handle(events.Tick(), NOW + 60.0)
    actions += machine.handle(events.Tick(), NOW + 60.0)
    assert machine.descriptor is not None
    assert events.SendContribution not in kinds(actions)


def test_members_of_a_lighter_fork_are_told_and_not_waited_for() -> None:
    machine = seated("peer-a", [], ready=False)
    for other in PEERS[1:]:
        told = machine.handle(Up(other, Status(Role.MEMBER, 0, bytes(32), 0)), NOW)
        assert events.Send(other, Past(0, ROOT)) in told
    machine.handle(events.ContributionReady(0, weight_of("peer-a"), 2.0), NOW)
    machine.handle(events.Tick(), NOW + 10.0)
    assert machine.descriptor is not None


def test_a_heavier_fork_is_gone_over_to_at_once_and_nothing_is_begun_before() -> None:
    machine = seated("peer-a", [], ready=False)
    actions = machine.handle(Up("peer-b", Status(Role.MEMBER, 0, sha("fork"), 0, tokens=1)), NOW)
    assert kinds(actions) == {events.Report, events.Resync}
    machine.handle(events.ContributionReady(0, weight_of("peer-a"), 2.0), NOW)
    machine.handle(events.Tick(), NOW + 10.0)
    assert machine.descriptor is None
    machine.handle(events.SyncFailed("peer-b", refuted=True), NOW + 11.0)
    machine.handle(events.Tick(), NOW + 20.0)
    assert machine.descriptor is not None


def test_a_commit_of_another_history_or_none_at_all_from_further_on_ends_in_its_state() -> None:
    for past, reports in ((sha("fork"), 1), (b"", 0), (ROOT, 0)):
        machine = seated("peer-a", ["peer-b"])
        machine.handle(Changed("peer-b", Status(Role.MEMBER, 9, sha(9), 0, tokens=900)), NOW)
        actions = says(machine, "peer-b", Past(0, past))
        assert [type(action) for action in actions] == [events.Report] * reports + [events.Resync]
        assert says(machine, "peer-b", Past(0, past)) == []


def test_a_newcomer_that_never_had_a_commit_does_not_speak_for_those_that_keep_it() -> None:
    machine = seated("peer-a", ["peer-b", "peer-c"])
    for peer in ("peer-b", "peer-c"):
        machine.handle(Changed(peer, Status(Role.MEMBER, 9, sha(9), 0, tokens=900)), NOW)
    assert says(machine, "peer-c", Past(0, b"")) == []
    assert kinds(says(machine, "peer-b", Past(0, b""))) == {events.Resync}


def alone_without_results(machine: Round, commit: Commit, downs: list[Down]) -> None:
    """All others go, and the first shard of a commit that is pending is not to be had until it is given up."""
    for down in downs:
        machine.handle(down, NOW)
    for attempt in range(3):
        machine.handle(events.FetchFailed(commit.descriptor.plan_id, 0, commit.digests[0]), NOW + 20.0 + attempt)


def test_a_commit_that_was_given_up_counts_again_when_who_has_applied_it_is_back() -> None:
    own, *others = PEERS[:3]
    machine = seated(own, others, quorum=2)
    descriptor = plan_of(order(PEERS[:3])[0], PEERS[:3])
    commit = Commit(descriptor, tuple(sha(shard) for shard in range(descriptor.n_shards)))
    says(machine, others[0], commit)
    alone_without_results(machine, commit, [Down(peer, "end of stream", left=False) for peer in others])
    assert machine.pending_commit is None
    # From who has not applied it, it is nothing to wait for.
    machine.handle(Up(others[1], Status(Role.MEMBER, 0, ROOT, 0)), NOW + 30.0)
    says(machine, others[1], commit, NOW + 30.0)
    assert machine.pending_commit is None
    machine.handle(Up(others[0], Status(Role.MEMBER, 1, sha(1), 0, tokens=900)), NOW + 31.0)
    says(machine, others[0], commit, NOW + 31.0)
    assert machine.pending_commit == commit


def test_a_contribution_that_was_ready_while_a_commit_lacked_results_is_there_when_it_is_given_up() -> None:
    own, *others = PEERS[:3]
    machine = seated(own, others, ready=False)
    descriptor = plan_of(order(others)[0], others)
    commit = Commit(descriptor, tuple(sha(shard) for shard in range(descriptor.n_shards)))
    says(machine, others[0], commit)
    machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW)
    alone_without_results(machine, commit, [Down(peer, "end of stream", left=False) for peer in others])
    machine.handle(events.Tick(), NOW + 60.0)
    assert machine.descriptor is not None
    assert machine.descriptor.peers == (own,)


def test_who_said_goodbye_while_a_commit_was_pending_is_not_reckoned_with_when_it_is_given_up() -> None:
    own, *others = PEERS[:3]
    machine = seated(own, others, ready=False)
    for peer in others:
        says(machine, peer, ready_of(peer))
    descriptor = plan_of(order(others)[0], others)
    commit = Commit(descriptor, tuple(sha(shard) for shard in range(descriptor.n_shards)))
    says(machine, others[0], commit)
    alone_without_results(machine, commit, [Down(peer, "left", left=True) for peer in others])
    assert machine.pending_commit is None
    assert machine.next_deadline() is None
    machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW + 30.0)
    machine.handle(events.Tick(), NOW + 60.0)
    assert machine.descriptor is not None
    assert machine.descriptor.peers == (own,)


def test_a_peer_whose_heartbeat_is_two_steps_old_is_still_waited_for() -> None:
    table = Table(PEERS[:2], heartbeats=False)
    for outer_step in (1, 2, 3):
        table.ready("peer-a")
        assert table.seats["peer-a"].outer_step == outer_step - 1, "committed alone, beside a linked member"
        table.ready("peer-b")
        table.run(outer_step, most_s=10.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_last_one_left_of_three_goes_on(seed: int) -> None:
    # It held every result once; then the reducer of one died, and the leader with it that was to reduce it again.
    table = Table(PEERS[:3], seed=seed)
    leader = order(PEERS[:3])[0]
    reducer = PEERS[(PEERS.index(leader) - 1) % 3]
    (last,) = {*PEERS[:3]} - {leader, reducer}

    def lost(sender: str, to: str, event: object) -> bool:
        told = isinstance(event, events.MessageFrom) and isinstance(event.message, Held)
        return to == leader and (isinstance(event, events.ResultReady) if sender == reducer else told)

    table.lost = lost
    table.ready()
    table.settle()
    table.fatal[leader] = lambda action: isinstance(action, events.Reduce)
    table.kill(reducer)
    table.settle()
    assert table.alive == [last]
    table.run(1, most_s=1000.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_settled_result_that_died_with_its_holder_is_reduced_again(seed: int) -> None:
    table = Table(PEERS, seed=seed)
    leader, reducer, holder = order(PEERS)[:3]
    table.lost = lambda sender, to, event: (
        sender == reducer
        and to != holder
        and isinstance(event, events.ResultReady | events.MessageFrom)
        and not (isinstance(event, events.MessageFrom) and isinstance(event.message, Ready))
    )
    table.ready()
    table.settle()
    table.mute = {holder}
    table.kill(reducer)
    table.settle()
    assert any(any(d.settled) for d in [table.seats[leader].machine.descriptor] if d is not None)
    table.kill(holder)
    table.run(1, most_s=1000.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_commit_whose_results_died_with_all_their_holders_is_given_up(seed: int) -> None:
    table = Table(PEERS[:3], seed=seed)
    last = order(PEERS[:3])[2]
    table.lost = lambda sender, to, event: to == last and sender != last and isinstance(event, events.ResultReady)
    table.mute = {*PEERS[:3]} - {last}
    table.ready()
    table.settle()
    assert table.seats[last].machine.pending_commit is not None
    for peer in sorted(table.mute):
        table.kill(peer)
    # Nobody alive has applied it, so the last one may take the step with its own contribution.
    table.lineages.pop(1)
    table.run(1, most_s=1000.0)


def test_who_is_about_to_apply_a_commit_still_tells_it_to_who_asks() -> None:
    # Its training thread may hang, and the leader be dead: a commit that anyone has seen stands.
    leader, own, third = order(PEERS[:3])
    machine = seated(own, [leader, third])
    descriptor = plan_of(leader, PEERS[:3])
    says(machine, leader, descriptor)
    digests = tuple(sha(shard) for shard in range(descriptor.n_shards))
    for shard, reducer in enumerate(descriptor.reducers):
        machine.handle(events.ResultReady(descriptor.plan_id, shard, descriptor.peers[reducer], digests[shard]), NOW)
    assert events.Apply in kinds(says(machine, leader, Commit(descriptor, digests)))
    assert says(machine, third, ready_of(third, attempt=1)) == [events.ForwardCommit(third, 0)]
    ready = ready_of(third, outer_step=1, lineage=sha(1), state=sha(2))
    assert says(machine, third, ready) == []
    # Who is ready for the next step before this peer has it is not asked again.
    machine.handle(events.StepBegun(1, sha(1), sha(2), 100, frozenset()), NOW)
    assert machine._step is not None
    assert machine._step.readies == {third: ready}
