"""The state of a run after an outer step: what its peers agree on, download from each other, and keep on disk.

Shape letters: P elements of all parameters together.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class State:
    """Anchor and outer momentum, float32 (P,) on the CPU, at the start of ``outer_step``."""

    outer_step: int
    lineage: bytes
    """The hash chain over all committed outer steps."""
    tokens: int
    """Committed by the lineage so far."""
    group: tuple[str, ...]
    """Whose contributions are in the last committed step, sorted."""
    anchor_P: Tensor
    momentum_P: Tensor
    lost_P: Tensor | None = None
    """Of this peer's contributions, what the codec lost and the next one makes up for; nobody else's business."""

    @property
    def position(self) -> tuple[int, int, bytes]:
        """As of a ``Status``."""
        return self.tokens, self.outer_step, self.lineage
