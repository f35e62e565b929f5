"""What a peer holds in a round, byte for byte as docs/wire.md has it."""

import tracemalloc

import pytest
import torch
from round_table import RUN_ID

from runtime.averaging import payload, results
from runtime.averaging.buffers import Buffers
from runtime.averaging.codecs.base import encode_vector
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.feedback import Feedback
from runtime.averaging.messages import Commit, Descriptor, MemberEntry
from runtime.averaging.payload import Payload
from runtime.averaging.reduce import header
from runtime.averaging.results import MOST_KEPT, Results

INT8 = codec_named("int8")
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


def test_a_peer_holds_what_the_docs_say_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded bytes as Python's allocator counts them; float32 vectors by their size."""
    # What other tests have left in the common ones would be used again, and not be counted.
    pool = Buffers()
    for module in (payload, results):
        monkeypatch.setattr(module, "BUFFERS", pool)
    share = bytes(encode_vector(INT8, torch.ones(N // 4)))
    tracemalloc.start()
    me, feedback, held = Results(PEERS[0], 4), Feedback(), list[tuple[float, float]]()
    for outer_step in range(MOST_KEPT + 3):
        descriptor = plan(outer_step)
        me.own_P = feedback.contribution(torch.full((N,), 1.0 + outer_step))
        me.follow(descriptor)
        me.collect(0)
        for peer in PEERS[1:]:
            take(me.share_from(peer, 0), share)
        digests = [me.reduce(0, (0, 1, 2, 3))]
        for shard in range(1, 4):
            own = me.own_share(shard)
            own.has(len(own.view))
            room = me.result_from(shard)
            # Another result in each: equal ones are kept once.
            value = 10.0 * outer_step + shard
            take(room, header(range(4)) + encode_vector(INT8, torch.full((N // 4,), value)))
            digests.append(me.hold(shard, room, PEERS[shard]))
        in_round = tracemalloc.get_traced_memory()[0] / N
        commit = Commit(descriptor, tuple(digests))
        mean_P, _ = me.mean(commit)
        feedback.settle(INT8, me.own_P, descriptor.bounds, {shard: me.own_share(shard) for shard in range(4)})
        me.keep(commit, b"sealed")
        del own, room
        me.forget_step()
        held.append((in_round, tracemalloc.get_traced_memory()[0] / N))
        assert mean_P.numel() == N
    tracemalloc.stop()
    # The results of the last steps; own shares, others' shares, results. In memory that is used again, in sizes of
    # sixteenths, so that a little more is taken than is used.
    used = MOST_KEPT + 1 + 0.75 + 1
    assert used <= held[-1][0] <= used * 17 / 16 + 0.1
    assert held[-1][1] == pytest.approx(held[-1][0], rel=0.01)
    assert held[-1] == pytest.approx(held[-2], rel=0.01), "no round takes more than the one before"
    assert me.own_P is None
    assert len(me._mean_P) == N


def take(payload: Payload, data: bytes) -> None:
    payload.view[:] = data
    payload.grow(len(data))
