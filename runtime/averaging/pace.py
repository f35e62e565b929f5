"""How long things take here, in seconds, learnt from the rounds themselves: no timeout is left for a user to tune."""

from collections import deque
from statistics import median


class Pace:
    """Windows and deadlines from the last eight inner phases and rounds of this peer."""

    def __init__(self) -> None:
        self._phases: deque[float] = deque(maxlen=8)
        self._rounds: deque[float] = deque(maxlen=8)

    def phase(self, seconds: float) -> None:
        self._phases.append(seconds)

    def round(self, seconds: float) -> None:
        self._rounds.append(seconds)

    def patience_s(self, elapsed_s: float) -> float:
        """How long a peer that is still training goes on after another is ready: half of an inner phase.

        A peer that has done none yet takes what has passed of this one: a newcomer then hands in what little it has.
        """
        return max(0.5, 0.5 * (median(self._phases) if self._phases else elapsed_s))

    def grace_s(self, elapsed_s: float) -> float:
        """How long a leader waits for the others after the first was ready: their patience, and time to say so."""
        known = self.patience_s(elapsed_s)
        return 0.25 + 1.5 * (known if self._phases else max(known, 2.0))

    @property
    def reduce_s(self) -> float:
        """How long a reducer waits for a live member's share. The dead do not take it: their streams end."""
        return max(5.0, 5 * median(self._rounds)) if self._rounds else 30.0

    def attempt_s(self, attempt: int) -> float:
        """How long a ready member waits for a commit before it tries another leader; doubles, to let a slow one end."""
        usual = median(self._rounds) if self._rounds else 10.0
        return (2 * self.grace_s(0.0) + max(5.0, 10 * usual)) * float(1 << min(attempt, 4))
