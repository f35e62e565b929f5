"""The chaos scenario under 300 seeds gates every change; and the simulator itself: exact, skew-proof, able to fail."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, LAST, chaos
from planted import PLANTED
from seeds import options, run_seed, run_seeds
from simulation import simulate

# What a seed has found is a test of its own by now, by name: see averaging/test_leader.py and test_plan.py.
N_SEEDS = 300


@pytest.mark.timeout(600)
def test_every_invariant_holds_under_every_fault() -> None:
    outcomes = run_seeds(0, N_SEEDS)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    assert not failures, f"{len(failures)} of {N_SEEDS} seeds, the first:\n{failures[0]}"
    struck = sum((outcome.faults for outcome in outcomes), Counter())
    assert min(struck[kind] for kind in FAULTS) >= 10
    assert sum(outcome.forks > 0 for outcome in outcomes) >= 30


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    assert any(run_seed(seed).failure for seed in range(N_SEEDS))


def test_a_seed_is_the_same_story_whatever_the_hash_seed() -> None:
    stories = {
        subprocess.run(
            [sys.executable, Path(__file__).with_name("seeds.py"), "--first", "7", "--story"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(stories) == 1
    assert len(stories.pop().splitlines()) > 100


def test_clocks_an_hour_apart_change_nothing() -> None:
    apart, together = (simulate(1, chaos, **options(1), skew=skew) for skew in (True, False))
    assert apart.steps == together.steps
    assert apart.steps[LAST]


def test_an_endless_loop_fails_with_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.MOST_CPU_S", 0.5)

    async def spin(swarm: object) -> None:
        while True:
            hashlib.sha256(b"")

    with pytest.raises(AssertionError, match=r"seed 0: Spins"):
        simulate(0, spin, last_outer_step=1)
