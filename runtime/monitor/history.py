"""The past of a run, as events: every outer step, thinned as the run grows, and what else was worth a mark.

Each peer keeps one, on disk, so that whoever comes late sees the run from its first step.
"""

import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from runtime.disk import replace_file
from runtime.log import Event, parse_events
from runtime.monitor import said

HISTORY_FILE = "history.jsonl"
# The last steps with everyone's figures, those before with the run's own; then every second, every fourth and so on.
MOST_WHOLE, MOST_STEPS = 256, 4096
# Joins, leaves and faults: the last of them.
MOST_MARKS = 512
# Of what others tell, as JSON: a step of 256 members with all their figures has 80 kB.
MOST_MARK_BYTES, MOST_STEP_BYTES = 1 << 11, 1 << 18
# Anything that is told of one member in one step is a number or a word, and not much of it.
MOST_FIGURES, MOST_WORD = 32, 300
MARKS = frozenset(
    (
        *("joined", "member_up", "member_down", "strike", "fork_found", "fork_healed", "diverged", "behind"),
        *("commit_lost", "checkpoint_failed", "checkpoint_torn", "member_still", "member_moves", "validated", "left"),
    )
)
_OF_THE_RUN = (
    "event",
    "time",
    "peer",
    "outer_step",
    "attempt",
    "lineage",
    "tokens",
    "loss",
    "live",
    "round_s",
    "n_members",
)
Happening = tuple[str, ...]
# A line on disk for each event until there are twice as many as are kept.
_SLACK = 2


class History:
    """Bounded: some 2 MB for 16 members, about 30 kB a member more.

    Args:
        path: where it is kept; None keeps it in memory alone.
        may_write: whether there is room for so many bytes.
    """

    def __init__(self, path: Path | None = None, may_write: Callable[[int], bool] = lambda n_bytes: True) -> None:
        self._steps: dict[int, Event] = {}
        """By outer step, in order."""
        self._marks: dict[Happening, Event] = {}
        self._every = 1
        """Of the steps that are not whole one in so many is kept."""
        self._path, self._may_write = path, may_write
        self._n_lines = 0
        if path is not None:
            with suppress(OSError):
                self.merge(parse_events(path.read_bytes()))
            self._rewrite()

    @property
    def outer_step(self) -> int:
        """The last that is known, 0 if none is."""
        return max(self._steps, default=0)

    def add(self, event: Event) -> None:
        """Take in an event that has just happened; most kinds are not kept."""
        if self._take(event) and self._path is not None:
            self._write(event)

    def merge(self, events: Iterable[Event], until: float = math.inf) -> None:
        """Take in what another knows of the past; of a step that both know, this history's own word stays.

        Args: until is the outer step that the run is at: there is no past beyond it.
        """
        for event in events:
            step = event.get("outer_step")
            if _is_modest(event) and not (isinstance(step, int | float) and step > until):
                self._take(event, replaces=False)
        self._steps = dict(sorted(self._steps.items()))
        self._marks = dict(sorted(self._marks.items(), key=lambda mark: float(mark[1]["time"])))
        self._rewrite()

    def since(self, outer_step: int) -> list[Event]:
        """What happened after an outer step, in the order of time; all of it for 0."""
        steps = [event for step, event in self._steps.items() if step > outer_step]
        before = [event for step, event in self._steps.items() if step <= outer_step]
        from_time = float(before[-1]["time"]) if before and outer_step else 0.0
        marks = [mark for mark in self._marks.values() if float(mark["time"]) >= from_time]
        return sorted((*steps, *marks), key=lambda event: float(event["time"]))

    def _take(self, event: Event, replaces: bool = True) -> bool:
        try:
            said.number(event.get("time"))
            kind = said.words(event.get("event"))
            step = said.whole(event.get("outer_step")) if kind == "outer_step_committed" else 0
        except ValueError:
            return False
        if step:
            if step in self._steps and not replaces:
                return False
            self._steps.pop(step, None)
            self._steps[step] = event
            self._thin()
            return True
        if kind not in MARKS or (key := happening(event)) in self._marks:
            return False
        self._marks[key] = event
        if len(self._marks) > MOST_MARKS:
            del self._marks[next(iter(self._marks))]
        return True

    def _thin(self) -> None:
        known = list(self._steps)
        if len(known) > MOST_STEPS:
            self._every *= 2
        for step in known[:-MOST_WHOLE] if len(known) > MOST_STEPS else known[-MOST_WHOLE - 1 : -MOST_WHOLE]:
            if (step - 1) % self._every:
                del self._steps[step]
            else:
                self._steps[step] = _slim(self._steps[step])

    def _write(self, event: Event) -> None:
        assert self._path is not None
        if self._n_lines > _SLACK * (len(self._steps) + len(self._marks)) + MOST_WHOLE:
            self._rewrite()
            return
        line = json.dumps(event).encode() + b"\n"
        # On a full disk the run goes on, and so does what is in memory.
        if self._may_write(len(line)):
            with suppress(OSError), self._path.open("ab") as file:
                file.write(line)
                self._n_lines += 1

    def _rewrite(self) -> None:
        if self._path is None:
            return
        events = self.since(0)
        self._n_lines = len(events)
        content = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        if not self._may_write(len(content)):
            return
        with suppress(OSError):
            replace_file(self._path, content)


def happening(event: Event) -> Happening:
    """What is the same for two words on the same: each member tells of a step, in its own time."""
    if event["event"] == "outer_step_committed":
        return "outer_step_committed", repr(event.get("outer_step"))
    return repr(event["event"]), repr(event["time"]), repr(event.get("peer")), repr(event.get("member"))


def _is_modest(event: Event) -> bool:
    """Whether an event of others takes no more memory than an honest one does; what it says is another matter."""
    most = MOST_STEP_BYTES if event.get("event") == "outer_step_committed" else MOST_MARK_BYTES
    return len(event) <= MOST_FIGURES and all(map(_is_small, event.values())) and len(json.dumps(event)) <= most


def _is_small(value: object, depth: int = 2) -> bool:
    match value:
        case None | bool() | int() | float():
            return True
        case str():
            return len(value) <= MOST_WORD
        case list():
            return depth == 2 and len(value) <= said.MOST_MEMBERS and all(_is_small(one, 1) for one in value)
        case dict():
            # Empty ones are the cheapest to write and the dearest to keep.
            return depth == 1 and 0 < len(value) <= MOST_FIGURES and all(_is_small(one, 0) for one in value.values())
    return False


def _slim(event: Event) -> Event:
    """Of an outer step what is of the run, without its members."""
    members = event.get("members")
    counted = {"n_members": len(members)} if isinstance(members, list) else {}
    return {key: value for key, value in {**event, **counted}.items() if key in _OF_THE_RUN}
