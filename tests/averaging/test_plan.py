from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.averaging.codecs.base import BLOCK
from runtime.averaging.messages import SIGNED, Accepted, Descriptor, MemberEntry, Ready
from runtime.averaging.plan import (
    decided_digests,
    fresh_descriptor,
    next_descriptor,
    reassigned_descriptor,
    resumed_descriptor,
)

RUN, LINEAGE, STATE = "5" * 40, b"l" * 32, b"s" * 32
PEERS = [f"peer-{letter}" for letter in "abcdef"]
N = 5 * BLOCK + 77
MODEST = settings(deadline=None, max_examples=150)
DIGEST = st.sampled_from([b"1" * 32, b"2" * 32])
SOME_PEERS = st.sets(st.sampled_from(PEERS), min_size=1)


def ready(weight: int = 10, **changes: object) -> Ready:
    return replace(Ready(0, 0, LINEAGE, STATE, weight, 2.0, None, None), **changes)  # type: ignore[arg-type]


def fresh(peers: list[str], attempt: int = 0, n: int = N) -> Descriptor:
    readies = {peer: ready(10 + index) for index, peer in enumerate(peers)}
    return fresh_descriptor(RUN, 0, attempt, peers[0], readies, n, "int8")


def after(readies: dict[str, Ready], quorum: int = 1) -> Descriptor:
    return next_descriptor(readies, RUN, 0, 5, "leader", N, "int8", quorum)


def still_ready(last: Descriptor, here: set[str]) -> dict[str, Ready]:
    """Peers with what they contributed to the last plan; those that are not of it with something."""
    weights = {entry.peer: entry.weight for entry in last.members}
    return {peer: ready(weights.get(peer, 10), following=last) for peer in sorted(here)}


@MODEST
@given(SOME_PEERS, st.integers(1, 10 * BLOCK))
def test_a_fresh_plan_checks_and_travels(peers: set[str], n: int) -> None:
    descriptor = fresh(sorted(peers, reverse=True), n=n)
    descriptor.check(n, BLOCK)
    assert SIGNED.decode(SIGNED.encode(descriptor), "x") == descriptor
    assert list(descriptor.peers) == sorted(peers)
    assert descriptor.voters == tuple(range(len(peers)))
    assert not any(descriptor.settled)


def test_a_fresh_plan_of_more_members_than_a_descriptor_holds_still_travels() -> None:
    descriptor = fresh([f"peer-{index:03}" for index in range(300)], n=400 * BLOCK)
    assert SIGNED.decode(SIGNED.encode(descriptor), "x") == descriptor


@pytest.mark.parametrize(("rate", "alike"), [(5.1e6, True), (7.4e6, True), (4e6, False), (1.2e7, False)])
def test_links_that_differ_by_no_more_than_what_is_measured_of_them_are_taken_to_be_alike(
    rate: float, alike: bool
) -> None:
    rates = {"peer-a": 6e6, "peer-b": 6e6, "peer-c": 6.2e6, "peer-d": rate}
    readies = {peer: ready(up=int(one), down=int(one)) for peer, one in rates.items()}
    bounds = fresh_descriptor(RUN, 0, 0, "peer-a", readies, 400 * BLOCK, "int8").bounds
    assert (bounds == tuple(100 * BLOCK * part for part in range(5))) is alike


MUTATIONS: list[dict[str, object]] = [
    {"bounds": (0, BLOCK, N + 1)},
    {"bounds": (BLOCK, 2 * BLOCK, N)},
    {"bounds": (0, BLOCK + 1, N)},
    {"bounds": (0, 3 * BLOCK, 2 * BLOCK, N)},
    {"bounds": (0, 2 * BLOCK, 2 * BLOCK, N)},
    {"bounds": (0, N)},
    {"reducers": (0, 1)},
    {"reducers": (0, 1, 3)},
    {"voters": (0, 1, 3)},
    {"voters": (0, 0)},
    {"voters": (2, 0)},
    {"settled": (b"", b"")},
    {"settled": (b"", b"", b"x")},
    {"members": ()},
    {"members": tuple(MemberEntry(peer, 1, None) for peer in ("peer-a", "peer-a", "peer-b"))},
    {"members": tuple(MemberEntry(peer, 1, None) for peer in ("peer-c", "peer-a", "peer-b"))},
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_plan_whose_parts_do_not_fit_is_refused(mutation: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"[a-z]+"):
        replace(fresh(PEERS[:3]), **mutation).check(N, BLOCK)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"attempt": 1}, {"revision": 1}, {"leader": "x"}, {"reducers": (2, 2, 2)},
                                    {"settled": (b"1" * 32,) * 3}, {"voters": (0,)}], ids=str)  # fmt: skip
def test_a_plan_survives_a_change_of_leader_reducers_and_voters(change: dict[str, object]) -> None:
    assert replace(fresh(PEERS[:3]), **change).plan_id == fresh(PEERS[:3]).plan_id  # type: ignore[arg-type]


def test_whatever_changes_a_bit_of_the_result_makes_another_plan() -> None:
    plan = fresh(PEERS[:3])
    heavier = (replace(plan.members[0], weight=99), *plan.members[1:])
    others = [{"run_id": "6" * 40}, {"outer_step": 1}, {"lineage": STATE}, {"state": LINEAGE}, {"codec": "float32"}]
    ids = {replace(plan, **other).plan_id for other in (*others, {"members": heavier}, {"bounds": (0, N)})}  # type: ignore[arg-type]
    assert len(ids | {plan.plan_id}) == 8


def test_without_a_past_there_is_a_fresh_plan() -> None:
    assert after({peer: ready() for peer in PEERS[:3]}).peers == tuple(PEERS[:3])


