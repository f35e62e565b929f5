"""``atoll demo``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import ConfigError

# One a second: beyond it, peers die while they start.
MOST_FAULTS_PER_HOUR = 3600


def _within(low: int, high: int) -> Callable[[int], int]:
    """A range check. Typer's own min and max push the help text of every option to the right edge."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise typer.BadParameter(f"{value} is not in the range from {low} to {high}")
        return value

    return check


def demo(
    peers: Annotated[int, typer.Option(callback=_within(1, 64), metavar="N", help="Peers at the start.")] = 4,
    outer_steps: Annotated[
        int, typer.Option(callback=_within(1, 100_000), metavar="N", help="Outer steps in the run.")
    ] = 20,
    inner_steps: Annotated[
        int, typer.Option(callback=_within(1, 100_000), metavar="N", help="Inner steps in each.")
    ] = 25,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Text file, folder or glob to train on.", show_default="Python's standard library"
        ),
    ] = None,
    kill: Annotated[bool, typer.Option(help="SIGKILL one peer in the middle of a round.")] = True,
    late_joiner: Annotated[bool, typer.Option(help="Start one more peer later.")] = True,
    seed: Annotated[
        int, typer.Option(callback=_within(0, 2**63 - 1), metavar="N", help="Seed of the initial weights.")
    ] = 0,
    storm: Annotated[
        float | None,
        typer.Option(metavar="PER_HOUR", help="Kill so many an hour, each comes back."),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Empty or new folder for logs and report.json.", show_default="temporary"),
    ] = None,
) -> int:
    """Train a small model with a swarm on this machine.

    And report on it in the end.
    """
    if storm is not None:
        if not 0 < storm <= MOST_FAULTS_PER_HOUR:
            raise ConfigError(
                f"--storm is {storm:g}, but must be above 0 and at most {MOST_FAULTS_PER_HOUR} faults an hour"
            )
        if peers < 2:
            raise ConfigError(
                "a storm leaves as many peers as a step needs, and kills none of a single one; say --peers 2"
            )
        kill = late_joiner = False
    if kill and peers < 2:
        raise ConfigError("the demo kills one of the joiners, and with --peers 1 there is none; say --no-kill")
    if late_joiner and outer_steps < 5:
        raise ConfigError("the late joiner needs a run of at least 5 outer steps to come late to; say --no-late-joiner")
    from runtime.demo.run import DemoOptions, run_demo

    return run_demo(
        DemoOptions(peers, outer_steps, inner_steps, data, kill, late_joiner, seed, workdir=workdir, storm=storm)
    )
