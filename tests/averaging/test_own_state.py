"""What becomes of a contribution that is in no committed step."""

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch
from simulation import RUN_ID, SimulatedTrainer
from torch import Tensor

from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.messages import Commit, Descriptor, MemberEntry
from runtime.averaging.own_state import MOST_STALE, OwnState
from runtime.averaging.payload import OwnShare

N = 64
MEMBERS = MemberEntry("other", 1, None), MemberEntry("peer", 1, None)


class NotingTrainer(SimulatedTrainer):
    """Notes of each step what was carried over it."""

    def __init__(self) -> None:
        super().__init__("peer", random.Random(0), 1.0, n_elements=N)
        self.missed = list[Sequence[tuple[int, int]]]()

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        self.missed.append(missed)
        super().apply_outer_step(mean_pseudo_gradient_P, missed)


def test_what_was_held_is_not_sent_again_where_it_went_with_a_contribution_of_a_process_that_died() -> None:
    async def catch_up() -> Tensor | None:
        own = OwnState(NotingTrainer(), bytes(32), 0, (), torch.ones(N), True)
        descriptor = Descriptor(
            *(RUN_ID, 0, bytes(32), bytes(32), 0, 0, "other", MEMBERS, (0, N // 2, N)),
            *("int8", (0, 0), (b"", b""), (0, 1), 2),
        )
        commit = Commit(descriptor, (bytes(32), bytes(32)))
        await own.advance(commit, torch.zeros(N), [(0, 1), (0,)], 1, None, dict[int, OwnShare]().__getitem__)
        return own.feedback.lost_P

    held_P = asyncio.run(catch_up())
    assert held_P is not None
    assert held_P.tolist() == [0.0] * (N // 2) + [1.0] * (N // 2)


@pytest.mark.parametrize("part", [False, True], ids=["whole", "a part"])
def test_work_that_is_late_too_often_is_let_go_and_what_is_trained_after_it_is_carried_again(part: bool) -> None:
    trainer, drops, half = NotingTrainer(), list[int](), N // 2

    async def miss_steps() -> None:
        own = OwnState(trainer, bytes(32), 0, (), None, True)
        for outer_step in range(2 * (MOST_STALE + 1) + 1):
            descriptor = Descriptor(
                *(RUN_ID, outer_step, bytes(32), bytes(32), 0, 0, "other", MEMBERS, (0, half, N)),
                *("int8", (0, 0), (b"", b""), (0, 1), 2),
            )
            contributors = [(0, 1), (0,)] if part else [(0,), (0,)]
            shares = [OwnShare(codec_named("int8"), torch.ones(half)) for _ in range(2)]
            commit = Commit(descriptor, (bytes(32), bytes(32)))
            await own.advance(commit, torch.zeros(N), contributors, 1, torch.ones(N), shares.__getitem__)
            if own.stale > MOST_STALE:
                drops.append(outer_step)

    asyncio.run(miss_steps())
    late = [(half, N)] if part else [(0, half), (half, N)]
    carried = [late] * MOST_STALE + [[]]
    assert trainer.missed == [*carried, *carried, late]
    assert drops == [MOST_STALE, 2 * MOST_STALE + 1]
