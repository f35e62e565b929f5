import pytest
import torch
from lone_round import plan_of
from plain import result_digest
from round_table import N_ELEMENTS, sha

from peers.errors import ProtocolViolation
from runtime.averaging.codecs.base import encode_vector, vector_bytes
from runtime.averaging.codecs.registry import CODECS
from runtime.averaging.messages import Commit, Descriptor
from runtime.averaging.payload import Payload
from runtime.averaging.reduce import header
from runtime.averaging.results import MOST_KEPT, Results
from runtime.averaging.transfer import Kind

PEERS = ["peer-a", "peer-b", "peer-c"]
PLAN = plan_of("peer-a", PEERS)
INT8 = CODECS["int8"]


def elements(shard: int) -> int:
    return PLAN.bounds[shard + 1] - PLAN.bounds[shard]


def buffers(peer: str = "peer-a", value: float = 1.0, descriptor: Descriptor = PLAN) -> Results:
    results = Results(peer, 1)
    results.own_P = torch.full((N_ELEMENTS,), value)
    results.follow(descriptor)
    return results


def result(shard: int, contributors: tuple[int, ...] = (0, 1, 2), value: float = 1.0) -> bytes:
    return header(contributors) + bytes(encode_vector(INT8, torch.full((elements(shard),), value)))


def take(payload: Payload, data: bytes) -> None:
    payload.view[:] = data
    payload.grow(len(data))


def take_result(results: Results, shard: int, data: bytes, maker: str | None) -> bytes:
    room = results.result_from(shard)
    take(room, data)
    return results.hold(shard, room, maker)


def take_share(results: Results, sender: str, shard: int, other: Results) -> None:
    share = other.own_share(shard)
    share.has(len(share.view))
    take(results.share_from(sender, shard), bytes(share.view))


def test_peers_that_exchange_shares_hold_the_weighted_mean() -> None:
    every = [buffers(peer, value) for peer, value in zip(PEERS, (1.0, 2.0, 4.0), strict=True)]
    digests = []
    for shard, reducer in enumerate(every):
        for sender, other in zip(PEERS, every, strict=True):
            if other is not reducer:
                take_share(reducer, sender, shard, other)
        digests.append(reducer.reduce(shard, (0, 1, 2)))
        for other in every:
            if other is not reducer:
                made = bytes(reducer.result(shard, digests[-1]).view)
                assert take_result(other, shard, made, PEERS[shard]) == digests[-1]
    weights = [entry.weight for entry in PLAN.members]
    expected = (weights[0] * 1.0 + weights[1] * 2.0 + weights[2] * 4.0) / sum(weights)
    means = [one.mean(Commit(PLAN, tuple(digests))) for one in every]
    for mean_P, contributors in means:
        assert torch.equal(mean_P, means[0][0])
        assert contributors == [(0, 1, 2)] * 3
    assert float((means[0][0] - expected).abs().max()) < 1e-5


def test_a_reduction_begun_for_all_is_made_anew_for_those_who_came() -> None:
    results, other = buffers(value=1.0), buffers("peer-b", value=3.0)
    results.collect(0)
    begun = results.result_from(0)
    take_share(results, "peer-b", 0, other)
    assert results.advance(0) is None, "the third share is missing"
    digest = results.reduce(0, (0, 1))
    assert results.result(0, digest).contributors == (0, 1)
    assert begun is not results.result(0, digest)


def test_a_reduction_that_has_all_shares_after_all_stands() -> None:
    results = buffers()
    results.collect(0)
    for peer in PEERS[1:]:
        take_share(results, peer, 0, buffers(peer))
    # The round had given one of them up in the same moment.
    assert results.result(0, results.reduce(0, (0, 1))).contributors == (0, 1, 2)


def test_only_what_the_plan_needs_may_come() -> None:
    results = buffers()
    assert results.lacks("peer-b", Kind.CONTRIBUTION, 0)
    assert not results.follows(sha("other plan"))
    for sender, shard in (("peer-x", 0), ("peer-b", 3)):
        with pytest.raises(ProtocolViolation):
            results.lacks(sender, Kind.CONTRIBUTION, shard)
    room = results.share_from("peer-b", 0)
    assert len(room.view) == vector_bytes(INT8, elements(0))
    assert results.lacks("peer-b", Kind.CONTRIBUTION, 0), "it may begin again if it breaks off"
    take(room, bytes(len(room.view)))
    assert not results.lacks("peer-b", Kind.CONTRIBUTION, 0)
    assert not Results("peer-a", 1).follows(PLAN.plan_id)


