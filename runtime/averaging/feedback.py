"""Error feedback: what the codec lost of a contribution goes into the next one (1-bit SGD, EF-SGD arXiv:1901.09847).

The sum of all that was sent and of what is still held is the sum of all pseudo-gradients.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.averaging.codecs.base import Codec, chunk_range, chunks, scratch
from runtime.averaging.payload import Payload


class Feedback:
    """One peer's; four bytes a parameter with a codec that loses something, none with one that does not."""

    def __init__(self, lost_P: Tensor | None = None) -> None:
        self._lost_P = lost_P

    @property
    def lost_P(self) -> Tensor | None:
        """Float32 (P,), None before anything was lost."""
        return self._lost_P

    def contribution(self, pseudo_gradient_P: Tensor) -> Tensor:
        """The pseudo-gradient, float32 (P,), with what is still held added in place."""
        return pseudo_gradient_P if self._lost_P is None else pseudo_gradient_P.add_(self._lost_P)

    def settle(
        self,
        codec: Codec,
        own_P: Tensor,
        bounds: Sequence[int],
        sent: Mapping[int, Payload],
    ) -> float:
        """A contribution is in a commit: hold what was lost of it.

        Args:
            own_P: the contribution, float32 (P,).
            sent: by shard, the contribution as it was sent, of those whose mean it is in. What is held of the others
                stays.
        Returns: the relative L2 error of what was sent, the quantisation error.
        """
        if self._lost_P is None:
            if not codec.lossy:
                return 0.0
            self._lost_P = torch.zeros_like(own_P)
        lost_sum = own_sum = 0.0
        for shard, share in sent.items():
            for start, stop in chunks(bounds[shard + 1] - bounds[shard]):
                where = chunk_range(codec, start, stop)
                sent_P = scratch("sent", stop - start)
                codec.decode(share.view[where], sent_P)
                here = slice(bounds[shard] + start, bounds[shard] + stop)
                lost_P = torch.sub(own_P[here], sent_P, out=self._lost_P[here])
                lost_sum += float(torch.dot(lost_P, lost_P))
                own_sum += float(torch.dot(own_P[here], own_P[here]))
        return math.sqrt(lost_sum / own_sum) if own_sum else 0.0

    def spent(self, ranges: Sequence[Sequence[int]]) -> None:
        """What was held of the elements [start, stop) went with a contribution of this peer's that died with it."""
        if self._lost_P is not None:
            for start, stop in ranges:
                self._lost_P[start:stop] = 0.0

    def forget(self) -> None:
        """This peer goes on from another state: what it had trained is gone, and this with it."""
        self._lost_P = None