@MODEST
@given(SOME_PEERS, st.integers(1, 4))
def test_the_last_plan_goes_on_with_a_majority_and_the_quorum_of_its_members_only(here: set[str], quorum: int) -> None:
    last = fresh(PEERS[:5])
    descriptor = after(still_ready(last, here), quorum)
    present = [index for index, peer in enumerate(last.peers) if peer in here]
    if len(present) >= max(quorum, 3):
        assert descriptor.plan_id == last.plan_id
        assert descriptor.voters == tuple(present)
        assert set(descriptor.reducers) <= set(present)
        assert descriptor.order == (5, 0)
    else:
        assert descriptor.peers == tuple(sorted(here))


@MODEST
@given(SOME_PEERS, st.sampled_from(PEERS[:5]))
def test_what_anyone_accepted_is_taken_over_as_it_is(others: set[str], witness: str) -> None:
    last = fresh(PEERS[:5])
    digests = tuple(bytes([shard]) * 32 for shard in range(last.n_shards))
    readies = {peer: ready() for peer in sorted(others)}
    readies[witness] = ready(following=last, accepted=Accepted(last, digests))
    descriptor = after(readies)
    assert (descriptor.plan_id, descriptor.settled) == (last.plan_id, digests)
    descriptor.check(N, BLOCK)


def test_of_two_accepted_results_the_later_one_stands() -> None:
    early, late = fresh(PEERS[:3]), fresh(PEERS[1:4], attempt=2)
    readies = {
        "peer-a": ready(accepted=Accepted(early, (b"9" * 32,) * 3)),
        "peer-d": ready(accepted=Accepted(late, (b"1" * 32,) * 3)),
    }
    assert after(readies).plan_id == late.plan_id


@MODEST
@given(SOME_PEERS, st.dictionaries(st.sampled_from(PEERS), st.dictionaries(st.integers(0, 4), DIGEST, max_size=5)))
def test_reassigning_never_leaves_a_shard_that_someone_lacks_to_the_dead(
    alive: set[str], held: dict[str, dict[int, bytes]]
) -> None:
    last = fresh(PEERS[:5])
    here = [peer for peer in last.peers if peer in alive]
    assume(here)
    new = reassigned_descriptor(last, alive, held)
    now = new or last
    for shard, reducer in enumerate(now.reducers):
        digests = [held[peer][shard] for peer in here if shard in held.get(peer, {})]
        if now.peers[reducer] not in alive and not now.settled[shard]:
            assert len(digests) == len(here)
        if now.settled[shard]:
            assert now.settled[shard] in digests
        if last.peers[last.reducers[shard]] in alive:
            assert now.reducers[shard] == last.reducers[shard]
    if new is not None:
        assert new.revision == last.revision + 1
        assert new.plan_id == last.plan_id
        new.check(N, BLOCK)
        # Without news there is nothing more to change.
        assert reassigned_descriptor(new, alive, held) is None


def test_a_member_that_was_started_anew_has_lost_its_contribution_and_counts_as_a_newcomer() -> None:
    last = fresh(PEERS[:2])
    readies = still_ready(last, set(PEERS[:2]))
    readies[PEERS[1]] = replace(readies[PEERS[1]], weight=3)
    descriptor = after(readies, quorum=2)
    assert descriptor.plan_id != last.plan_id
    assert [entry.weight for entry in descriptor.members] == [10, 3]


def test_a_result_that_was_settled_and_that_nobody_here_has_accepted_is_reduced_again() -> None:
    # Its only holder may be gone: to wait for it would be to wait for ever.
    last = replace(fresh(PEERS[:3]), settled=(b"1" * 32, b"", b""), revision=1, reducers=(1, 1, 2))
    resumed = after(still_ready(last, set(PEERS[1:3])))
    assert resumed.plan_id == last.plan_id
    assert resumed.settled == (b"", b"", b"")


@MODEST
@given(
    st.integers(1, 6),
    st.dictionaries(st.sampled_from(PEERS), st.dictionaries(st.integers(0, 5), DIGEST, max_size=6), max_size=6),
    st.data(),
)
def test_decided_is_what_more_than_half_of_the_voters_hold_alike(
    n_members: int, held: dict[str, dict[int, bytes]], data: st.DataObject
) -> None:
    plan = fresh(PEERS[:n_members])
    held = {peer: {k: v for k, v in shards.items() if k < plan.n_shards} for peer, shards in held.items()}
    if data.draw(st.booleans()):
        held = {peer: dict.fromkeys(range(plan.n_shards), data.draw(DIGEST)) for peer in PEERS[:n_members]}
    voters = sorted(data.draw(st.sets(st.integers(0, n_members - 1), min_size=1)))
    plan = replace(plan, voters=tuple(voters), electors=len(voters))
    digests = decided_digests(plan, held)
    complete = [held.get(plan.peers[index], {}) for index in voters]
    vectors = [tuple(sorted(shards.items())) for shards in complete if set(shards) == set(range(plan.n_shards))]
    winners = [vector for vector in vectors if 2 * vectors.count(vector) > len(voters)]
    assert digests == (tuple(digest for _, digest in winners[0]) if winners else None)


def test_resuming_keeps_reducers_that_are_here_and_names_an_heir_for_each_that_is_not() -> None:
    last = fresh(PEERS[:5])
    resumed = resumed_descriptor(last, 1, "peer-c", ["peer-c", "peer-d", "peer-x"], (b"",) * 5)
    assert resumed.reducers == (2, 2, 2, 3, 2)
    assert resumed.voters == (2, 3)
    assert (resumed.attempt, resumed.revision, resumed.leader) == (1, 0, "peer-c")
