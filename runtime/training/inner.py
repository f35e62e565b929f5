"""The inner optimizer, and what only one peer has of its training: that peer goes on with it bit for bit.

Shape letters: P elements of all parameters together.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime.config import InnerSection
from runtime.training.model import flatten, unflatten_into


@dataclass(frozen=True)
class InnerState:
    """Between two inner steps. Vectors are float32 (P,) on the CPU."""

    moment_P: Tensor
    """AdamW's first moments; its second are ``square_P``."""
    square_P: Tensor
    local_P: Tensor | None
    """The local parameters, None where they are the anchor."""
    generator: Tensor
    """Of the generator that draws the batches; uint8."""
    optimizer_steps: int
    inner_steps: int
    """Since the anchor."""
    tokens: int
    seconds: float
    losses: tuple[float, ...]
    last_mean_loss: float


def inner_learning_rate(step: int, total_steps: int, section: InnerSection) -> float:
    """The rate of inner step ``step`` (from 0): linear warm-up, then a cosine down to ``final_ratio`` of the peak."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    progress = min((step - section.warmup_steps) / max(total_steps - section.warmup_steps, 1), 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.learning_rate * (section.final_ratio + (1.0 - section.final_ratio) * cosine)


def inner_optimizer(model: nn.Module, inner: InnerSection) -> torch.optim.AdamW:
    """AdamW with the betas of DiLoCo (arXiv:2311.08105); matrices decay, biases and norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": inner.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=inner.learning_rate,
        betas=(0.9, 0.95),
    )


def copy_moments(optimizer: torch.optim.AdamW, model: nn.Module, moment_P: Tensor, square_P: Tensor) -> int:
    """Copy AdamW's moments to two float32 (P,) on the CPU; the optimizer steps that are behind them."""
    parameters = list(model.parameters())
    # None of them has any before the first step, and all of them after it, unless a device had no room for them.
    if any("exp_avg_sq" not in optimizer.state.get(one, {}) for one in parameters):
        moment_P.zero_()
        square_P.zero_()
        return 0
    flatten((optimizer.state[one]["exp_avg"] for one in parameters), moment_P)
    flatten((optimizer.state[one]["exp_avg_sq"] for one in parameters), square_P)
    return int(optimizer.state[parameters[0]]["step"])


def load_moments(optimizer: torch.optim.AdamW, model: nn.Module, state: InnerState) -> None:
    """Go on from moments that ``copy_moments`` has copied."""
    optimizer.state.clear()
    if not state.optimizer_steps:
        return
    parameters = list(model.parameters())
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.optimizer_steps)),
            "exp_avg": torch.empty_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.empty_like(parameter, requires_grad=False),
        }
    unflatten_into((optimizer.state[one]["exp_avg"] for one in parameters), state.moment_P)
    unflatten_into((optimizer.state[one]["exp_avg_sq"] for one in parameters), state.square_P)
