"""From the peers' event logs to the demo's report and its table. Nothing here starts, waits or measures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from rich.console import Group
from rich.table import Table

from runtime.config import RunConfig
from runtime.demo.toll import Toll
from runtime.log import Event
from runtime.log import commits as committed_in

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Happening:
    """What the demo did to a peer."""

    peer: str
    outer_step: int
    """Outer steps that were complete; for a kill, the one whose round was under way."""
    mid_round: bool = False


@dataclass(frozen=True)
class Demo:
    """What the logs do not say. Peers are known by their folder: ``peer-1``."""

    config: RunConfig
    n_parameters: int
    context: int
    """Tokens in a sequence."""
    peer_ids: Mapping[str, str]
    """Folder name to peer id, in the order in which they were started."""
    wall_s: float
    killed: Happening | None = None
    late: Happening | None = None
    problems: tuple[str, ...] = ()
    """What went wrong with the processes themselves."""
    down: frozenset[str] = frozenset()
    """Peers that were killed and not alive again when the run ended."""
    storm: Toll | None = None


@dataclass(frozen=True)
class Round:
    """One committed outer step, as its members logged it."""

    outer_step: int
    attempt: int
    members: tuple[str, ...]
    """Whose contribution is in."""
    live: int
    """Members that were there when it was committed, as those who committed it saw it."""
    tokens: int
    loss: float | None
    """Mean training loss of the members; None if nobody had one."""
    round_s: float | None
    """Of the member that took longest; None if only peers that fetched the result logged it."""
    forming_s: float | None
    """From the last member's Ready to its Begin: the others' waiting for it is not the group's forming."""


@dataclass(frozen=True)
class PeerTotals:
    peer: str
    last_outer_step: int
    bytes_sent: int
    bytes_received: int
    state_bytes_sent: int


@dataclass(frozen=True)
class Report:
    outer_steps: int
    """Outer steps committed, from the first without a gap."""
    val_loss_start: float | None
    """Nats per byte, before the first outer step."""
    val_loss_end: float | None
    """Nats per byte, of the final state."""
    bytes_ratio: float | None
    """Bytes of data-parallel float32 training of the same inner steps, over the bytes that all peers sent in rounds."""
    peers: Mapping[str, PeerTotals]
    anchors_equal: bool
    rounds: Sequence[Round]
    wall_s: float
    group_forming_s_median: float | None
    killed_peer: Happening | None
    late_joiner: Happening | None
    participation: Mapping[str, Sequence[int]]
    """Outer steps that have the peer's contribution."""
    held: Mapping[str, int]
    """How many outer steps the peer has committed: it was there, in the group or not."""
    participation_mean: float | None
    """Members of a step over those that were there; mean over the steps."""
    bytes_sent: int
    bytes_data_parallel: int
    storm: Toll | None
    problems: Sequence[str]
    """Why the exit code is 1; empty if it is 0."""


