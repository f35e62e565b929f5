"""What the pages need beyond a picture: bytes of each step, each peer's last figures, and what is new since when.

Bounded as the picture is, and some 6 kB a member more.
"""

from array import array
from collections import deque

from runtime.monitor.picture import MOST_MARKS, Picture
from runtime.monitor.pictured import Mark, MemberPicture, Round, StepPicture

# Of each peer so many outer steps; a member tells the last 256 with everyone's figures.
MOST_TRACK = 256
COLUMNS = ("outer_step", "loss", "tokens_per_s", "busy", "error")
# No value, in an array of floats; on its way out it becomes null.
_NONE = float("nan")


class Tracks:
    """Follows a picture: ``look`` after each event, ``refresh`` before anything is asked.

    Whatever is new gets a stamp, a number that only grows: who knows all up to a stamp asks for what came after it.
    """

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._round: Round = picture.round
        self._bytes: dict[int, tuple[float, float]] = {}
        """By outer step what its members have sent and received since they last told."""
        self._told: dict[str, tuple[float, float]] = {}
        self._tracks: dict[str, array[float]] = {}
        self._rows: dict[int, tuple[int, StepPicture]] = {}
        """By outer step, its stamp and what it was when it got it."""
        self._marks: deque[tuple[int, Mark]] = deque(maxlen=MOST_MARKS)
        self.stamp = 0

    def look(self) -> None:
        """An event has been seen. Costs nothing but after a commit that went beyond all before it."""
        if self._picture.round is self._round:
            return
        self._round = self._picture.round
        step = self._picture.steps.get(self._round.outer_step - 1)
        if step is None:
            return
        sent = received = 0.0
        for peer in step.members:
            member = self._picture.members.get(peer)
            if member is None:
                continue
            before_sent, before_received = self._told.get(peer, (member.sent_bytes, member.received_bytes))
            # A process that began anew counts from zero.
            sent += max(0.0, member.sent_bytes - before_sent)
            received += max(0.0, member.received_bytes - before_received)
            self._told[peer] = member.sent_bytes, member.received_bytes
            self._follow(member, step.outer_step)
        if step.members:
            self._bytes[step.outer_step] = sent, received

    def refresh(self) -> None:
        """Stamp what has changed, and let go of what the picture has let go of."""
        steps = self._picture.steps
        for number, step in steps.items():
            known = self._rows.get(number)
            if known is None or known[1] is not step:
                self.stamp += 1
                self._rows[number] = self.stamp, step
        if len(self._rows) > len(steps):
            self._rows = {number: row for number, row in self._rows.items() if number in steps}
            self._bytes = {number: moved for number, moved in self._bytes.items() if number in steps}
        for peer in [peer for peer in self._told if peer not in self._picture.members]:
            del self._told[peer], self._tracks[peer]
        last = self._marks[-1][1] if self._marks else None
        new: list[Mark] = []
        for mark in reversed(self._picture.marks):
            if mark is last:
                break
            new.append(mark)
        for mark in reversed(new):
            self.stamp += 1
            self._marks.append((self.stamp, mark))

    def steps_since(self, stamp: int) -> list[StepPicture]:
        """In the order of steps."""
        new = [step for at, step in self._rows.values() if at > stamp]
        return sorted(new, key=lambda step: step.outer_step)

    def marks_since(self, stamp: int) -> list[Mark]:
        return [mark for at, mark in self._marks if at > stamp]

    def bytes_of(self, outer_step: int) -> tuple[float, float] | None:
        """Sent and received by all members since they told before, None if nobody has told."""
        return self._bytes.get(outer_step)

    def track(self, peer: str) -> list[list[float | None]]:
        """A peer's figures, a row of ``COLUMNS`` for each of the last steps that it took part in."""
        flat = self._tracks.get(peer, array("d"))
        width = len(COLUMNS)
        values = [None if value != value else value for value in flat]
        return [values[start : start + width] for start in range(0, len(values), width)]

    def _follow(self, member: MemberPicture, outer_step: int) -> None:
        track = self._tracks.setdefault(member.peer, array("d"))
        told = (member.loss, member.tokens_per_s, member.busy, member.error)
        track.extend((outer_step, *(_NONE if value is None else value for value in told)))
        del track[: -MOST_TRACK * len(COLUMNS)]
