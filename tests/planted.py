"""Three bugs of the kind that the protocol exists to rule out, each planted into the real code by a patch.

``test_simulator.py`` holds the simulator to finding each; ``python tests/planted.py`` says which seed finds it.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from seeds import run_seed
from simulation import SimulatedTrainer

from runtime.averaging.events import Action
from runtime.averaging.following import Following
from runtime.averaging.messages import Commit, Descriptor
from runtime.averaging.step import Step


def apply_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A member that holds every shard now and then does not wait until more than half do."""
    tell, dice = Following._tell, random.Random(0)

    def tell_and_apply(self: Following, step: Step, shard: int, now: float) -> list[Action]:
        actions, mine = tell(self, step, shard, now), step.accepted
        if step.commit is not None or mine is None or mine.descriptor is not step.descriptor or dice.random() < 0.98:
            return actions
        return actions + self._commits.on_commit(step, self._peer, Commit(mine.descriptor, mine.digests), now)

    patch.setattr(Following, "_tell", tell_and_apply)


def two_leaders_with_one_attempt(patch: pytest.MonkeyPatch) -> None:
    """Peers disagree now and then on who leads, and follow a second leader in the attempt of the first."""
    elected, on_descriptor, dice = Step.elected, Following.on_descriptor, random.Random(0)

    def usurped(self: Step, *arguments: Any) -> str:
        return self.terms.peer if dice.random() < 0.02 else elected(self, *arguments)

    def follow_both(self: Following, step: Step, sender: str, descriptor: Descriptor, now: float) -> list[Action]:
        known = step.descriptor
        rival = known is not None and known.attempt == descriptor.attempt and known.leader != descriptor.leader
        if rival and step.commit is None and step.misfit(descriptor) is None:
            return self.follow(step, descriptor, now)
        return on_descriptor(self, step, sender, descriptor, now)

    patch.setattr(Step, "elected", usurped)
    patch.setattr(Following, "on_descriptor", follow_both)


def a_contribution_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """A peer now and then hands in again what a step has already taken in."""
    apply, dice = SimulatedTrainer.apply_outer_step, random.Random(0)

    def forgetful(self: SimulatedTrainer, mean_P: Any, missed: Sequence[tuple[int, int]] = ()) -> None:
        apply(self, mean_P, [(0, self.n_elements)] if dice.random() < 0.02 else missed)

    patch.setattr(SimulatedTrainer, "apply_outer_step", forgetful)


PLANTED: Sequence[Callable[[pytest.MonkeyPatch], None]] = (
    apply_before_commit,
    two_leaders_with_one_attempt,
    a_contribution_counted_twice,
)

if __name__ == "__main__":
    for bug in PLANTED:
        with pytest.MonkeyPatch.context() as patch:
            bug(patch)
            failure = next((failed for seed in range(300) if (failed := run_seed(seed).failure)), "no seed finds it")
        print(f"{bug.__name__}: {failure.splitlines()[0]}")
