"""How long things take here, in seconds, learnt from the rounds themselves: no timeout is left for a user to tune.

The rule for stragglers: those who are ready wait until the tokens that they could have trained meanwhile are half of
what the missing ones would bring. Half, because nothing is lost by going on: work that misses an outer step is in the
next contribution, one step stale, and polynomial staleness 1 / (1 + tau) puts that at half (FedAsync,
arXiv:1903.03934). To wait as long as the waiting costs what it may gain is at most twice as bad as to know the future
(ski rental).
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

WORTH_OF_LATE_TOKENS = 0.5
# Below this, waiting is message delays and jitter, and costs nobody anything.
LEAST_WAIT_S = 0.25
# A peer's first phase has its data to read and its kernels to warm up, which no earlier phase could tell.
FIRST_GRACE_S = 3.0
# Nor could a round: a vector passes at a byte an element over a link of 8 Mbit/s.
FIRST_ELEMENTS_PER_S = 1e6


def worth_waiting_until(ready: Sequence[tuple[float, float]], missing_tokens: float) -> float:
    """When the tokens idled by those who are ready outweigh those of the missing.

    Args: ready has (tokens/s in training, loop time since which it is ready) of each.
    """
    tokens_per_s = sum(rate for rate, _ in ready)
    if tokens_per_s <= 0:
        return max(since for _, since in ready)
    gain = (1 - WORTH_OF_LATE_TOKENS) * missing_tokens
    return (gain + sum(rate * since for rate, since in ready)) / tokens_per_s


class Pace:
    """Windows and deadlines from the last eight inner phases and rounds of this peer.

    Args: n_elements is how long the vector is that a round sends.
    """

    def __init__(self, n_elements: int = 0) -> None:
        self._first_s = n_elements / FIRST_ELEMENTS_PER_S
        self._phases: deque[float] = deque(maxlen=8)
        self._rounds: deque[float] = deque(maxlen=8)

    def phase(self, seconds: float) -> None:
        self._phases.append(seconds)

    def round(self, seconds: float) -> None:
        self._rounds.append(seconds)

    def stop_at(self, begun_at: float, ready: Sequence[tuple[int, float]], missing_tokens: float) -> float:
        """When those who are still training stop and contribute what they have.

        Never later than half an inner phase after the first Ready: a newcomer then hands in what little it has.

        Args: ready has (tokens, loop time of its Ready) of each that is ready.
        """
        first_at = min(since for _, since in ready)
        usual = first_at - begun_at if self.phase_s is None else self.phase_s
        rates = [(tokens / max(since - begun_at, 0.5 * usual, 1e-3), since) for tokens, since in ready]
        until = min(worth_waiting_until(rates, missing_tokens), first_at + 0.5 * usual)
        return max(until, first_at + 2 * LEAST_WAIT_S)

    def begin_by(self, first_ready_at: float, stop_at: float, inner_step_s: float) -> float:
        """When the leader begins without those who stopped and have not said so: they end an inner step first.

        Args: inner_step_s is what the slowest of them needs for one, as far as known.
        """
        waited = stop_at - first_ready_at
        until = (
            stop_at + LEAST_WAIT_S + 0.5 * waited + min(1.5 * inner_step_s, max(waited, 0.1 * (self.phase_s or 0.0)))
        )
        return until if self._phases else max(until, first_ready_at + LEAST_WAIT_S + FIRST_GRACE_S)

    def shares_by(self, followed_at: float, half_at: float | None, here_tokens: int, missing_tokens: int) -> float:
        """When a reducer goes on without the shares that are missing, by the rule above or by the others' example.

        The dead do not take it: their streams end.

        Args:
            half_at: when more than half of the shares were here, None if they are not.
            here_tokens, missing_tokens: what those whose shares are here have trained, and those who are waited for.
        """
        if half_at is None:
            return followed_at + self.reduce_s
        phase_s = self.phase_s or 0.0
        worth_s = (1 - WORTH_OF_LATE_TOKENS) * phase_s * missing_tokens / max(1, here_tokens)
        return half_at + max(LEAST_WAIT_S, min(worth_s, phase_s), 0.5 * (half_at - followed_at))

    @property
    def phase_s(self) -> float | None:
        """How long this peer's inner phase usually takes, None before the first."""
        return median(self._phases) if self._phases else None

    @property
    def reduce_s(self) -> float:
        """How long the shares or results of half of the group may take."""
        return max(5.0, 5 * median(self._rounds)) if self._rounds else max(30.0, self._first_s)

    @property
    def round_s(self) -> float:
        """How long a round usually takes."""
        return median(self._rounds) if self._rounds else max(10.0, self._first_s / 3)

    def attempt_s(self, attempt: int, begun: bool) -> float:
        """How long a ready member waits before it tries another leader; doubles, to let a slow one end.

        From the descriptor to the commit if the leader has begun, else beyond the moment when it had to begin: it may
        wait a second for a lost peer itself.
        """
        return (max(5.0, 10 * self.round_s) if begun else 2.0) * float(1 << min(attempt, 4))
