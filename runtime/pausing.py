"""When a peer takes a break: decided from what the user has said, the clock, the battery and the other programs."""

import math
from dataclasses import dataclass

from runtime.limits import Limits, clock
from runtime.monitor.words import size_words

# Of all cores together, what other programs use: above the one a machine is busy, below the other it is free again.
BUSY_SHARE, FREE_SHARE = 0.5, 0.25
# How far the mean looks back. A pause costs others a member and this peer a join: it is not to begin with every
# compile, nor to end between two. All cores taken: paused after 14 s; all free again: resumed after 83 s.
BUSY_OVER_S, FREE_OVER_S = 20.0, 60.0


@dataclass(frozen=True)
class Look:
    """What there was to be seen of the machine at one moment."""

    minute: int
    """Of the day, by the clock on the wall."""
    on_battery: bool = False
    others_share: float = 0.0
    """Of all cores since the look before, what programs other than this peer used, 0 to 1."""
    memory_bytes: int = 0
    """Resident, of this peer's processes together."""


class Busy:
    """Whether other programs need the machine: their share, smoothed, against two thresholds."""

    def __init__(self) -> None:
        self.is_busy = False
        self._mean = 0.0
        self._looked_at: float | None = None

    def look(self, now: float, share: float) -> bool:
        """Take in their share since the look before; whether the machine is busy now."""
        passed_s = 0.0 if self._looked_at is None else max(now - self._looked_at, 0.0)
        over_s = FREE_OVER_S if self.is_busy else BUSY_OVER_S
        self._mean += (share - self._mean) * (1 - math.exp(-passed_s / over_s))
        self._looked_at = now
        self.is_busy = self._mean > (FREE_SHARE if self.is_busy else BUSY_SHARE)
        return self.is_busy


def reason_to_pause(limits: Limits, look: Look, *, asked: bool, busy: bool, too_large_bytes: int = 0) -> str | None:
    """Why the peer is not to take part now, None if it may.

    Args:
        asked: the user has said so, and not taken it back.
        busy: as ``Busy`` has it.
        too_large_bytes: what the peer held of the memory when it took more than its limit; 0 if it did not.
    """
    if asked:
        return "as you said"
    # What came over the limit once comes over it again: only a higher limit, or the user's word, ends this pause.
    if limits.memory_bytes and too_large_bytes > limits.memory_bytes:
        return f"it held {size_words(too_large_bytes)} of memory, and the limit is {size_words(limits.memory_bytes)}"
    if limits.hours is not None and not limits.hours.has(look.minute):
        spans = ",".join(f"{clock(start)}-{clock(stop)}" for start, stop in limits.hours.spans)
        return f"outside {spans}, again at {clock(limits.hours.next_start(look.minute))}"
    if limits.pause_on_battery and look.on_battery:
        return "on battery"
    if limits.pause_when_busy and busy:
        return "other programs are busy"
    return None
