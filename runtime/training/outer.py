"""The outer optimizer: Nesterov momentum on the committed mean pseudo-gradient.

Every peer must get the same bits from the same committed bytes, on any IEEE-754 machine. So each operation rounds
once: separate ``mul`` and ``add`` on CPU float32, and never ``alpha=``, ``addcmul`` or ``lerp``, which a processor
may fuse into one rounding.

Shape letters: P elements of all parameters together.
"""

import torch
from torch import Tensor

# 256 KiB of float32: the one temporary stays in the processor's second-level cache.
SLICE_ELEMENTS = 1 << 16


def outer_momentum(outer_step: int, momentum: float, ramp_steps: int) -> float:
    """The momentum of the outer step that leads from ``outer_step`` to the next.

    Linear from 0 at outer step 0 to ``momentum`` at ``ramp_steps``, constant from there. With the constant 0.9 of
    DiLoCo (arXiv:2311.08105), 20 outer steps end worse than one peer alone.
    """
    if outer_step >= ramp_steps:
        return momentum
    return momentum * outer_step / ramp_steps


def apply_outer_step(
    anchor_P: Tensor, momentum_P: Tensor, pseudo_gradient_P: Tensor, *, learning_rate: float, momentum: float
) -> None:
    """In place: ``m <- mu m + g``, then ``anchor <- anchor - lr (g + mu m)``, as torch's SGD(nesterov=True).

    ``pseudo_gradient_P`` is the committed mean of ``anchor - local``; it is subtracted, as a gradient is. All three
    are float32 (P,) on the CPU; both scalars are rounded to float32 first.

    Raises: ValueError if one is not; nothing is changed then.
    """
    for tensor in (anchor_P, momentum_P, pseudo_gradient_P):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.shape != (anchor_P.numel(),):
            raise ValueError(
                f"expected float32 ({anchor_P.numel()},) on cpu, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"
            )
    lr = torch.tensor(learning_rate, dtype=torch.float32)
    mu = torch.tensor(momentum, dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, anchor_P.numel(), SLICE_ELEMENTS):
            piece = slice(start, start + SLICE_ELEMENTS)
            g, m = pseudo_gradient_P[piece], momentum_P[piece]
            m.mul_(mu).add_(g)
            anchor_P[piece].sub_(m.mul(mu).add_(g).mul_(lr))
