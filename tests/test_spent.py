"""Where a peer's time goes, as it tells it, in whole simulated swarms."""

import asyncio

import pytest
from simulation import Swarm, simulate

LAST = 6


def test_a_peer_is_busy_in_its_phases_and_blocked_while_it_waits_for_a_slower_one() -> None:
    async def fast_and_slow(swarm: Swarm) -> None:
        fast = swarm.start("fast", established=True, phase_s=1.0)
        slow = swarm.start("slow", phase_s=2.0)
        await swarm.until(lambda: slow.trainer.outer_step >= 1)
        began, before = swarm.loop.time(), (fast.averager.spent_s, slow.averager.spent_s)
        await swarm.until(lambda: fast.trainer.outer_step == LAST - 1)
        passed_s = swarm.loop.time() - began
        for peer, (busy_before_s, blocked_before_s) in zip((fast, slow), before, strict=True):
            busy_s, blocked_s = peer.averager.spent_s
            assert busy_s - busy_before_s + blocked_s - blocked_before_s == pytest.approx(passed_s)
        fast_busy, slow_busy = (peer.averager.spent_s[0] / sum(peer.averager.spent_s) for peer in (fast, slow))
        assert fast_busy < 0.9 < slow_busy
        # It is time that passes, whatever happens meanwhile.
        busy_s, blocked_s = fast.averager.spent_s
        await asyncio.sleep(0.1)
        assert sum(fast.averager.spent_s) == pytest.approx(busy_s + blocked_s + 0.1)
        await swarm.finish(300)

    simulate(3, fast_and_slow, last_outer_step=LAST, quorum=2)


def test_who_trains_nothing_is_never_busy_and_nothing_is_told_before_the_first_phase() -> None:
    async def keeper(swarm: Swarm) -> None:
        swarm.start("p0", established=True)
        auxiliary = swarm.start("aux", trains=False)
        await asyncio.sleep(0)
        assert auxiliary.averager.spent_s == (0.0, 0.0)
        await swarm.until(lambda: auxiliary.trainer.outer_step >= 2)
        busy_s, blocked_s = auxiliary.averager.spent_s
        assert busy_s == pytest.approx(0.0, abs=1e-6)
        assert blocked_s > 1.0
        await swarm.finish(300)

    simulate(1, keeper, last_outer_step=LAST, quorum=1)
