"""The picture of a run that its events make: what every view shows, live, from a log, or from the past that is told.

Figures are the members' own word. ``Picture.see`` takes whatever is said, keeps what has the right form and is within
bounds, and counts the rest; nothing in here raises because of an event.
"""

import math
from collections import deque
from dataclasses import replace
from typing import TypeVar

from runtime.log import Event
from runtime.monitor import said
from runtime.monitor.pictured import Mark, MemberPicture, Round, StepPicture
from runtime.monitor.said import MOST_MEMBERS, MOST_NUMBER

T = TypeVar("T")

MOST_STEPS = 8192
MOST_MARKS = 1024
# Of one member in one round.
MOST_SPANS = 64
# Of too many members so many go at once: to look for the least takes a while.
LEAST_FORGOTTEN = 64
# A member that is gone stays in the picture for so long.
GONE_S = 3600.0
FAULTS = frozenset(("strike", "fork_found", "fork_healed", "diverged", "behind", "commit_lost", "member_still"))
_KINDS = FAULTS | {"joined", "checkpoint_failed", "checkpoint_torn", "member_moves", "waiting"}
_ONCE = _KINDS | {"member_up", "member_down", "left"}
# What several members tell of the last marks of all.
_MOST_TOLD = 16 * MOST_MARKS


