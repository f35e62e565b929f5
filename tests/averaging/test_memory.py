"""What a peer holds in a round, byte for byte as docs/wire.md has it."""

import tracemalloc

import pytest
import torch
from round_table import RUN_ID

from runtime.averaging.codecs.base import encode_vector
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.feedback import Feedback
from runtime.averaging.messages import Commit, Descriptor, MemberEntry
from runtime.averaging.reduce import header
from runtime.averaging.results import KEPT_STEPS, Results

N, PEERS = 1 << 22, ("peer-a", "peer-b", "peer-c", "peer-d")


def plan(outer_step: int) -> Descriptor:
    quarter, n = N // 4, len(PEERS)
    members = tuple(MemberEntry(peer, 1, None) for peer in PEERS)
    bounds = tuple(range(0, N + 1, quarter))
    every, nothing = tuple(range(n)), (b"",) * n
    digest = bytes(32)
    return Descriptor(
        RUN_ID, outer_step, digest, digest, 0, 0, PEERS[0], members, bounds, "int8", every, nothing, every, n
    )


def test_a_peer_holds_what_the_docs_say_and_when() -> None:
    """Encoded bytes as Python's allocator counts them; float32 vectors by their size."""
    others = [Results(peer, 4) for peer in PEERS[1:]]
    for other in others:
        other.own_P = torch.ones(N)
    tracemalloc.start()
    me, feedback, held = Results(PEERS[0], 4), Feedback(), list[tuple[float, float]]()
    for outer_step in range(KEPT_STEPS + 2):
        descriptor = plan(outer_step)
        me.own_P = feedback.contribution(torch.ones(N))
        me.follow(descriptor)
        me.collect(0)
        for other, peer in zip(others, PEERS[1:], strict=True):
            other.follow(descriptor)
            share = other.own_share(0)
            share.has(len(share.view))
            room = me.share_from(peer, 0)
            room.view[:] = share.view
            room.grow(len(room.view))
            other.forget_step()
            other.own_P = torch.ones(N)
            del share
        digests = [me.reduce(0, (0, 1, 2, 3))]
        for shard in range(1, 4):
            own = me.own_share(shard)
            own.has(len(own.view))
            result = me.result_from(shard)
            result.view[:] = header(range(4)) + encode_vector(codec_named("int8"), torch.full((N // 4,), shard + 1.0))
            result.grow(len(result.view))
            digests.append(me.hold(shard, result, PEERS[shard]))
        in_round = tracemalloc.get_traced_memory()[0] / N
        commit = Commit(descriptor, tuple(digests))
        mean_P, _ = me.mean(commit)
        feedback.settle(codec_named("int8"), me.own_P, descriptor.bounds, range(4), me.own_share)
        me.keep(commit, b"sealed")
        me.forget_step()
        del result, own, room
        held.append((in_round, tracemalloc.get_traced_memory()[0] / N))
        assert mean_P.numel() == N
    tracemalloc.stop()
    in_round, between = held[-1]
    assert between == pytest.approx(KEPT_STEPS, rel=0.02), "the results of the last four steps"
    assert in_round == pytest.approx(KEPT_STEPS + 1 + 0.75 + 1, rel=0.02), "own shares, others' shares, results"
    assert me.own_P is None
    assert len(me._mean_P) == N
