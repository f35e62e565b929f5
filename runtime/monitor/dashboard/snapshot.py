"""What the pages show, as plain values that become JSON: text is text, a number is finite or null."""

from collections import Counter
from collections.abc import Iterable
from statistics import median

from runtime.monitor.dashboard.tracks import Tracks
from runtime.monitor.picture import Picture
from runtime.monitor.pictured import Mark, MemberPicture, StepPicture
from runtime.monitor.source import Watched
from runtime.monitor.words import LATELY, is_fault, usual_step_s, waited_for

Values = dict[str, object]

# Of the past a page that has just been opened gets every step of the last, and so many of those before.
MOST_LAST, MOST_BEFORE = 256, 1200
MOST_SPANS = 16


def head(watched: Watched, tracks: Tracks, state: str) -> Values:
    """All but the past: how the watching goes, the run's figures, its members and its round.

    Args: state is waiting, live, silent, replay, ended or over.
    """
    picture = watched.picture
    return {
        "run": _run(watched),
        "watching": {
            "state": state,
            "following": watched.following,
            # Of a run that has taken its last step nobody is left to ask.
            "trouble": "" if state == "over" else watched.trouble,
            "silent_s": round(watched.silent_s, 1),
            "refused": picture.refused,
        },
        "time": picture.time,
        "figures": figures(picture, tracks),
        "faults": _faults(picture.marks),
        "members": [member_row(member) for member in picture.ranked()],
        "round": round_row(picture),
    }


def _run(watched: Watched) -> Values:
    manifest = watched.manifest
    if manifest is None:
        return {"id": watched.run_id, "name": "", "outer_steps": None}
    config = manifest.config
    return {
        "id": manifest.run_id,
        "name": config.name,
        "outer_steps": config.outer.steps,
        "inner_steps": config.inner.steps,
        "model": config.model.preset,
        "codec": config.averaging.codec,
        "quorum": config.averaging.quorum,
    }


def figures(picture: Picture, tracks: Tracks) -> Values:
    """The figures of the run as it is now. Rates and what is usual are of the last ``LATELY`` steps."""
    present = picture.present()
    recent = [picture.steps[number] for number in sorted(picture.steps)[-LATELY:]]
    last = recent[-1] if recent else None
    whole_s = recent[-1].time - recent[0].time if recent else 0.0
    moved = [tracks.bytes_of(step.outer_step) for step in recent[1:]]
    validated = max(picture.validations, default=None)
    return {
        "outer_step": last.outer_step if last else None,
        "loss": last.loss if last else None,
        "validated_at": validated,
        "validation": None if validated is None else picture.validations[validated],
        "tokens": last.tokens if last else None,
        "tokens_per_s": _rate(recent[-1].tokens - recent[0].tokens, whole_s) if recent else None,
        "members": len(present),
        "gone": len(picture.members) - len(present),
        "took_part": last.n_members if last else None,
        "participation": _mean(step.participation for step in recent),
        "step_s": usual_step_s(picture),
        "round_s": _median(step.round_s for step in recent),
        "busy": _mean(step.busy for step in recent),
        "error": last.error if last else None,
        "sent_per_s": _rate(sum(pair[0] for pair in moved if pair), whole_s) if any(moved) else None,
        "received_per_s": _rate(sum(pair[1] for pair in moved if pair), whole_s) if any(moved) else None,
    }


def step_row(step: StepPicture, tracks: Tracks) -> list[float | None]:
    """An outer step; ``store.js`` names the columns."""
    sent, received = tracks.bytes_of(step.outer_step) or (None, None)
    return [
        step.outer_step,
        step.time,
        step.loss,
        step.tokens,
        step.n_members,
        step.live,
        step.round_s,
        step.busy,
        step.error,
        sent,
        received,
    ]


def thinned(steps: list[StepPicture]) -> list[StepPicture]:
    """The last steps, and of those before them as many as a curve can show."""
    before, last = steps[:-MOST_LAST], steps[-MOST_LAST:]
    every = -(-len(before) // MOST_BEFORE) or 1
    return before[::every] + last


def mark_row(mark: Mark) -> list[object]:
    return [mark.time, mark.outer_step, mark.kind, mark.member, mark.words, _weight(mark)]


def _weight(mark: Mark) -> str:
    """What a mark is on the curve: came, gone, fault, or a note that only the list has. Who is lost is a fault."""
    if is_fault(mark) or mark.kind in ("checkpoint_failed", "checkpoint_torn"):
        return "fault"
    return mark.kind if mark.kind in ("came", "gone") else "note"


def _faults(marks: Iterable[Mark]) -> Values:
    counted = Counter(mark.kind for mark in marks if _weight(mark) == "fault")
    return dict(sorted(counted.items()))


def member_row(member: MemberPicture) -> Values:
    return {
        "peer": member.peer,
        "doing": member.doing or "here",
        "device": member.device,
        "outer_step": member.outer_step,
        "progress": member.progress,
        "tokens": member.tokens,
        "n_steps": member.n_steps,
        "tokens_per_s": member.tokens_per_s,
        "loss": member.loss,
        "busy": member.busy,
        "up": member.up,
        "down": member.down,
        "sent": member.sent_bytes,
        "received": member.received_bytes,
        "error": member.error,
        "strikes": member.strikes,
        "came_at": member.came_at,
        "gone_at": member.gone_at,
        "gone_reason": member.gone_reason,
    }


def round_row(picture: Picture) -> Values:
    """The round under way: when each member began what, in seconds since the step before was committed."""
    now = picture.round
    before = picture.steps.get(now.outer_step - 1)
    starts = [spans[0][0] for spans in now.doing.values() if spans]
    since = before.time if before else min(starts, default=picture.time)
    members = [
        [peer, [[round(at - since, 2), what] for at, what in spans[-MOST_SPANS:]]]
        for peer, spans in sorted(now.doing.items())
        if spans
    ]
    return {
        "outer_step": now.outer_step,
        "attempt": now.attempt,
        "leader": now.leader,
        "codec": now.codec,
        "began_s": None if now.began_at is None else round(max(0.0, now.began_at - since), 2),
        "now_s": round(max(0.0, picture.time - since), 2),
        "waited_for": waited_for(picture),
        "members": members,
    }


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 and amount >= 0 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
