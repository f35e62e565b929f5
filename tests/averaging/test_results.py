import pytest
import torch
from lone_round import plan_of
from round_table import N_ELEMENTS, sha

from runtime.averaging.codec import Int8
from runtime.averaging.messages import Commit, Descriptor
from runtime.averaging.reduce import ShardResult, result_digest
from runtime.averaging.results import KEPT_STEPS, Results
from runtime.averaging.transfer import Kind

PEERS = ["peer-a", "peer-b", "peer-c"]
PLAN = plan_of("peer-a", PEERS)
INT8 = Int8()


def elements(shard: int) -> int:
    return PLAN.bounds[shard + 1] - PLAN.bounds[shard]


def buffers(peer: str = "peer-a", value: float = 1.0, descriptor: Descriptor = PLAN) -> Results:
    results = Results(peer)
    results.own_P = torch.full((N_ELEMENTS,), value)
    results.follow(descriptor)
    return results


def result(shard: int, contributors: tuple[int, ...] = (0, 1, 2), value: float = 1.0) -> bytes:
    return ShardResult(contributors, INT8.encode(torch.full((elements(shard),), value))).to_bytes()


def test_peers_that_exchange_shares_hold_the_weighted_mean() -> None:
    every = [buffers(peer, value) for peer, value in zip(PEERS, (1.0, 2.0, 4.0), strict=True)]
    digests = []
    for shard, reducer in enumerate(every):
        for sender, other in zip(PEERS, every, strict=True):
            if other is not reducer:
                reducer.add_share(sender, shard, other.encoded_share(shard))
        digests.append(reducer.reduce(shard, (0, 1, 2)))
        for other in every:
            if other is not reducer:
                assert other.add_result(shard, reducer.result(shard, digests[-1]), 1, PEERS[shard]) == digests[-1]
    weights = [entry.weight for entry in PLAN.members]
    expected = (weights[0] * 1.0 + weights[1] * 2.0 + weights[2] * 4.0) / sum(weights)
    means = [one.mean(Commit(PLAN, tuple(digests))) for one in every]
    for mean_P, contributors in means:
        assert torch.equal(mean_P, means[0][0])
        assert contributors == [(0, 1, 2)] * 3
    assert float((means[0][0] - expected).abs().max()) < 1e-5


def test_only_what_the_plan_needs_may_come() -> None:
    results = buffers()
    own = INT8.encoded_bytes(elements(0))
    assert results.limit("peer-b", Kind.CONTRIBUTION, PLAN.plan_id, 0) == own
    assert results.limit("peer-x", Kind.CONTRIBUTION, PLAN.plan_id, 0) is None
    assert results.limit("peer-b", Kind.CONTRIBUTION, sha("other plan"), 0) is None
    assert results.limit("peer-b", Kind.CONTRIBUTION, PLAN.plan_id, 3) is None
    results.add_share("peer-b", 0, bytes(own))
    assert results.limit("peer-b", Kind.CONTRIBUTION, PLAN.plan_id, 0) is None
    assert Results("peer-a").limit("peer-b", Kind.RESULT, PLAN.plan_id, 0) is None


def test_results_of_one_shard_cannot_fill_the_memory() -> None:
    results = buffers()
    taken = 0
    for value in range(100):
        if results.limit("peer-c", Kind.RESULT, PLAN.plan_id, 1) is None:
            break
        results.add_result(1, result(1, value=1.0 + value), 1, "peer-c")
        taken += 1
    assert taken == 1
    # The honest one still has its turn.
    assert results.limit("peer-b", Kind.RESULT, PLAN.plan_id, 1) is not None


def test_results_that_no_honest_reducer_makes_are_errors() -> None:
    for data in (b"", result(0)[:-1], result(0) + b"\0", result(0, (0, 1, 3)), result(0, (0,))):
        with pytest.raises(ValueError, match=r"."):
            buffers().add_result(0, data, 2, "peer-a")


def test_a_diverged_peer_still_reduces_with_the_float32_codec() -> None:
    descriptor = plan_of("peer-a", PEERS, codec="float32")
    results = buffers(value=float("nan"), descriptor=descriptor)
    results.reduce(0, (0,))


def test_another_plan_forgets_shares_and_results_and_the_same_one_under_a_new_leader_does_not() -> None:
    results = buffers()
    digest = results.add_result(0, result(0), 1, "peer-a")
    results.follow(plan_of("peer-b", PEERS, attempt=1))
    assert results.piece(digest) == result(0)
    results.follow(plan_of("peer-a", PEERS[:2]))
    assert results.piece(digest) is None


def test_the_last_committed_results_are_kept_and_older_ones_are_not() -> None:
    results, firsts = Results("peer-a"), []
    for outer_step in range(KEPT_STEPS + 2):
        descriptor = plan_of("peer-a", PEERS, outer_step=outer_step)
        results.follow(descriptor)
        digests = tuple(results.add_result(shard, result(shard, value=1.0 + outer_step), 1, None) for shard in range(3))
        results.keep(Commit(descriptor, digests), b"sealed %d" % outer_step)
        results.forget_step()
        firsts.append(digests[0])
    kept = [results.sealed_commit(outer_step) for outer_step in range(KEPT_STEPS + 2)]
    assert kept == [None, None, *(b"sealed %d" % step for step in range(2, KEPT_STEPS + 2))]
    assert [results.piece(digest) is not None for digest in firsts] == [False] * 2 + [True] * KEPT_STEPS
    assert result_digest(results.piece(firsts[-1]) or b"") == firsts[-1]
