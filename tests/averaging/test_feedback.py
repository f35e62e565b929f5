"""What a codec loses is not lost: it is in a later contribution."""

import pytest
import torch

from runtime.averaging.codecs.base import CHUNK, decode_vector
from runtime.averaging.codecs.registry import CODECS
from runtime.averaging.feedback import Feedback
from runtime.averaging.payload import OwnShare

N = CHUNK + 4096 * 3 + 17
BOUNDS = (0, 4096 * 2, N)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_what_was_sent_and_what_is_held_are_the_sum_of_all_pseudo_gradients(name: str) -> None:
    codec, feedback = CODECS[name], Feedback()
    generator = torch.Generator().manual_seed(0)
    made_P, sent_P = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    missed_P = torch.zeros(N)
    for step in range(12):
        fresh_P = torch.randn(N, generator=generator) * 10.0 ** (step % 3)
        made_P += fresh_P
        # What missed a step is in the local parameters still, and so in the next pseudo-gradient.
        own_P = feedback.contribution(fresh_P + missed_P)
        shares = [OwnShare(codec, own_P[BOUNDS[shard] : BOUNDS[shard + 1]]) for shard in range(2)]
        included = [0] if step == 4 else [0, 1]
        for share in shares:
            share.has(len(share.view))
        error = feedback.settle(codec, own_P, BOUNDS, {shard: shares[shard] for shard in included})
        assert (error > 0) == codec.lossy
        missed_P = torch.zeros(N)
        for shard in range(2):
            here = slice(BOUNDS[shard], BOUNDS[shard + 1])
            if shard in included:
                sent_P[here] += decode_vector(codec, shares[shard].view, here.stop - here.start)
            else:
                missed_P[here] = (made_P - sent_P)[here].float() - feedback.contribution(torch.zeros(N))[here]
    held_P = feedback.contribution(torch.zeros(N)).double()
    assert float((sent_P + held_P - made_P).norm() / made_P.norm()) < 1e-5


def test_the_error_of_a_round_is_the_relative_one_of_what_was_sent() -> None:
    codec, own_P = CODECS["int8"], torch.randn(N, generator=torch.Generator().manual_seed(1))
    share = OwnShare(codec, own_P)
    share.has(len(share.view))
    error = Feedback().settle(codec, own_P, (0, N), {0: share})
    expected = float((decode_vector(codec, share.view, N) - own_P).norm() / own_P.norm())
    assert error == pytest.approx(expected, rel=1e-4)
    assert 0.007 < error < 0.011


def test_a_peer_that_goes_on_from_another_state_holds_nothing_of_the_old_one() -> None:
    codec, own_P, feedback = CODECS["fp4"], torch.ones(N) * 0.3, Feedback()
    own_P[0] = 1.0
    share = OwnShare(codec, own_P)
    share.has(len(share.view))
    feedback.settle(codec, own_P, (0, N), {0: share})
    assert feedback.contribution(torch.zeros(N)).abs().max() > 0
    feedback.forget()
    assert feedback.contribution(torch.zeros(N)).abs().max() == 0


def test_an_exact_round_after_a_lossy_one_sends_what_was_held_and_nothing_twice() -> None:
    feedback, sent_P, made_P = Feedback(), torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for step, name in enumerate(("fp4", "float32", "int8", "float32", "float32")):
        codec, fresh_P = CODECS[name], torch.randn(N, generator=torch.Generator().manual_seed(step))
        made_P += fresh_P
        own_P = feedback.contribution(fresh_P)
        share = OwnShare(codec, own_P)
        share.has(len(share.view))
        feedback.settle(codec, own_P, (0, N), {0: share})
        sent_P += decode_vector(codec, share.view, N)
        if name == "float32":
            assert float(feedback.contribution(torch.zeros(N)).abs().max()) == 0.0
    assert float((sent_P - made_P).norm() / made_P.norm()) < 1e-6
