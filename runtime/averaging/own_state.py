"""This peer's state of the run: what the trainer has, and the lineage, tokens and group that belong to it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.averaging.claims import Claim, State
from runtime.averaging.lineage import next_lineage
from runtime.averaging.messages import Commit, MemberEntry
from runtime.averaging.offers import Snapshot, snapshot_of
from runtime.averaging.phases import Trainer
from runtime.pieces import PieceList

KEPT_CLAIMS = 1024


def copied(vector_P: Tensor, memory_P: Tensor | None) -> Tensor:
    return (torch.empty_like(vector_P) if memory_P is None else memory_P).copy_(vector_P)


class OwnState:
    """All of it changes together, by a committed outer step or by a member's state, and in no other way.

    ``claims`` has what this peer says of its last outer steps, by outer step.
    """

    def __init__(self, trainer: Trainer, lineage: bytes, tokens: int, group: tuple[str, ...]) -> None:
        self.lineage, self.tokens, self.group = lineage, tokens, group
        self.claims: dict[int, Claim] = {}
        self._trainer = trainer
        self._pieces: PieceList | None = None
        self._claim: Claim | None = None

    @property
    def outer_step(self) -> int:
        return self._trainer.outer_step

    def pieces(self) -> PieceList:
        """Of the present state; made once, since it takes a while."""
        if self._pieces is None:
            self._pieces = PieceList.of(self._trainer.anchor_P, self._trainer.momentum_P)
        return self._pieces

    def claim(self) -> Claim:
        """What this peer says of its state."""
        if self._claim is None:
            self._claim = Claim(self.outer_step, self.lineage, self.pieces().digest, self.tokens, self.group)
        return self._claim

    def stand_by(self) -> Claim:
        """From now on this is what the peer says that the state of the outer step is."""
        self.claims[self.outer_step] = claim = self.claim()
        self.claims.pop(self.outer_step - KEPT_CLAIMS, None)
        return claim

    def snapshot(self) -> Snapshot:
        """A copy that stays as it is."""
        anchor_P, momentum_P = self._trainer.anchor_P.clone(), self._trainer.momentum_P.clone()
        return snapshot_of(self.claims[self.outer_step], self.pieces(), anchor_P, momentum_P)

    def copy(self, memory: Sequence[Tensor | None] = (None, None)) -> State:
        """All of it, in ``memory``, float32 (P,) for the anchor and the momentum; where there is none, in its own."""
        anchor_P, momentum_P = map(copied, (self._trainer.anchor_P, self._trainer.momentum_P), memory)
        return State(self.outer_step, self.lineage, self.tokens, self.group, anchor_P, momentum_P)

    def advance(
        self, commit: Commit, mean_P: Tensor, contributors: Sequence[Sequence[int]], me: int | None
    ) -> list[MemberEntry]:
        """Take the outer step; the members whose contributions are in it.

        Args:
            mean_P: the committed mean pseudo-gradient, float32 (P,).
            contributors: for each shard the members whose contributions are in its mean, by their index.
            me: this peer's index, None if it is not a member. What is missing of its contribution is carried over.
        """
        descriptor = commit.descriptor
        missed = [
            (descriptor.bounds[shard], descriptor.bounds[shard + 1])
            for shard in range(descriptor.n_shards)
            if me not in contributors[shard]
        ]
        self._trainer.apply_outer_step(mean_P, missed)
        self.lineage = next_lineage(
            self.lineage, descriptor.outer_step, descriptor.state, descriptor.plan_id, commit.digests
        )
        included = [descriptor.members[index] for index in sorted({one for shard in contributors for one in shard})]
        self.tokens += sum(entry.weight for entry in included)
        self.group = tuple(entry.peer for entry in included)
        self._claim = self._pieces = None
        return included

    def load(self, state: State) -> None:
        """Go over to a member's state."""
        self._trainer.load_state(state.outer_step, state.anchor_P, state.momentum_P)
        self.lineage, self.tokens, self.group = state.lineage, state.tokens, state.group
        self._claim = self._pieces = None
