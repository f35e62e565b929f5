from collections.abc import Callable

import pytest
from round_table import Table

from peers.election import leadership_order
from runtime.averaging import events
from runtime.averaging.messages import Commit, Descriptor

PEERS = ["peer-a", "peer-b", "peer-c", "peer-d", "peer-e"]
SEEDS = range(12)
SomeAction = Callable[[events.Action], bool]


def leader_of(table: Table, attempt: int = 0, outer_step: int = 0) -> str:
    return leadership_order("5" * 40, outer_step, attempt, table.alive)[0]


def sends(kind: type) -> SomeAction:
    return lambda action: isinstance(action, events.Send) and isinstance(action.message, kind)


def at_count(found: SomeAction, count: int) -> SomeAction:
    """The action that is the ``count``-th for which ``found`` holds."""
    seen = 0

    def check(action: events.Action) -> bool:
        nonlocal seen
        seen += found(action)
        return seen == count and found(action)

    return check


def contributors(table: Table) -> list[set[str]]:
    return [{action.descriptor.peers[i] for i in action.contributors} for action in table.done(events.Reduce)]  # type: ignore[union-attr]


def test_one_alone_commits() -> None:
    table = Table(["peer-a"])
    table.ready()
    table.run(1, most_s=0.0)
    assert len(table.seats["peer-a"].applied) == 1
    table.ready()
    table.run(2, most_s=0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_all_commit_the_same_lineage_step_after_step(count: int, seed: int) -> None:
    table = Table(PEERS[:count], seed=seed)
    for outer_step in (1, 2, 3):
        table.ready()
        table.run(outer_step, most_s=10.0)
    for seat in table.seats.values():
        assert seat.applied == table.seats["peer-a"].applied
        assert len(seat.applied) == 3
    assert all(names == set(PEERS[:count]) for names in contributors(table))
    assert not table.done(events.Strike)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_that_dies_before_sending_leaves_its_contribution_out(seed: int) -> None:
    table = Table(PEERS, seed=seed)
    victim = next(peer for peer in PEERS if peer != leader_of(table))
    table.fatal[victim] = lambda action: isinstance(action, events.SendContribution)
    table.ready()
    table.run(1)
    assert victim in table.dead
    assert all(victim not in names for names in contributors(table))
    assert len(table.done(events.Apply)) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reducer_that_dies_is_replaced_and_only_its_shard_is_sent_again(seed: int) -> None:
    table = Table(PEERS, seed=seed)
    victim = next(peer for peer in PEERS if peer != leader_of(table))
    table.fatal[victim] = lambda action: isinstance(action, events.Reduce)
    table.ready()
    table.run(1)
    assert victim in table.dead
    shard = PEERS.index(victim)
    sent = [(action.shard, action.to) for action in table.done(events.SendContribution)]  # type: ignore[union-attr]
    assert sum(to == victim for _, to in sent) == 4
    # The heir has its own share already; the other three survivors send theirs once more.
    again = [to for one, to in sent if one == shard and to != victim]
    assert len(again) == 3
    assert len(set(again)) == 1
    assert len(sent) == 5 * 4 + 3
    assert {commit.descriptor.attempt for commit in table.committed} == {0}


def dies(table: Table, moment: str) -> None:
    """Let the leader of the first attempt die at a moment of the round."""
    leader = leader_of(table)
    one_got_it = at_count(sends(Commit), 1)
    match moment:
        case "before it begins":
            table.fatal[leader] = sends(Descriptor)
        case "when one has its descriptor":
            table.fatal[leader] = at_count(sends(Descriptor), 2)
        case "after it begins":
            table.fatal[leader] = lambda action: isinstance(action, events.SendContribution)
        case "having reduced":
            table.fatal[leader] = lambda action: isinstance(action, events.SendResult)
        case "when most have told it what they hold":
            table.fatal[leader] = sends(Commit)
        case "when one got the commit":
            lucky = next(peer for peer in PEERS if peer != leader)
            table.lost = lambda sender, to, event: (
                sender == leader
                and to != lucky
                and isinstance(event, events.MessageFrom)
                and isinstance(event.message, Commit)
            )
            table.fatal_after[leader] = one_got_it
        case "when all got the commit":
            table.fatal_after[leader] = one_got_it


MOMENTS = [
    "before it begins",
    "when one has its descriptor",
    "after it begins",
    "having reduced",
    "when most have told it what they hold",
    "when one got the commit",
    "when all got the commit",
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_survivors_of_a_leader_commit_what_anyone_applied(moment: str, seed: int) -> None:
    table = Table(PEERS, seed=seed)
    dies(table, moment)
    leader = leader_of(table)
    table.ready()
    # The table itself asserts that nobody applies another lineage than the first one applied.
    table.run(1)
    assert leader in table.dead
    table.fatal.clear()
    table.fatal_after.clear()
    table.ready()
    table.run(2)
    assert all(len(table.seats[peer].applied) == 2 for peer in table.alive)
    assert not table.done(events.Strike)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_leader_and_a_reducer_may_die_in_one_round(moment: str, seed: int) -> None:
    table = Table(PEERS, seed=seed)
    dies(table, moment)
    leader = leader_of(table)
    victim = [peer for peer in PEERS if peer != leader][-1]
    table.fatal[victim] = lambda action: isinstance(action, events.SendResult)
    table.ready()
    table.run(1)
    assert len(table.alive) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_straggler_is_told_to_stop_and_is_in(seed: int) -> None:
    table = Table(PEERS[:4], seed=seed)
    table.ready(*PEERS[:3])
    table.run(1, most_s=10.0)
    assert len(table.done(events.StopTraining, "peer-d")) == 1
    assert all(names == set(PEERS[:4]) for names in contributors(table))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_late_straggler_gets_the_commit_and_applies_it_without_having_contributed(seed: int) -> None:
    table = Table(PEERS[:4], seed=seed)
    table.seats["peer-d"].trains = False
    table.ready(*PEERS[:3])
    table.run(1, most_s=10.0)
    assert table.seats["peer-d"].applied == table.seats["peer-a"].applied
    assert all("peer-d" not in names for names in contributors(table))
    assert "peer-d" not in table.seats["peer-d"].applied[0].descriptor.peers


@pytest.mark.parametrize("seed", SEEDS)
def test_who_missed_a_commit_asks_for_it(seed: int) -> None:
    table = Table(PEERS[:4], seed=seed)
    leader = leader_of(table)
    unlucky = next(peer for peer in table.alive if peer != leader)
    table.lost = lambda sender, to, event: (
        to == unlucky and isinstance(event, events.MessageFrom) and isinstance(event.message, Commit)
    )
    table.ready()
    table.settle()
    assert [peer for peer in table.alive if not table.seats[peer].applied] == [unlucky]
    table.lost = lambda sender, to, event: False
    table.run(1, most_s=5.0)
    assert not table.done(events.Resync)


@pytest.mark.parametrize("seed", SEEDS)
def test_less_than_the_quorum_commits_nothing_and_keeps_its_contribution(seed: int) -> None:
    table = Table(PEERS[:3], quorum=2, seed=seed)
    table.kill("peer-b")
    table.kill("peer-c")
    table.ready()
    table.settle()
    # Without a quorum there is nobody to lead: no attempt is wasted, however long it takes.
    while (deadline := table.seats["peer-a"].machine.next_deadline()) is not None:
        assert deadline < table.now + 60.0
        table.tick()
        table.settle()
    assert table.seats["peer-a"].machine._step is not None
    assert table.seats["peer-a"].machine._step.attempt <= 2
    assert not table.done(events.Apply)
    assert table.seats["peer-a"].machine._step is not None
    assert table.seats["peer-a"].machine._step.own is not None


@pytest.mark.parametrize("seed", range(60))
def test_deaths_at_any_moment_leave_the_survivors_with_one_lineage(seed: int) -> None:
    table = Table(PEERS, seed=seed)
    for outer_step in (1, 2, 3):
        table.fatal, table.fatal_after = {}, {}
        if len(table.alive) > 3:
            victim = table.rng.choice(table.alive)
            fate = table.fatal if table.rng.random() < 0.7 else table.fatal_after
            fate[victim] = at_count(lambda action: not isinstance(action, events.Report), table.rng.randrange(1, 14))
        table.ready()
        table.run(outer_step)
    assert len({table.seats[peer].lineage for peer in table.alive}) == 1
    assert len(table.alive) >= 3


def test_messages_that_come_twice_change_nothing() -> None:
    plain, twice = Table(PEERS[:4], seed=1), Table(PEERS[:4], seed=1)
    post = twice.post

    def post_twice(sender: str, to: str, event: object) -> None:
        for _ in range(2 if isinstance(event, events.MessageFrom | events.ContributionArrived) else 1):
            post(sender, to, event)  # type: ignore[arg-type]

    twice.post = post_twice  # type: ignore[method-assign]
    for table in (plain, twice):
        table.ready()
        table.run(1, most_s=10.0)
    assert plain.lineages == twice.lineages
    assert {len(seat.applied) for seat in twice.seats.values()} == {1}
