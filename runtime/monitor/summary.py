"""The picture of a run as one JSON object, for scripts; docs/events.md has its keys."""

from dataclasses import asdict
from statistics import median

from runtime.monitor.picture import Picture
from runtime.monitor.pictured import MemberPicture, StepPicture
from runtime.monitor.source import Watched
from runtime.monitor.words import LATELY, in_order, losses, round_times, waited_for


def summary(watched: Watched) -> dict[str, object]:
    picture, manifest, last = watched.picture, watched.manifest, watched.picture.last
    times = round_times(in_order(picture)[-LATELY:])
    return {
        "run_id": manifest.run_id if manifest else watched.run_id,
        "name": manifest.config.name if manifest else None,
        "outer_steps": manifest.config.outer.steps if manifest else None,
        "codec": codec_of(watched) or None,
        "live": picture.live,
        "time": picture.time,
        "told_by": watched.following or picture.told_by,
        "silent_s": round(watched.silent_s, 3),
        "outer_step": last.outer_step if last else 0,
        "tokens": last.tokens if last else 0,
        "loss": last.loss if last else None,
        "least_loss": min((loss for _, loss in losses(picture)), default=None),
        "validation": {str(step): loss for step, loss in sorted(picture.validations.items())},
        "participation": last.participation if last else None,
        "round_s": last.round_s if last else None,
        "median_round_s": median(times) if times else None,
        "members": [_member(member, picture) for member in picture.ranked()],
        "round": {
            "outer_step": picture.round.outer_step,
            "attempt": picture.round.attempt,
            "leader": picture.round.leader or None,
            "waits_for": waited_for(picture),
        },
        "steps": [_step(step) for step in in_order(picture)],
        "marks": [asdict(mark) for mark in picture.marks],
        "refused": picture.refused,
    }


def codec_of(watched: Watched) -> str:
    """Of the last round, else as the run's manifest has it; empty if neither is known."""
    manifest = watched.manifest
    return watched.picture.round.codec or (manifest.config.averaging.codec if manifest else "")


def token_share(member: MemberPicture, picture: Picture) -> float | None:
    """Its part of all tokens that the members of this picture have contributed."""
    whole = sum(one.tokens for one in picture.members.values())
    return member.tokens / whole if whole else None


def _member(member: MemberPicture, picture: Picture) -> dict[str, object]:
    return {**asdict(member), "busy": member.busy, "token_share": token_share(member, picture)}


def _step(step: StepPicture) -> dict[str, object]:
    return {**asdict(step), "participation": step.participation, "members": list(step.members)}
