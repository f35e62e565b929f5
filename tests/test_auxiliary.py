"""Peers that train nothing, in whole simulated swarms: they reduce, vote, keep the state, and hold nobody up."""

import asyncio

import pytest
from simulation import Swarm, simulate

from peers.messages import Role
from runtime.averaging import events

LAST = 8


async def two_and_one(swarm: Swarm) -> None:
    swarm.start("p0", established=True)
    swarm.start("p1")
    auxiliary = swarm.start("aux", trains=False)
    reduced, handle = set[int](), auxiliary.averager.machine.handle

    def noted(event: events.Event, now: float) -> list[events.Action]:
        actions = handle(event, now)
        reduced.update(action.descriptor.outer_step for action in actions if isinstance(action, events.Reduce))
        return actions

    auxiliary.averager.machine.handle = noted  # type: ignore[method-assign]
    began = swarm.loop.time()
    await swarm.finish(300)
    assert len(reduced) >= LAST - 2, "it reduces from the step on that it is in"
    assert auxiliary.trainer.outer_step == LAST
    assert (swarm.loop.time() - began) / LAST < 2.0 * 1.3 + 0.5


@pytest.mark.parametrize("seed", range(5))
def test_it_reduces_and_is_no_contributor_and_nobody_waits_for_it(seed: int) -> None:
    swarm = simulate(seed, two_and_one, last_outer_step=LAST, quorum=2)
    trainers = {swarm._identities[name].peer for name in ("p0", "p1")}
    assert all(set(members) <= trainers for members in swarm.participation.values())
    assert sorted(swarm.steps) == list(range(1, LAST + 1))
    assert any("aux" in held for held in swarm.steps.values())


def test_alone_it_takes_no_step_and_keeps_the_state_until_somebody_comes() -> None:
    async def keeper(swarm: Swarm) -> None:
        swarm.start("p0", established=True)
        auxiliary = swarm.start("aux", trains=False)
        await swarm.until(lambda: auxiliary.trainer.outer_step >= 2)
        await swarm.crash("p0")
        at = auxiliary.trainer.outer_step
        await asyncio.sleep(60)
        assert auxiliary.trainer.outer_step <= at + 1, "only a commit that was under way"
        at = auxiliary.trainer.outer_step
        late = swarm.start("late")
        await swarm.until(lambda: late.averager.established)
        assert late.trainer.outer_step >= at
        assert auxiliary.mesh.members()[late.peer].role in (Role.JOINING, Role.MEMBER)
        await swarm.finish(300)

    swarm = simulate(1, keeper, last_outer_step=LAST, quorum=1)
    assert sorted(swarm.steps) == list(range(1, LAST + 1))


def test_as_few_trainers_as_the_quorum_are_not_made_up_for_by_auxiliaries() -> None:
    async def too_few(swarm: Swarm) -> None:
        swarm.start("p0", established=True)
        for name in ("a0", "a1", "a2"):
            swarm.start(name, trains=False)
        await asyncio.sleep(60)
        assert not swarm.steps
        swarm.start("p1")
        await swarm.finish(300)

    swarm = simulate(2, too_few, last_outer_step=LAST, quorum=2)
    assert all(len(members) == 2 for members in swarm.participation.values())
