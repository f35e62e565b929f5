"""What people read in every view of a run: numbers, times and marks, in words."""

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from runtime.monitor.picture import FAULTS, Picture
from runtime.monitor.pictured import Mark, StepPicture

NOTHING = "-"
# Rounds that "lately" means: a median of more would not show that a run has become slower.
LATELY = 32


def short(peer: str) -> str:
    """The last six characters tell peers apart, the first ones are all the same."""
    return peer[-6:]


def plain(words: str, most: int = 300) -> str:
    """Other people's words, without anything that moves a cursor or turns the writing round."""
    return "".join(sign if sign.isprintable() else "?" for sign in words[:most])


def count_words(number: float) -> str:
    """Three digits and a unit: ``12``, ``4.56k``, ``123M``."""
    value, unit = float(number), ""
    for larger in ("k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}{unit}" if abs(value) >= 99.5 or not unit else f"{value:.3g}{unit}"


def size_words(n_bytes: float) -> str:
    """``0 B``, ``137 kB``, ``1.97 MB``, ``12.3 GB``: powers of ten, as links and disks have them."""
    value, unit = n_bytes, "B"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def number_words(value: float | None) -> str:
    """Of a loss or a time: three decimals, and powers of ten where these say nothing."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def share_words(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"


def error_words(error: float | None) -> str:
    """Of a quantisation error, relative."""
    return NOTHING if error is None else f"{100 * error:.2f} %" if abs(error) < 100 else "> 9999 %"


def duration_words(duration_s: float) -> str:
    """``12 s``, ``3 min 5 s``, ``2 h 14 min``, ``5 d 3 h``."""
    whole = round(max(0.0, min(duration_s, 1e12)))
    for large, small, name, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def time_words(duration_s: float) -> str:
    """Of a round: hundredths where they matter."""
    return f"{duration_s:.2f} s" if duration_s < 9.95 else duration_words(duration_s)


def clock_words(unix_time: float, form: str = "%H:%M:%S", utc: bool = False) -> str:
    """Local time of day; of what is no time of people's, a dash."""
    try:
        return time.strftime(form, (time.gmtime if utc else time.localtime)(unix_time))
    except (ValueError, OverflowError, OSError):
        return NOTHING


def several(number: int, what: str) -> str:
    """``1 member``, ``4 members``."""
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def is_fault(mark: Mark) -> bool:
    """Who says goodbye is none."""
    return mark.kind in FAULTS or (mark.kind == "gone" and not mark.words.startswith("left"))


def mark_words(mark: Mark) -> str:
    """One sentence, without its time and step."""
    who = short(mark.member)
    said = f": {mark.words}" if mark.words else ""
    match mark.kind:
        case "came":
            return f"{who} is here"
        case "gone":
            return f"{who} {mark.words}" if mark.words.startswith("left") else f"{who} is gone{said}"
        case "joined":
            return f"{who} has the run's state and takes part"
        case "strike":
            return f"strike against {who}{said}"
        case "fork_found":
            return f"the run has forked: {who} is on another history"
        case "fork_healed":
            return f"the fork is healed: {who} is on this history"
        case "diverged":
            return f"{who} has another state of this step than the one who tells"
        case "behind":
            return f"{who} is behind and downloads the state{said}"
        case "commit_lost":
            return "a commit was lost with those who had its results; the step is taken anew"
        case "member_still":
            return f"{who} answers but does not train"
        case "member_moves":
            return f"{who} trains again"
        case "checkpoint_failed":
            return f"{who} cannot save its state{said}"
        case "checkpoint_torn":
            return f"{who} has a checkpoint that cannot be used{said}"
        case "waiting":
            return f"the step waits for more members, it needs {mark.words}" if mark.words else "the step waits"
        case _:
            return f"{mark.kind.replace('_', ' ')}: {who}{said}"


def in_order(picture: Picture) -> list[StepPicture]:
    return [picture.steps[step] for step in sorted(picture.steps)]


def losses(picture: Picture) -> list[tuple[int, float]]:
    """Outer step and training loss, of the steps that have one."""
    return [(step.outer_step, step.loss) for step in in_order(picture) if step.loss is not None]


def round_times(steps: Sequence[StepPicture]) -> list[float]:
    return [step.round_s for step in steps if step.round_s is not None]


def usual_step_s(picture: Picture) -> float | None:
    """Median time from commit to commit lately, seconds."""
    times = [step.time for step in in_order(picture)[-LATELY - 1 :]]
    gaps = [after - before for before, after in pairwise(times) if after > before]
    return median(gaps) if gaps else None


def waited_for(picture: Picture) -> list[str]:
    """Members that still train while others are ready for the round under way; sorted."""
    doing = {member.peer: member.doing for member in picture.present()}
    said = set(doing.values())
    if "ready" not in said or "averaging" in said:
        return []
    return sorted(peer for peer, what in doing.items() if what in ("training", "behind"))
