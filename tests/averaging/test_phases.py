"""The inner phases between two outer steps: what ends one, and what comes of it."""

import asyncio
import threading
from dataclasses import dataclass

import pytest

from runtime.averaging.phases import InnerPhases, InnerWork


@dataclass(frozen=True)
class Work:
    tokens: int
    loss: float = 1.0


class CountingTrainer:
    """Ten tokens an inner step, four of them in a phase."""

    def __init__(self) -> None:
        self.done = 0

    async def train(self, stop: threading.Event) -> Work:
        while self.done < 4 and not stop.is_set():
            self.done += 1
            await asyncio.sleep(0)
        return Work(10 * self.done)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_phase_that_is_stopped_hands_in_what_it_did_and_one_that_did_nothing_goes_on(steps_before: int) -> None:
    async def main() -> list[int]:
        trainer, handed_in = CountingTrainer(), list[InnerWork]()

        async def done(work: InnerWork) -> None:
            handed_in.append(work)

        phases = InnerPhases(trainer, done)  # type: ignore[arg-type]
        running = asyncio.create_task(phases.run())
        phases.go()
        # The first turn begins the phase with an inner step; with none, the stop comes before that.
        for _ in range(steps_before):
            await asyncio.sleep(0)
        phases.stop()
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
        return [work.tokens for work in handed_in]

    assert asyncio.run(main()) == [40 if not steps_before else 10 * steps_before]


def test_a_phase_is_not_over_before_its_contribution_is_made() -> None:
    async def main() -> list[str]:
        told, makes, may_end = list[str](), asyncio.Event(), asyncio.Event()

        async def done(work: InnerWork) -> None:
            makes.set()
            await may_end.wait()
            told.append("made")

        phases = InnerPhases(CountingTrainer(), done)  # type: ignore[arg-type]
        running = asyncio.create_task(phases.run())
        phases.go()
        await makes.wait()
        pausing = asyncio.create_task(phases.pause())
        await asyncio.wait([pausing], timeout=0.05)
        assert not pausing.done()
        assert not phases.are_still
        may_end.set()
        await pausing
        running.cancel()
        return told

    assert asyncio.run(main()) == ["made"]
