"""What becomes of a contribution that is in no committed step."""

import asyncio
import random
from collections.abc import Sequence

import torch
from simulation import RUN_ID, SimulatedTrainer
from torch import Tensor

from runtime.averaging.messages import Commit, Descriptor, MemberEntry
from runtime.averaging.own_state import MOST_STALE, OwnState
from runtime.averaging.payload import OwnShare

N = 64
OTHERS = MemberEntry("other", 1, None), MemberEntry("third", 1, None)


class NotingTrainer(SimulatedTrainer):
    """Notes of each step what was carried over it."""

    def __init__(self) -> None:
        super().__init__("peer", random.Random(0), 1.0, n_elements=N)
        self.missed = list[Sequence[tuple[int, int]]]()

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        self.missed.append(missed)
        super().apply_outer_step(mean_pseudo_gradient_P, missed)


def no_share(shard: int) -> OwnShare:
    raise AssertionError("nothing was sent")


def test_work_that_is_late_too_often_is_let_go_and_what_is_trained_after_it_is_carried_again() -> None:
    trainer, drops = NotingTrainer(), list[int]()

    async def miss_steps() -> None:
        own = OwnState(trainer, bytes(32), 0, (), None, True)
        for outer_step in range(2 * (MOST_STALE + 1) + 1):
            descriptor = Descriptor(
                RUN_ID, outer_step, bytes(32), bytes(32), 0, 0, "other", OTHERS, (0, N), "int8", (0,), (b"",), (0, 1), 2
            )
            mean_P, own_P = torch.zeros(N), torch.ones(N)
            await own.advance(Commit(descriptor, (bytes(32),)), mean_P, [(0, 1)], None, own_P, no_share)
            if own.stale > MOST_STALE:
                drops.append(outer_step)

    asyncio.run(miss_steps())
    carried = [[(0, N)]] * MOST_STALE + [[]]
    assert trainer.missed == [*carried, *carried, [(0, N)]]
    assert drops == [MOST_STALE, 2 * MOST_STALE + 1]
