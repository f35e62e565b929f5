"""float32 as it is, and float16 with the range of what it can hold."""

import torch
from torch import Tensor

from runtime.averaging.codecs.base import Buffer, check_length, floats

MOST_FLOAT16 = 65_504.0


class Float32:
    """Four bytes an element, exact."""

    name, lossy = "float32", False

    def encoded_bytes(self, n_elements: int) -> int:
        return 4 * n_elements

    def encode(self, chunk_P: Tensor, out: Buffer) -> None:
        out_P = floats(out, chunk_P.numel()).copy_(chunk_P)
        # A sum is finite unless a part is not, or it overflows, which the second look tells apart.
        if not torch.isfinite(out_P.sum()):
            out_P.nan_to_num_(0.0, 0.0, 0.0)

    def check(self, payload: Buffer, n_elements: int) -> None:
        check_length(payload, self.encoded_bytes(n_elements))
        chunk_P = floats(payload, n_elements)
        if not torch.isfinite(chunk_P.sum()) and not torch.isfinite(chunk_P).all():
            raise ValueError("a value is not finite")

    def decode(self, payload: Buffer, out_P: Tensor) -> None:
        out_P.copy_(floats(payload, out_P.numel()))


class Float16:
    """Two bytes an element; what is beyond 65 504 becomes that."""

    name, lossy = "float16", True

    def encoded_bytes(self, n_elements: int) -> int:
        return 2 * n_elements

    def encode(self, chunk_P: Tensor, out: Buffer) -> None:
        clamped_P = torch.clamp(chunk_P, -MOST_FLOAT16, MOST_FLOAT16).nan_to_num_(0.0)
        torch.frombuffer(out, dtype=torch.float16).copy_(clamped_P)

    def check(self, payload: Buffer, n_elements: int) -> None:
        check_length(payload, self.encoded_bytes(n_elements))
        if not torch.isfinite(torch.frombuffer(payload, dtype=torch.float16)).all():
            raise ValueError("a value is not finite")

    def decode(self, payload: Buffer, out_P: Tensor) -> None:
        out_P.copy_(torch.frombuffer(payload, dtype=torch.float16))
