"""``atoll plan``: what a run will take of its peers, before there is one."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from runtime.config import shown
from runtime.errors import ConfigError
from runtime.monitor.words import size_words, time_words
from runtime.runfile import load_run_file

LEAST_MBIT, MOST_MBIT = 0.1, 100_000
# Of a group: more are in a run than in one outer step.
MOST_PEERS = 256
MOST_STEP_S = 3600

Up = Annotated[str, typer.Option(metavar="MBIT", help="Uploads in Mbit/s: of all, or a list.")]
Down = Annotated[str, typer.Option(metavar="MBIT", help="Downloads in Mbit/s: of all, or a list.")]
StepS = Annotated[float | None, typer.Option(metavar="S", help="Seconds of an inner step.", show_default="not known")]


def plan(
    file: Annotated[Path, typer.Argument(help="A run file, as atoll init writes it.", metavar="FILE")],
    peers: Annotated[int, typer.Option(metavar="N", help="Peers in the run.")] = 4,
    up: Up = "20",
    down: Down = "100",
    step_s: StepS = None,
    auxiliary: Annotated[bool, typer.Option("--auxiliary", help="Of a peer that trains nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> int:
    """Reckon what a run takes: memory, disk, bytes, time.

    Starts nothing.
    """
    config = load_run_file(file)
    if not 1 <= peers <= MOST_PEERS:
        raise ConfigError(f"--peers is {peers}, but must be from 1 to {MOST_PEERS}")
    ups, downs = _rates("--up", up, peers), _rates("--down", down, peers)
    if step_s is not None and not (math.isfinite(step_s) and 0 < step_s <= MOST_STEP_S):
        raise ConfigError(f"--step-s is {step_s:g}, but must be above 0 and at most {MOST_STEP_S}")
    from runtime.planning import make_plan

    made = make_plan(config, ups, downs, step_s, trains=not auxiliary)
    if as_json:
        content = {
            "name": config.name,
            "peers": peers,
            "up_bytes_per_s": ups,
            "down_bytes_per_s": downs,
            "step_s": step_s,
            "auxiliary": auxiliary,
            "figures": {figure.key: figure.value for figure in made.figures},
            "formulas": {figure.key: figure.formula for figure in made.figures},
            "warnings": made.warnings,
        }
        print(json.dumps(content))
        return 0
    links = f"{up} Mbit/s up and {down} down" if "," not in up + down else f"up {up} and down {down} Mbit/s"
    print(f"{config.name}: {peers} peer{'s' if peers > 1 else ''}, {links}\n")
    table = Table("what", Column("figure", justify="right"), "how", box=None, pad_edge=False)
    for figure in made.figures:
        table.add_row(figure.title, _figure_words(figure.key, figure.value), figure.formula)
    # Nothing is cut off where the output is not a terminal.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)
    for warning in made.warnings:
        print(f"\nnote: {warning}")
    return 0


def _rates(option: str, text: str, n_peers: int) -> list[float]:
    """Bytes a second of each peer, from Mbit/s: one number for all, or one for each.

    Raises: ConfigError.
    """
    try:
        rates = [float(one) for one in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(math.isfinite(rate) and LEAST_MBIT <= rate <= MOST_MBIT for rate in rates):
        words = f"Mbit/s from {LEAST_MBIT:g} to {MOST_MBIT}, as 20, or 20,50,5 for three peers"
        raise ConfigError(f"{option} is {shown(text)}, but must be {words}")
    if len(rates) not in (1, n_peers):
        raise ConfigError(f"{option} has {len(rates)} links for {n_peers} peers: give one for all, or one for each")
    return [rate * 1e6 / 8 for rate in rates * (n_peers if len(rates) == 1 else 1)]


def _figure_words(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return size_words(value)
    if key.endswith("_s"):
        return f"{1000 * value:.3g} ms" if value < 0.1 else time_words(value)
    if key == "utilisation_ratio":
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}x" if key.endswith("_ratio") else f"{value:,.0f}"