def build_report(logs: Mapping[str, Sequence[Event]], demo: Demo) -> Report:
    """``logs`` has every peer's events under its folder name, in the order in which they were written."""
    commits = _commits_by_step(logs)
    names = {peer_id: name for name, peer_id in demo.peer_ids.items()}
    rounds = [_round(step, commits[step], names) for step in sorted(commits)]
    participation = {name: tuple(done.outer_step for done in rounds if name in done.members) for name in demo.peer_ids}
    totals = {name: _totals(name, logs.get(name, ())) for name in demo.peer_ids}
    bytes_sent = sum(total.bytes_sent for total in totals.values())
    bytes_data_parallel = round(sum(_data_parallel_bytes(done, demo) for done in rounds))
    outer_steps = next(step for step in range(len(rounds) + 1) if step + 1 not in commits)
    anchors_equal = bool(commits) and all(
        _agree(of_step, may_fork=demo.storm is not None and step != max(commits)) for step, of_step in commits.items()
    )
    val_loss_start = _val_loss(logs, 0)
    val_loss_end = _val_loss(logs, demo.config.outer.steps)
    return Report(
        outer_steps=outer_steps,
        val_loss_start=val_loss_start,
        val_loss_end=val_loss_end,
        bytes_ratio=bytes_data_parallel / bytes_sent if bytes_sent and bytes_data_parallel else None,
        peers=totals,
        anchors_equal=anchors_equal,
        rounds=rounds,
        wall_s=demo.wall_s,
        group_forming_s_median=_median(done.forming_s for done in rounds),
        killed_peer=demo.killed,
        late_joiner=demo.late,
        participation=participation,
        held={name: len({event["outer_step"] for event in committed_in(logs.get(name, ()))}) for name in demo.peer_ids},
        participation_mean=fmean(len(done.members) / done.live for done in rounds) if rounds else None,
        bytes_sent=bytes_sent,
        bytes_data_parallel=bytes_data_parallel,
        storm=demo.storm,
        problems=[*demo.problems, *_problems(demo, outer_steps, totals, anchors_equal, val_loss_start, val_loss_end)],
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _commits_by_step(logs: Mapping[str, Sequence[Event]]) -> dict[int, list[Event]]:
    commits: dict[int, list[Event]] = {}
    for events in logs.values():
        for event in committed_in(events):
            commits.setdefault(event["outer_step"], []).append(event)
    return commits


def _agree(commits: Sequence[Event], may_fork: bool) -> bool:
    """Whether peers that committed the same outer step, or of a fork the same history, hold the same parameters."""
    held = {(commit["lineage"], commit["anchor_sha256"]) for commit in commits}
    return len(held) == (len({lineage for lineage, _ in held}) if may_fork else 1)


def _round(outer_step: int, commits: Sequence[Event], names: Mapping[str, str]) -> Round:
    def measured(key: str) -> list[float]:
        # A peer that fetched the result without being in the group logs null.
        return [commit[key] for commit in commits if commit[key] is not None]

    return Round(
        outer_step=outer_step,
        attempt=commits[0]["attempt"],
        members=tuple(sorted(names.get(member, member) for member in commits[0]["members"])),
        live=max(len(commits[0]["members"]), *(commit["live"] for commit in commits)),
        tokens=sum(commits[0]["weights"]),
        loss=commits[0]["loss"],
        round_s=max(measured("round_s"), default=None),
        forming_s=min(measured("forming_s"), default=None),
    )


def _totals(name: str, events: Sequence[Event]) -> PeerTotals:
    def total(key: str) -> int:
        # A counter only grows, up to the last line that a process wrote, and begins at 0 in the next one.
        counts = [event[key] for event in events if key in event]
        return sum(count for count, following in pairwise([*counts, 0]) if following < count)

    committed = [event["outer_step"] for event in committed_in(events)]
    return PeerTotals(
        name, max(committed, default=0), total("bytes_sent"), total("bytes_received"), total("state_bytes_sent")
    )


def _data_parallel_bytes(done: Round, demo: Demo) -> float:
    """What the same inner steps cost with a float32 ring all-reduce of the gradients after every one of them.

    Each of n members sends 2 (n - 1) / n of the gradient at an inner step. The tokens say how many inner steps there
    were, since a late joiner's first contribution stands for fewer than the others'.
    """
    n_members = len(done.members)
    inner_steps_of_all = done.tokens / (demo.config.inner.batch * demo.context)
    return inner_steps_of_all * 2 * (n_members - 1) / n_members * FLOAT32_BYTES * demo.n_parameters


def _val_loss(logs: Mapping[str, Sequence[Event]], outer_step: int) -> float | None:
    """Mean over the peers that measured a number: with ``--data`` they all hold the same files, and the same state."""
    measured = [
        event["val_loss"]
        for events in logs.values()
        for event in events
        if event["event"] == "validated" and event["outer_step"] == outer_step and math.isfinite(event["val_loss"])
    ]
    return fmean(measured) if measured else None


def _problems(
    demo: Demo,
    outer_steps: int,
    totals: Mapping[str, PeerTotals],
    anchors_equal: bool,
    val_loss_start: float | None,
    val_loss_end: float | None,
) -> list[str]:
    wanted = demo.config.outer.steps
    problems = []
    if outer_steps < wanted:
        problems.append(f"only {outer_steps} of {wanted} outer steps were committed")
    behind = [total for name, total in totals.items() if total.last_outer_step < wanted and name not in demo.down]
    problems += [f"{total.peer} ended at outer step {total.last_outer_step} of {wanted}" for total in behind]
    if outer_steps and not anchors_equal:
        problems.append("the anchors differ: peers that committed the same outer step hold different parameters")
    if val_loss_start is None or val_loss_end is None:
        problems.append("there is no validation loss of the start, or none of the end")
    elif not val_loss_end < val_loss_start:
        problems.append(
            f"the validation loss did not fall: {val_loss_start:.3f} at the start, {val_loss_end:.3f} at the end"
        )
    return problems


def render_report(report: Report) -> Group:
    """Two tables that fit 80 columns: who took part in what, and how the run went."""
    who = Table(title="Who took part", title_justify="left")
    for header in ("peer", "in outer steps", "in", "there", "sent", "received", ""):
        who.add_column(header, justify="left" if header in ("peer", "in outer steps", "") else "right")
    for name, total in report.peers.items():
        who.add_row(
            name,
            ranges(report.participation[name]),
            str(len(report.participation[name])),
            str(report.held[name]),
            byte_words(total.bytes_sent),
            byte_words(total.bytes_received),
            _fate(name, report),
        )
    how = Table(title="How it went", title_justify="left", show_header=False)
    for label, value in _figures(report):
        how.add_row(label, value)
    return Group(who, how)


def _fate(name: str, report: Report) -> str:
    if report.killed_peer and report.killed_peer.peer == name:
        when = "in" if report.killed_peer.mid_round else "between rounds, before"
        return f"killed {when} step {report.killed_peer.outer_step}"
    if report.late_joiner and report.late_joiner.peer == name:
        return f"joined after step {report.late_joiner.outer_step}"
    return ""


def _figures(report: Report) -> list[tuple[str, str]]:
    round_s = sorted(done.round_s for done in report.rounds if done.round_s is not None)
    figures = [
        ("outer steps", str(report.outer_steps)),
        ("validation loss", f"{_number(report.val_loss_start)} -> {_number(report.val_loss_end)} nats/byte"),
        ("all anchors bit-equal", "yes" if report.anchors_equal else "NO"),
        ("participation", f"{report.participation_mean or 0.0:.0%} of the peers that were there, in the mean step"),
        (
            "bytes sent",
            f"{byte_words(report.bytes_sent)}; data-parallel float32 sends {byte_words(report.bytes_data_parallel)}"
            + (f", {report.bytes_ratio:.0f} times as much" if report.bytes_ratio else ""),
        ),
    ]
    if round_s:
        figures.append(("round time", f"median {median(round_s):.3f} s, longest {round_s[-1]:.3f} s"))
        figures.append(("group forming", f"median {_number(report.group_forming_s_median)} s"))
    if storm := report.storm:
        back = "" if storm.back_s is None else f", each back after {storm.back_s:.1f} s in the median"
        figures.append(("storm", f"{storm.faults} kills{back}; {storm.forks} outer steps on a fork"))
        figures.append(("step efficiency", f"{storm.efficiency:.0%} of what the living train in a median calm step"))
    return [*figures, ("wall time", f"{report.wall_s:.1f} s")]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: ``1-8, 12-20``; an empty string for none."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def byte_words(n_bytes: int) -> str:
    """A number of bytes with three digits and a decimal unit, as network rates have it."""
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.3g} {unit}"
