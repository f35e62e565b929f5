"""Runs the chaos scenario under many seeds, in processes: ``make sim SEEDS=20000``."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from faults import LAST, chaos
from simulation import Swarm, simulate

SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Outcome:
    seed: int
    failure: str = ""
    """The error and the end of the story; empty if every invariant held."""
    commits: int = 0
    forks: int = 0
    """Outer steps that two histories have."""
    faults: Counter[str] = field(default_factory=Counter)


def options(seed: int) -> dict[str, object]:
    """Every fifth run stops its minorities, some send float32 or what the leader chooses; all else is the scenario."""
    return {
        "last_outer_step": LAST,
        "on_partition": "stop" if seed % 5 == 4 else "fork",
        "codec": {6: "float32", 3: "auto"}.get(seed % 7, "int8"),
    }


def run_seed(seed: int) -> Outcome:
    try:
        swarm: Swarm = simulate(seed, chaos, **options(seed))
    except AssertionError as error:
        return Outcome(seed, str(error))
    finally:
        gc.collect()
    commits = sum(len(held) for held in swarm.steps.values())
    forks = sum(len(lineages) > 1 for lineages in swarm.ledger.steps.values())
    return Outcome(seed, commits=commits, forks=forks, faults=Counter(swarm.faults))


def _prepare() -> None:
    torch.set_num_threads(1)
    # Between two seeds, and then without all that was imported.
    gc.disable()
    gc.freeze()


def run_seeds(
    first: int, n_seeds: int, progress: Callable[[list[Outcome]], None] = lambda outcomes: None
) -> list[Outcome]:
    """The outcome of every seed, in order, from as many processes as there are cores."""
    outcomes = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), _prepare) as pool:
        for outcome in pool.imap_unordered(run_seed, range(first, first + n_seeds), chunksize=1):
            outcomes.append(outcome)
            progress(outcomes)
    return sorted(outcomes, key=lambda outcome: outcome.seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--story", action="store_true", help="print the whole story of the first seed and end")
    arguments = parser.parse_args()
    if arguments.story:
        _prepare()
        print("\n".join(simulate(arguments.first, chaos, **options(arguments.first)).story))
        return 0
    began = time.monotonic()

    def show(outcomes: list[Outcome]) -> None:
        seconds, done = time.monotonic() - began, len(outcomes)
        failed = sum(bool(one.failure) for one in outcomes)
        if outcomes[-1].failure:
            print(f"\n{outcomes[-1].failure.splitlines()[0][:200]}", file=sys.stderr, flush=True)
        left_s = seconds / done * (arguments.seeds - done)
        line = f"{done} of {arguments.seeds} seeds, {failed} failed, {done / seconds:.1f} a second, {left_s:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="", file=sys.stderr)
        elif done % max(arguments.seeds // 20, 1) == 0:
            print(line, file=sys.stderr, flush=True)

    outcomes = run_seeds(arguments.first, arguments.seeds, show)
    failed = [outcome for outcome in outcomes if outcome.failure]
    faults = sum((outcome.faults for outcome in outcomes), Counter())
    print(
        f"\n{len(outcomes)} seeds of {LAST} outer steps in {time.monotonic() - began:.0f} s: "
        f"{sum(outcome.commits for outcome in outcomes)} commits, {faults.total()} faults, "
        f"{sum(outcome.forks > 0 for outcome in outcomes)} runs that forked and healed, {len(failed)} failed"
    )
    print(", ".join(f"{kind} {count}" for kind, count in faults.most_common()))
    for outcome in failed[:SHOWN_FAILURES]:
        print(outcome.failure.splitlines()[0][:200])
    if failed:
        print(failed[0].failure)
        print(f"again: {Path(sys.argv[0]).name} --first {failed[0].seed} --seeds 1")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
