"""Four bits an element: a sign and a power of two below the block's maximum (E3M0, arXiv:2501.18512)."""

import torch
from torch import Tensor

from runtime.averaging.codecs.base import (
    Buffer,
    check_length,
    check_scales,
    floats,
    octets,
    scratch,
    write_scales,
)

# Relative L2 error 20 % on Gaussian data and 18 % on Student-t(3); one scale of float32 makes it 4.125 bits an element.
FP4_BLOCK = 256
# By code: 2^-k for k = 0..7, then the same negated. There is no zero: the error goes into the next contribution.
_VALUES = torch.tensor([2.0**-k for k in range(8)] + [-(2.0**-k) for k in range(8)])


class Fp4:
    """``x ~ +-scale * 2^-k``, k in 0..7, scale = max |x| of a block of 256; scales first, then two elements a byte."""

    name, lossy = "fp4", True

    def encoded_bytes(self, n_elements: int) -> int:
        return 4 * -(-n_elements // FP4_BLOCK) + -(-n_elements // 2)

    def encode(self, chunk_P: Tensor, out: Buffer) -> None:
        n, n_blocks = chunk_P.numel(), -(-chunk_P.numel() // FP4_BLOCK)
        work_P = scratch("fp4", n_blocks * FP4_BLOCK)
        work_P[:n].copy_(chunk_P)
        work_P[n:].zero_()
        work_NK = work_P.view(n_blocks, FP4_BLOCK)
        inverse_N1, finite = write_scales(work_NK.abs().amax(1), 1.0, out)
        work_NK.mul_(inverse_N1)
        if not finite:
            work_NK.nan_to_num_(0.0, 0.0, 0.0)
        # To the nearest power of two: half a binade more, then the exponent of what that gives.
        exponent_P = ((work_P.abs().view(torch.int32) + 0x400000) >> 23) - 127
        code_P = exponent_P.neg_().clamp_(0, 7) + 8 * (work_P < 0)
        pair_P = code_P.view(-1, 2).to(torch.uint8)
        packed_P = pair_P[:, 0] + 16 * pair_P[:, 1]
        octets(out, 4 * n_blocks).copy_(packed_P[: -(-n // 2)])

    def check(self, payload: Buffer, n_elements: int) -> None:
        check_length(payload, self.encoded_bytes(n_elements))
        check_scales(payload, -(-n_elements // FP4_BLOCK))

    def decode(self, payload: Buffer, out_P: Tensor) -> None:
        n, n_blocks = out_P.numel(), -(-out_P.numel() // FP4_BLOCK)
        packed_P = octets(payload, 4 * n_blocks)
        codes_P2 = torch.stack((packed_P & 15, packed_P >> 4), 1).int()
        torch.index_select(_VALUES, 0, codes_P2.view(-1)[:n], out=out_P)
        n_whole = n // FP4_BLOCK
        scale_N = floats(payload, n_blocks)
        out_P[: n_whole * FP4_BLOCK].view(n_whole, FP4_BLOCK).mul_(scale_N[:n_whole, None])
        if n_whole < n_blocks:
            out_P[n_whole * FP4_BLOCK :].mul_(scale_N[-1])