def test_who_sends_nothing_is_known_from_who_is_late() -> None:
    results = buffers()
    results.collect(0)
    take_share(results, "peer-b", 0, buffers("peer-b"))
    assert results.silent(0, (0, 1)) == ["peer-c"]
    results.share_from("peer-c", 0)
    assert results.silent(0, (0, 1)) == []


def test_results_of_one_shard_cannot_fill_the_memory() -> None:
    results = buffers()
    taken = 0
    for value in range(100):
        if not results.lacks("peer-c", Kind.RESULT, 1):
            break
        take_result(results, 1, result(1, value=1.0 + value), "peer-c")
        taken += 1
    assert taken == 1
    # The honest one still has its turn, and its result is what counts if it is committed.
    assert results.lacks("peer-b", Kind.RESULT, 1)
    good = take_result(results, 1, result(1, value=7.0), "peer-b")
    digests = (take_result(results, 0, result(0), None), good, take_result(results, 2, result(2), None))
    mean_P, _ = results.mean(Commit(PLAN, digests))
    assert float(mean_P[PLAN.bounds[1] : PLAN.bounds[2]].mean()) == pytest.approx(7.0)


@pytest.mark.parametrize("late", ["begun before", "begun after"])
def test_what_comes_once_a_step_is_committed_does_not_change_its_mean(late: str) -> None:
    results, other = buffers(), result(0, value=9.0)
    room = results.result_from(0) if late == "begun before" else None
    digests = tuple(take_result(results, shard, result(shard), None) for shard in range(3))
    mean_P, _ = results.mean(Commit(PLAN, digests))
    committed_P = mean_P.clone()
    take(room or results.result_from(0), other)
    assert torch.equal(mean_P, committed_P)


def test_results_that_no_honest_reducer_makes_are_errors() -> None:
    strict = Results("peer-a", 2)
    strict.follow(PLAN)
    bad_scale = bytearray(result(0))
    bad_scale[32:36] = b"\xff\xff\xff\xff"
    for data in (result(0, (0, 1, 3)), result(0, ()), result(0, (0,)), bytes(bad_scale)):
        with pytest.raises(ValueError, match=r"contributors|scale"):
            take(strict.result_from(0), data)


def test_a_diverged_peer_still_reduces_with_the_float32_codec() -> None:
    descriptor = plan_of("peer-a", PEERS, codec="float32")
    results = buffers(value=float("nan"), descriptor=descriptor)
    results.reduce(0, (0,))


def test_another_plan_forgets_shares_and_results_and_the_same_one_under_a_new_leader_does_not() -> None:
    results = buffers()
    digest, coming = take_result(results, 0, result(0), "peer-a"), results.share_from("peer-b", 0)
    results.follow(plan_of("peer-b", PEERS, attempt=1))
    assert results.piece(digest) is not None
    assert not coming.dropped
    results.follow(plan_of("peer-a", PEERS[:2]))
    assert results.piece(digest) is None
    assert coming.dropped, "who sends it is to stop"


def test_the_last_committed_results_are_kept_and_older_ones_are_not() -> None:
    results, firsts = Results("peer-a", 1), []
    for outer_step in range(MOST_KEPT + 2):
        descriptor = plan_of("peer-a", PEERS, outer_step=outer_step)
        results.follow(descriptor)
        every = [take_result(results, shard, result(shard, value=1.0 + outer_step), None) for shard in range(3)]
        results.keep(Commit(descriptor, tuple(every)), b"sealed %d" % outer_step)
        results.forget_step()
        firsts.append(every[0])
    kept = [results.sealed_commit(outer_step) for outer_step in range(MOST_KEPT + 2)]
    assert kept == [None, None, *(b"sealed %d" % step for step in range(2, MOST_KEPT + 2))]
    pieces = [results.piece(digest) for digest in firsts]
    assert [piece is not None for piece in pieces] == [False] * 2 + [True] * MOST_KEPT
    assert pieces[-1] is not None
    assert result_digest(bytes(pieces[-1].view)) == firsts[-1]
    # Who has left that history leads nobody there.
    results.forget_past()
    assert [results.sealed_commit(outer_step) for outer_step in range(MOST_KEPT + 2)] == [None] * (MOST_KEPT + 2)
    assert results.piece(firsts[-1]) is None