class Picture:
    """What is known of a run. ``manifest`` is what the first event of a feed brings, for whoever can read it."""

    def __init__(self) -> None:
        self.members: dict[str, MemberPicture] = {}
        self.steps: dict[int, StepPicture] = {}
        self._newest = 0
        self.marks: deque[Mark] = deque(maxlen=MOST_MARKS)
        self._told: dict[tuple[object, ...], None] = {}
        """Comings, goings and faults by who told them and when: a member tells some again to who comes back to it."""
        self.round = Round()
        self.validations: dict[int, float] = {}
        """Outer step -> validation loss."""
        self.manifest = ""
        self.told_by = ""
        """The member that the last event came from."""
        self.time = 0.0
        """Of the last event, by the clock of the member that told it."""
        self._began_at = math.inf
        self.live = False
        """Whether all of the past has been told."""
        self.most_step = int(MOST_NUMBER)
        """No outer step is beyond this one."""
        self.refused = 0
        """Events that were not what they should be."""

    def see(self, event: Event) -> None:
        """Take in an event, in any order of time; what it says of a step that is known already replaces it."""
        try:
            self._see(event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.refused += 1

    @property
    def began_at(self) -> float:
        """Unix time of the first that is known of the run."""
        return min(self._began_at, self.time)

    @property
    def last(self) -> StepPicture | None:
        newest = self.steps.get(self._newest)
        return newest or (self.steps[max(self.steps)] if self.steps else None)

    def present(self) -> list[MemberPicture]:
        """Those who are there, the greatest contributors first."""
        return sorted((one for one in self.members.values() if one.gone_at is None), key=_rank)

    def ranked(self) -> list[MemberPicture]:
        """Everyone, those who are gone last."""
        return sorted(self.members.values(), key=lambda one: (one.gone_at is not None, *_rank(one)))

    def _see(self, event: Event) -> None:
        kind, time, teller = said.words(event["event"]), said.number(event["time"]), said.peer_id(event["peer"])
        if kind in _ONCE:
            key = kind, time, teller, said.peer_id(event.get("member", teller))
            if key in self._told:
                return
            self._told[key] = None
            if len(self._told) > _MOST_TOLD:
                del self._told[next(iter(self._told))]
        match kind:
            case "outer_step_committed":
                self._commit(event, time, teller)
            case "members":
                self._members(event, time)
            case "round_began":
                self._begin(event, time)
            case "validated":
                if (loss := event["val_loss"]) is not None:
                    self.validations[self._step(event["outer_step"])] = said.number(loss)
                    _bound(self.validations)
            case "member_up":
                self._here(said.peer_id(event["member"]), time)
            case "member_down":
                self._gone(said.peer_id(event["member"]), time, said.words(event["reason"]))
            case "left":
                self._gone(teller, time, f"left: {said.words(event['reason'])}")
            case "run":
                self.manifest = said.words(event["manifest"], 1 << 17)
                self.live = False
            case "live":
                self.live = True
            case "refused":
                # Nothing of the run.
                return
            case _:
                if kind in _KINDS:
                    self._mark(kind, event, time, teller)
        if self.steps or self.marks:
            self._began_at = min(self._began_at, time)
        # Of two members that tell one after the other each has its own clock.
        self.time, self.told_by = max(self.time, time) if teller == self.told_by else time, teller

    def _begin(self, event: Event, time: float) -> None:
        step, attempt = self._step(event["outer_step"]), said.whole(event["attempt"])
        leader = said.peer_id(event["leader"])
        codec, peers = said.words(event["codec"])[:16], list(map(said.peer_id, said.listed(event.get("members", ()))))
        last = self.last
        if last and step <= last.outer_step:
            return
        self.round.outer_step, self.round.attempt, self.round.leader = step, attempt, leader
        self.round.codec, self.round.began_at = codec, time
        for peer in peers:
            member = self._contributor(peer, time, last.time if last else 0.0)
            if member.gone_at is None:
                self._do(member, "averaging", time)

    def _do(self, member: MemberPicture, doing: str, time: float) -> None:
        member.doing = doing
        spans = self.round.doing.setdefault(member.peer, [])
        if not spans or spans[-1][1] != doing:
            spans.append((time, doing))
            del spans[:-MOST_SPANS]

    def _commit(self, event: Event, time: float, teller: str) -> None:
        step = self._step(event["outer_step"])
        peers = tuple(map(said.peer_id, said.listed(event.get("members", ()))))
        weights = [said.whole(weight) for weight in said.listed(event.get("weights", ()))]
        figures = list(map(_figures, said.listed(event.get("figures", ()))))
        losses = list(map(said.maybe_number, said.listed(event.get("losses", ()))))
        if len(weights) != len(peers) or len(figures) not in (0, len(peers)) or len(losses) not in (0, len(peers)):
            raise ValueError("lists of different lengths")
        known, told = self.steps.get(step), [one for one in figures if one is not None]
        new = StepPicture(
            outer_step=step,
            time=time,
            loss=said.maybe_number(event["loss"]),
            tokens=said.number(event["tokens"]),
            n_members=len(peers) or said.whole(event.get("n_members", 0)),
            live=said.whole(event.get("live", 0)),
            round_s=said.maybe_number(event.get("round_s")),
            busy=_mean([one.busy for one in told]),
            error=_mean([one.error for one in told]),
            members=peers,
        )
        # All of it is as it should be: from here on it counts.
        began = self.last.time if self.last else 0.0
        for index, (peer, weight) in enumerate(zip(peers, weights, strict=True)):
            member = self._contributor(peer, time, began if known is None else -math.inf)
            if known is None:
                member.tokens += weight
                member.n_steps += 1
            if step >= member.outer_step:
                member.outer_step = step
                member.loss = losses[index] if losses else member.loss
                if figures and (one := figures[index]):
                    vars(member).update({name: getattr(one, name) for name in _FIGURES})
        if known is not None:
            # Who was not in the group hears of the step later, and has no time of its round.
            round_s = known.round_s if new.round_s is None else new.round_s
            new = replace(new, time=min(time, known.time), round_s=round_s)
        self.steps[step], self._newest = new, max(self._newest, step)
        _bound(self.steps)
        if step >= self.round.outer_step:
            self.round = Round(step + 1, codec=self.round.codec)
            for peer in peers:
                if (there := self.members.get(peer)) and there.gone_at is None:
                    self._do(there, "training", time)

    def _members(self, event: Event, time: float) -> None:
        members = event["members"]
        if not isinstance(members, dict) or len(members) > MOST_MEMBERS:
            raise ValueError("members that are none")
        for peer, one in members.items():
            try:
                name, doing = said.peer_id(peer), said.words(one["doing"])[:16]
                outer_step, progress = said.whole(one["outer_step"]), said.whole(one["progress"])
            except (KeyError, TypeError, ValueError):
                # One member's word is not to hide the others.
                self.refused += 1
                continue
            member = self._here(name, time, is_now=True)
            member.outer_step, member.progress = outer_step, progress
            self._do(member, doing, time)
        for member in self.members.values():
            if member.gone_at is None and member.peer not in members:
                self._gone(member.peer, time, "not seen any more")

    def _mark(self, kind: str, event: Event, time: float, teller: str) -> None:
        member = said.peer_id(event["member"]) if "member" in event else teller
        words = said.words(event.get("reason", event.get("needs", "")))
        # Whose greeting is wrong is no member, and is struck too.
        if kind == "strike" and (struck := self.members.get(member)):
            struck.strikes += 1
        last = self.last
        step = self._step(event["outer_step"]) if "outer_step" in event else last.outer_step if last else 0
        self.marks.append(Mark(time, step, kind, member, words))

    def _contributor(self, peer: str, time: float, began: float) -> MemberPicture:
        """Whoever contributes to a step was there after it had begun, and may be gone since."""
        member = self.members.get(peer)
        is_gone = member is not None and member.gone_at is not None and member.gone_at >= began
        return member if member is not None and is_gone else self._here(peer, time)

    def _here(self, peer: str, time: float, is_now: bool = False) -> MemberPicture:
        """A member that was there then; where it is so now, whatever clock said when it was gone."""
        member = self.members.get(peer)
        if member is None:
            if len(self.members) >= MOST_MEMBERS:
                self._forget(time)
            member = self.members[peer] = MemberPicture(peer, came_at=time)
            self.marks.append(Mark(time, self._step_now(), "came", peer, ""))
        elif member.gone_at is not None and (is_now or time > member.gone_at):
            member.gone_at, member.came_at = None, time
            self.marks.append(Mark(time, self._step_now(), "came", peer, ""))
        return member

    def _gone(self, peer: str, time: float, reason: str) -> None:
        member = self.members.get(peer)
        if member is None or member.gone_at is not None:
            return
        member.gone_at, member.gone_reason, member.doing = time, reason, "gone"
        self.round.doing.pop(peer, None)
        self.marks.append(Mark(time, self._step_now(), "gone", peer, reason))

    def _forget(self, time: float) -> None:
        """Of too many, those who are gone for long, else some of the least."""
        gone = [one for one in self.members.values() if one.gone_at is not None and time > one.gone_at + GONE_S]
        least = sorted(self.members.values(), key=lambda one: (one.gone_at is None, one.tokens))[:LEAST_FORGOTTEN]
        for one in gone or least:
            del self.members[one.peer]
            self.round.doing.pop(one.peer, None)

    def _step(self, value: object) -> int:
        if (step := said.whole(value)) > self.most_step:
            raise ValueError("a step that this run does not have")
        return step

    def _step_now(self) -> int:
        last = self.last
        return last.outer_step if last else 0


_FIGURES = (
    "device",
    "tokens_per_s",
    "trained_s",
    "waited_s",
    "up",
    "down",
    "dialable",
    "sent_bytes",
    "received_bytes",
    "error",
)


def _figures(figures: object) -> MemberPicture | None:
    """What a member said of itself, nobody's but for that; None if it said nothing that can be shown."""
    if not isinstance(figures, dict):
        return None
    try:
        return MemberPicture(
            peer="",
            device=said.words(figures["device"])[:16],
            tokens_per_s=said.number(figures["tokens_per_s"]),
            trained_s=said.number(figures["trained_ms"]) / 1e3,
            waited_s=said.number(figures["waited_ms"]) / 1e3,
            up=said.number(figures["up"]),
            down=said.number(figures["down"]),
            # Logs of before it was told have it not.
            dialable=figures.get("dialable") is not False,
            sent_bytes=said.number(figures["sent_bytes"]),
            received_bytes=said.number(figures["received_bytes"]),
            error=None if figures["error_ppm"] is None else said.number(figures["error_ppm"]) / 1e6,
        )
    except (KeyError, ValueError):
        return None


def _bound(by_step: dict[int, T]) -> None:
    """Of too many steps, those that were told first go."""
    while len(by_step) > MOST_STEPS:
        del by_step[next(iter(by_step))]


def _rank(member: MemberPicture) -> tuple[int, str]:
    return -member.tokens, member.peer


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
