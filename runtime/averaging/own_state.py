"""This peer's state of the run: what the trainer has, and the lineage, tokens and group that belong to it."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.averaging.arithmetic import in_thread
from runtime.averaging.claims import Claim
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.feedback import Feedback
from runtime.averaging.lineage import next_lineage
from runtime.averaging.messages import Commit, MemberEntry
from runtime.averaging.offers import Snapshot, snapshot_of
from runtime.averaging.payload import OwnShare
from runtime.averaging.phases import Trainer
from runtime.pieces import PieceList
from runtime.state import State

KEPT_CLAIMS = 1024
# Work that has missed so many outer steps in a row is let go: it was done from an anchor that is long gone, and would
# weigh more than what all others have done since.
MOST_STALE = 4


@dataclass(frozen=True)
class Present:
    """What belongs to the vectors as they are at one moment."""

    outer_step: int
    lineage: bytes
    tokens: int
    group: tuple[str, ...]
    pieces: PieceList | None
    """None until somebody has asked."""


class OwnState:
    """All of it changes together, by a committed outer step or by a member's state, and in no other way.

    It does so beside the event loop, from which the state before is seen until the one after is whole.
    ``claims`` has what this peer says of its last outer steps, by outer step; ``established`` whether the run may go on
    from this state. A peer that has only fresh weights waits for a member.
    """

    def __init__(
        self,
        trainer: Trainer,
        lineage: bytes,
        tokens: int,
        group: tuple[str, ...],
        lost_P: Tensor | None,
        established: bool,
    ) -> None:
        self.established = established
        self.feedback = Feedback(lost_P)
        self.claims: dict[int, Claim] = {}
        self._trainer = trainer
        # For whoever copies the state in another thread.
        self._changing = threading.Lock()
        # Nobody is offered a state before this peer itself has said that it has it.
        self._stepping = asyncio.Lock()
        self.present = Present(trainer.outer_step, lineage, tokens, group, None)
        """Replaced as a whole, also from another thread: who wants more than one thing of it looks once."""
        self.stale = 0
        """Outer steps in a row without some of this peer's contribution, since what it carried was let go last."""

    @property
    def outer_step(self) -> int:
        return self.present.outer_step

    @property
    def lineage(self) -> bytes:
        return self.present.lineage

    @property
    def tokens(self) -> int:
        return self.present.tokens

    @property
    def pieces(self) -> PieceList:
        """Of the present state; made once, since it takes a while."""
        return self._with_pieces()[1]

    def claim(self) -> Claim:
        """What this peer says of its state."""
        present, pieces = self._with_pieces()
        return Claim(present.outer_step, present.lineage, pieces.digest, present.tokens, present.group)

    def _with_pieces(self) -> tuple[Present, PieceList]:
        """Both of one moment."""
        present = self.present
        if present.pieces is None:
            pieces = self._pieces_now()
            self.present = replace(present, pieces=pieces)
            return present, pieces
        return present, present.pieces

    def _pieces_now(self) -> PieceList:
        return PieceList.of(self._trainer.anchor_P, self._trainer.momentum_P)

    def stand_by(self) -> Claim:
        """From now on this is what the peer says that the state of the outer step is."""
        self.claims[self.outer_step] = claim = self.claim()
        self.claims.pop(self.outer_step - KEPT_CLAIMS, None)
        return claim

    def standing(self) -> Claim | None:
        """What it stood by last: None while it only has something on its disk."""
        return next(reversed(self.claims.values()), None)

    async def snapshot(self) -> Snapshot:
        """A copy that stays as it is."""

        def work() -> Snapshot:
            with self._changing:
                copies = self._trainer.anchor_P.clone(), self._trainer.momentum_P.clone()
                return snapshot_of(self.claim(), self.pieces, *copies)

        # Not in the thread in which the next contribution is made: no round waits for a joiner.
        async with self._stepping:
            return await asyncio.to_thread(work)

    def copy(self, memory: Sequence[Tensor | None] = (None, None, None)) -> State:
        """All of it at one moment, from any thread.

        Args: memory is for the three vectors of it, float32 (P,); where there is none, they get their own.
        """
        with self._changing:
            present = self._trainer.anchor_P, self._trainer.momentum_P, self.feedback.lost_P
            anchor_P, momentum_P, lost_P = map(_copied, present, memory)
            assert anchor_P is not None
            assert momentum_P is not None
            now = self.present
            return State(now.outer_step, now.lineage, now.tokens, now.group, anchor_P, momentum_P, lost_P)

    async def advance(
        self,
        commit: Commit,
        mean_P: Tensor,
        contributors: Sequence[Sequence[int]],
        me: int | None,
        own_P: Tensor | None,
        own_share: Callable[[int], OwnShare],
    ) -> tuple[list[MemberEntry], float | None]:
        """Take the outer step; the members whose contributions are in it, and the quantisation error of this peer's.

        Args:
            mean_P: the committed mean pseudo-gradient, float32 (P,).
            contributors: for each shard the members whose contributions are in its mean, by their index.
            me: this peer's index, None if it is not a member. What is missing of its contribution is carried over,
                unless it was too often.
            own_P, own_share: its contribution, float32 (P,) or None, and a shard of it as it was sent.
        """
        descriptor = commit.descriptor
        included = [shard for shard in range(descriptor.n_shards) if me in contributors[shard]]
        carried = 0 if self.stale > MOST_STALE else self.stale
        # A part that misses each step is as stale as a whole that does.
        self.stale = 0 if len(included) == descriptor.n_shards else carried + 1
        missed = [
            (descriptor.bounds[shard], descriptor.bounds[shard + 1])
            for shard in range(descriptor.n_shards)
            if shard not in included and self.stale <= MOST_STALE
        ]
        taken = Counter[int]()
        for shard, indices in enumerate(contributors):
            taken.update(dict.fromkeys(indices, descriptor.bounds[shard + 1] - descriptor.bounds[shard]))
        members = [descriptor.members[index] for index in sorted(taken)]
        group = tuple(entry.peer for entry in members)
        # The rest of a contribution is in a later one, and its tokens count there.
        n_elements = descriptor.bounds[-1]
        counted = (descriptor.members[index].weight * n // n_elements for index, n in taken.items())
        tokens = self.tokens + sum(counted)
        # Encoded by now as a rule. Here it is done where pushes do it.
        sent = {shard: own_share(shard) for shard in included if own_P is not None}
        for share in sent.values():
            share.has(len(share.view))
        lineage = next_lineage(
            self.lineage, descriptor.outer_step, descriptor.state, descriptor.plan_id, commit.digests
        )

        def work() -> float | None:
            error = None
            with self._changing:
                self._trainer.apply_outer_step(mean_P, missed)
                if own_P is not None and sent:
                    codec = codec_named(descriptor.codec)
                    error = round(self.feedback.settle(codec, own_P, descriptor.bounds, sent), 6)
                if own_P is None:
                    self.feedback.spent([descriptor.bounds[shard : shard + 2] for shard in included])
                self.present = Present(self._trainer.outer_step, lineage, tokens, group, self._pieces_now())
            return error

        async with self._stepping:
            return members, await in_thread(work)

    async def load(self, state: State) -> None:
        """Go over to a member's state. What this peer had trained is gone, and what the codec lost of it."""

        def work() -> None:
            with self._changing:
                self._trainer.load_state(state.outer_step, state.anchor_P, state.momentum_P)
                self.stale = 0
                self.feedback.forget()
                pieces = self._pieces_now()
                self.present = Present(state.outer_step, state.lineage, state.tokens, state.group, pieces)

        async with self._stepping:
            await in_thread(work)


def _copied(vector_P: Tensor | None, memory_P: Tensor | None) -> Tensor | None:
    if vector_P is None:
        return None
    return (torch.empty_like(vector_P) if memory_P is None else memory_P).copy_(vector_P)
