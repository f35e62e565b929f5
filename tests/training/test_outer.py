import numpy as np
import pytest
import torch

from runtime.training.outer import SLICE_ELEMENTS, apply_outer_step, outer_momentum


def random_vectors(n_elements: int, seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n_elements, generator=generator) for _ in range(count)]


def test_the_momentum_rises_linearly_and_stays() -> None:
    ramp = [outer_momentum(step, 0.9, 4) for step in (0, 1, 2, 4, 5, 100)]
    assert ramp == pytest.approx([0.0, 0.225, 0.45, 0.9, 0.9, 0.9])


def test_without_a_ramp_the_momentum_is_constant() -> None:
    assert [outer_momentum(step, 0.9, 0) for step in (0, 1)] == [0.9, 0.9]


# Around the slice length, so that a lost or doubled element at a seam would show.
@pytest.mark.parametrize("n_elements", [1, 7, SLICE_ELEMENTS - 1, SLICE_ELEMENTS, 2 * SLICE_ELEMENTS + 13])
@pytest.mark.parametrize("seed", range(3))
def test_every_operation_rounds_once(n_elements: int, seed: int) -> None:
    anchor_P, momentum_P, g_P = random_vectors(n_elements, seed)
    anchor, m, g = (tensor.numpy().copy() for tensor in (anchor_P, momentum_P, g_P))
    lr, mu = np.float32(0.7), np.float32(0.9 * 7 / 20)
    for _ in range(3):
        m = m * mu
        m = m + g
        step = m * mu
        step = step + g
        step = step * lr
        anchor = anchor - step
        apply_outer_step(anchor_P, momentum_P, g_P, learning_rate=0.7, momentum=0.9 * 7 / 20)
    assert anchor.dtype == m.dtype == np.float32
    assert anchor_P.numpy().tobytes() == anchor.tobytes()
    assert momentum_P.numpy().tobytes() == m.tobytes()


def test_it_is_sgd_with_nesterov_momentum() -> None:
    anchor_P, first_g_P, second_g_P = random_vectors(1000, 0)
    momentum_P = torch.zeros(1000)
    reference_P = torch.nn.Parameter(anchor_P.clone())
    sgd = torch.optim.SGD([reference_P], lr=0.7, momentum=0.9, nesterov=True)
    for g_P in (first_g_P, second_g_P, first_g_P):
        reference_P.grad = g_P
        sgd.step()
        apply_outer_step(anchor_P, momentum_P, g_P, learning_rate=0.7, momentum=0.9)
    assert torch.allclose(anchor_P, reference_P.detach(), rtol=1e-5, atol=1e-5)


def test_the_pseudo_gradient_is_not_changed() -> None:
    anchor_P, momentum_P, g_P = random_vectors(100, 0)
    before = g_P.clone()
    apply_outer_step(anchor_P, momentum_P, g_P, learning_rate=0.7, momentum=0.9)
    assert torch.equal(g_P, before)


def test_learning_rate_one_without_momentum_is_plain_averaging() -> None:
    anchor_P = torch.tensor([1.0, 2.0])
    local_P = torch.tensor([0.5, 4.0])
    apply_outer_step(anchor_P, torch.zeros(2), anchor_P - local_P, learning_rate=1.0, momentum=0.0)
    assert torch.equal(anchor_P, local_P)


@pytest.mark.parametrize("wrong_P", [torch.zeros(9), torch.zeros(1, 10), torch.zeros(10, dtype=torch.float64)])
def test_what_does_not_fit_changes_nothing(wrong_P: torch.Tensor) -> None:
    anchor_P, momentum_P = random_vectors(10, 0, count=2)
    before = (anchor_P.clone(), momentum_P.clone())
    with pytest.raises(ValueError, match="expected float32"):
        apply_outer_step(anchor_P, momentum_P, wrong_P, learning_rate=0.7, momentum=0.9)
    assert torch.equal(anchor_P, before[0])
    assert torch.equal(momentum_P, before[1])
