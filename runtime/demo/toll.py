"""What a storm has cost a run, from the logs of all its peers."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from runtime.log import Event, commits


@dataclass(frozen=True)
class Toll:
    """What a storm has cost, from all peers' logs."""

    faults: int
    outer_steps: int
    efficiency: float
    """Committed tokens over those that the members could have trained while they lived."""
    participation: float
    """Of the members that live when a step is committed, the share whose contribution is in it; mean over steps."""
    back_s: float | None
    """Median of the seconds from a kill to being a member again, the pause before the start included."""
    mismatches: int
    """Outer steps of one lineage that two peers hold with different anchors."""
    forks: int
    """Outer steps that were committed with more than one lineage."""


def toll(
    logs: Mapping[str, Sequence[Event]],
    deaths: Mapping[str, Sequence[float]],
    peer_ids: Mapping[str, str],
    since: float,
    until: float,
    tokens_per_s: float | None = None,
) -> Toll:
    """Weigh the time from ``since`` to ``until`` (Unix).

    Args: tokens_per_s is what a member trains where nothing holds it up; None takes the median of the steps that no
        fault fell into and that had everyone.
    """
    lives = {name: _lives(events, deaths.get(name, ()), until) for name, events in logs.items()}
    committed = [event for events in logs.values() for event in commits(events)]
    seen = [event for event in _first_of_each(committed) if since <= event["time"] <= until]
    live = [{peer_ids[name] for name in lives if _lived(lives[name], event["time"])} for event in seen]
    all_deaths = [at for of_peer in deaths.values() for at in of_peer]
    lived_s = sum(max(0.0, min(end, until) - max(start, since)) for spans in lives.values() for start, end in spans)
    rate = _calm_rate(seen, live, all_deaths) if tokens_per_s is None else tokens_per_s
    tokens = [event["tokens"] for event in seen]
    shares = [
        len(there.intersection(event["members"])) / len(there) for event, there in zip(seen, live, strict=True) if there
    ]
    histories = Counter(event["outer_step"] for event in seen)
    return Toll(
        faults=sum(since <= at <= until for at in all_deaths),
        outer_steps=len(histories),
        efficiency=(max(tokens) - min(tokens)) / (lived_s * rate) if tokens and lived_s and rate else 0.0,
        participation=fmean(shares) if shares else 0.0,
        back_s=_back_s(lives, deaths),
        mismatches=mismatches(committed),
        forks=sum(n_histories > 1 for n_histories in histories.values()),
    )


def mismatches(committed: Sequence[Event]) -> int:
    """Outer steps of one lineage that are held with different anchors."""
    anchors: dict[tuple[int, str], set[str]] = defaultdict(set)
    for event in committed:
        anchors[event["outer_step"], event["lineage"]].add(event["anchor_sha256"])
    return sum(len(hashes) > 1 for hashes in anchors.values())


def _first_of_each(committed: Sequence[Event]) -> list[Event]:
    """Of each outer step of each history the first that a peer logged, in the order of time."""
    first: dict[tuple[int, str], Event] = {}
    for event in sorted(committed, key=lambda event: event["time"]):
        first.setdefault((event["outer_step"], event["lineage"]), event)
    return list(first.values())


def _calm_rate(seen: Sequence[Event], live: Sequence[set[str]], all_deaths: Sequence[float]) -> float:
    """Tokens a second and member, median of the steps that had everyone and that nobody died in or just before."""
    rates = []
    for before, event, there in zip(seen, seen[1:], live[1:], strict=False):
        lasted_s = event["time"] - before["time"]
        disturbed = any(before["time"] - 1.0 <= at <= event["time"] for at in all_deaths)
        if lasted_s > 0 and not disturbed and there.issubset(event["members"]):
            rates.append(sum(event["weights"]) / len(event["members"]) / lasted_s)
    return median(rates) if rates else 0.0


def _lived(spans: Sequence[tuple[float, float]], at: float) -> bool:
    return any(start < at <= end for start, end in spans)


def _lives(events: Sequence[Event], deaths: Sequence[float], until: float) -> list[tuple[float, float]]:
    """From when to when (Unix) a peer was a member of the run."""
    spans, after = [], 0.0
    for death in (*deaths, until):
        begun = [event["time"] for event in events if _is_membership(event) and after < event["time"] <= death]
        if begun:
            spans.append((min(begun), death))
        after = death
    return spans


def _is_membership(event: Event) -> bool:
    return event["event"] in ("joined", "outer_step_committed")


def _back_s(lives: Mapping[str, Sequence[tuple[float, float]]], deaths: Mapping[str, Sequence[float]]) -> float | None:
    waits = []
    for name, times in deaths.items():
        for death in times:
            back = [start for start, _ in lives[name] if start > death]
            if back and not any(death < later < min(back) for later in times):
                waits.append(min(back) - death)
    return median(waits) if waits else None
