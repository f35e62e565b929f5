"""How a peer's own progress reads, in as many columns as there are: figures to words, no terminal."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from peers.wire import short
from runtime.log import Event, parse_events
from runtime.rotation import Tail

BAR_COLUMNS = 12
GAP = "  "
# Members beyond these are counted, not named.
MOST_NAMED = 3
# Below this no transfer is going: the rest is control.
LEAST_BYTES_PER_S = 50_000
# Rates are means over so many looks.
LOOKS = 5


@dataclass
class Given:
    """What this peer has contributed to the run."""

    tokens: int = 0
    outer_steps: int = 0

    def add(self, event: Event) -> None:
        """Take in an event of this peer's own log; most have nothing to do with it."""
        if event["event"] == "outer_step_committed" and event["peer"] in event["members"]:
            self.tokens += event["weights"][event["members"].index(event["peer"])]
            self.outer_steps += 1


def given_before(log: Path) -> Given:
    """What an event log knows of; it may be long, and is read line by line."""
    given = Given()
    with suppress(OSError):
        for lines in Tail(log).pieces():
            for line in BytesIO(lines):
                if b'"outer_step_committed"' in line:
                    for event in parse_events(line):
                        given.add(event)
    return given


class Rates:
    """Bytes a second each way, from totals that are looked at now and then."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=LOOKS)

    def look(self, now: float, totals: tuple[int, int]) -> tuple[float, float]:
        """The rates up to now, given what has been sent and received so far; 0 at first."""
        self._looks.append((now, *totals))
        then, sent, received = self._looks[0]
        passed_s = max(now - then, 1e-3)
        return (totals[0] - sent) / passed_s, (totals[1] - received) / passed_s


@dataclass(frozen=True)
class Progress:
    """How far this peer is."""

    outer_step: int
    """The one that is being worked on, from 1."""
    outer_steps: int
    inner_step: int
    inner_steps: int
    tokens_per_s: float
    doing: str
    """As ``Averager.doing`` says; empty while this peer has no state."""
    others: Mapping[str, str]
    """By peer id, what the other members are doing."""
    quorum: int
    rates: tuple[float, float]
    """Bytes a second up and down."""
    given: Given
    run_s: float
    """Since this peer began to take part."""
    still_s: float = 0.0
    """Since its training moved last, if it is training now."""
    limits: tuple[str, ...] = ()
    """What its user lends, in words; empty where there is no limit."""
    unsaved: str = ""
    """Why the state could not be saved when that was tried last; empty if it could."""

    def figures(self) -> dict[str, object]:
        """For JSON: flat, rates and what was given by names of their own."""
        beside = ("doing", "rates", "given", "limits")
        figures = {name: value for name, value in vars(self).items() if name not in beside}
        up, down = self.rates
        given = {"given_tokens": self.given.tokens, "given_outer_steps": self.given.outer_steps}
        return {**figures, "up_bytes_per_s": round(up), "down_bytes_per_s": round(down), **given}


def progress_from(figures: Mapping[str, Any]) -> Progress:
    """The reverse of ``Progress.figures``, with ``doing`` beside them.

    Raises: KeyError if there is one missing.
    """
    names = ("outer_step", "outer_steps", "inner_step", "inner_steps", "tokens_per_s", "doing", "others", "quorum")
    rates = figures["up_bytes_per_s"], figures["down_bytes_per_s"]
    given = Given(figures["given_tokens"], figures["given_outer_steps"])
    known = {name: figures[name] for name in names}
    if known["doing"] == "joining":
        known["doing"] = ""
    # A peer that was started before an upgrade does not say it.
    unsaved = figures.get("unsaved", "")
    return Progress(**known, rates=rates, given=given, run_s=figures["run_s"], unsaved=unsaved)


def lines(progress: Progress, columns: int, download: Sequence[str] = (), ascii_only: bool = False) -> list[str]:
    """The three lines of the status area, and one for limits if there are any; none longer than ``columns``.

    Args:
        download: how far the download of a state is, empty if none is going.
    """
    doing = list(download) or doing_words(progress)
    limits = [["limits:", *progress.limits]] if progress.limits else []
    parts = (step_words(progress, ascii_only), doing, share_words(progress), *limits)
    return [fitted(one, columns) for one in parts]


def step_words(progress: Progress, ascii_only: bool = False) -> list[str]:
    """Where in the run and in its own work this peer is."""
    if not progress.doing:
        return ["joining the run"]
    words = [f"outer step {progress.outer_step} of {progress.outer_steps}"]
    if progress.doing != "auxiliary":
        words += [
            f"inner step {progress.inner_step} of {progress.inner_steps}",
            bar(progress.inner_step / progress.inner_steps, ascii_only),
            f"{amount(progress.tokens_per_s)} tokens/s",
        ]
    return words


def share_words(progress: Progress) -> list[str]:
    """Who is here, and what this peer has given."""
    here = 1 + sum(doing != "joining" for doing in progress.others.values())
    given = progress.given
    return [
        # Before it has a state it does not know who else has one.
        *([f"{counted(here, 'member')} here"] if progress.doing else []),
        f"gave {amount(given.tokens)} tokens",
        f"was in {counted(given.outer_steps, 'outer step')}",
        f"here for {span(progress.run_s)}",
    ]


def doing_words(progress: Progress) -> list[str]:
    """What the round is doing, the most telling first."""
    others = progress.others
    by_doing = {doing: [peer for peer, at in others.items() if at == doing] for doing in set(others.values())}
    ready, averaging = by_doing.get("ready", []), by_doing.get("averaging", [])
    training = sorted([*by_doing.get("training", []), *by_doing.get("behind", [])])
    match progress.doing:
        case "averaging":
            return [f"averaging with {counted(len(averaging), 'other')}", *rate_words(progress.rates)]
        case "ready" if training:
            return [f"waiting for {named(training)}"]
        case "ready" if 1 + len(ready) < progress.quorum:
            return [f"waiting for more members, a step needs {progress.quorum}"]
        case "ready":
            return ["waiting for the round to begin"]
        case "auxiliary":
            return ["reduces for the others, who train"]
        case "":
            return ["waiting for a member that has the run's state"]
        case _:
            return ["training", *([f"others ready: {len(ready)} of {len(others)}"] if ready else [])]


def rate_words(rates: tuple[float, float]) -> list[str]:
    """Of a transfer that is going, nothing if none is."""
    if max(rates) < LEAST_BYTES_PER_S:
        return []
    return [f"{way} {rate / 1e6:.1f} MB/s" for way, rate in zip(("up", "down"), rates, strict=True)]


def download_words(event: Event) -> list[str]:
    """Of a ``state_downloading`` event."""
    return [
        "downloading the state",
        f"{event['bytes'] / 1e6:.1f} of {event['of_bytes'] / 1e6:.1f} MB",
        f"{event['bytes_per_s'] / 1e6:.1f} MB/s",
        f"{event['seconds_left']} s left",
    ]


def fitted(parts: Sequence[str], columns: int) -> str:
    """The parts beside each other, without those for which there is no room; the first is cut rather than left out."""
    line = parts[0] if len(parts[0]) <= columns else parts[0][: max(columns - 2, 0)] + ".."[:columns]
    for part in parts[1:]:
        if len(line) + len(GAP) + len(part) <= columns:
            line += GAP + part
    return line


def bar(share: float, ascii_only: bool = False) -> str:
    full, empty = "#." if ascii_only else "━╌"
    n_full = round(BAR_COLUMNS * min(max(share, 0.0), 1.0))
    return full * n_full + empty * (BAR_COLUMNS - n_full)


def amount(number: float) -> str:
    """Three digits or more: 9,999 or 12.3 k or 1.23 G."""
    if number < 10_000:
        return f"{number:,.0f}"
    for unit in "kMGT":
        number /= 1000
        if number < 999.5 or unit == "T":
            break
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def span(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def named(peers: Sequence[str]) -> str:
    """Some by name, the others by number."""
    rest = len(peers) - MOST_NAMED
    return short(peers) if rest <= 0 else f"{short(peers[:MOST_NAMED])} and {rest} more"
