"""What a storm has cost a run, from the logs of all its peers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from runtime.demo.logs import Event


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
    ids = {peer_ids[name]: lives[name] for name in lives}
    commits = sorted(
        (event for events in logs.values() for event in events if event["event"] == "outer_step_committed"),
        key=lambda event: event["time"],
    )
    first: dict[tuple[int, str], Event] = {}
    anchors: dict[tuple[int, str], set[str]] = defaultdict(set)
    for event in commits:
        key = event["outer_step"], event["lineage"]
        first.setdefault(key, event)
        anchors[key].add(event["anchor_sha256"])
    seen = [event for event in first.values() if since <= event["time"] <= until]
    shares, calm_rates = [], []
    all_deaths = [at for of_peer in deaths.values() for at in of_peer]
    for before, event in zip([None, *seen], seen, strict=False):
        live = [peer for peer, spans in ids.items() if any(start < event["time"] <= end for start, end in spans)]
        members = set(event["members"])
        shares.append(len(members.intersection(live)) / len(live) if live else 1.0)
        if before is not None and members.issuperset(live):
            lasted_s = event["time"] - before["time"]
            if not any(before["time"] - 1.0 <= at <= event["time"] for at in all_deaths) and lasted_s > 0:
                calm_rates.append(sum(event["weights"]) / len(members) / lasted_s)
    lived_s = sum(max(0.0, min(end, until) - max(start, since)) for spans in lives.values() for start, end in spans)
    rate = tokens_per_s if tokens_per_s is not None else median(calm_rates) if calm_rates else 0.0
    tokens = max((event["tokens"] for event in seen), default=0) - min((event["tokens"] for event in seen), default=0)
    steps = [event["outer_step"] for event in seen]
    return Toll(
        faults=sum(since <= at <= until for at in all_deaths),
        outer_steps=len(set(steps)),
        efficiency=tokens / (lived_s * rate) if lived_s and rate else 0.0,
        participation=fmean(shares) if shares else 0.0,
        back_s=_back_s(lives, deaths),
        mismatches=sum(len(hashes) > 1 for hashes in anchors.values()),
        forks=sum(steps.count(step) > 1 for step in set(steps)),
    )


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
