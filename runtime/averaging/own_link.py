"""How fast a peer sends to all others together: as its own link carries, so that what has its turn is on its way soon.

Without it the queue before the own link holds what windows allow, and who is first in a round's order is last in it.
"""

import math
from collections.abc import Hashable

# What may wait before the own link, and how long what is seen of it has to last.
OWN_QUEUE_S, OWN_QUEUE_FRAMES, LOOK_S, LOOK_BYTES = 0.02, 2, 0.2, 1 << 18
# A look that shows no queue lets more go, one that shows it lets the queue drain: so much of a second for each second.
MORE, LESS, MOST_LESS = 1.05, 2.0, 0.2
# What the link has carried in its best look holds for a while: for the rest of a round it may wait for others.
FADE, LEAST_PART = 0.95, 0.9
# What the event loop was late for is made up for.
SLACK_S = 0.005
# At one go for one peer: longer, and several meet at a third one's link; shorter, and it costs the processor.
GO_S = 0.01
LEAST_GO_BYTES = 1 << 14


class OwnLink:
    """Times are loop time in seconds. It holds nothing back until a queue was seen.

    A queue before the own link is in every frame's passage, whoever it goes to; one before another's is not. So where
    frames for two others at least came late, the own link is full, and what it carried then is its rate.
    """

    def __init__(self) -> None:
        self.bytes_per_s = self._rate = math.inf
        self._free_at = 0.0
        self._held_back = False
        self._looked_at = self._arrived_at = -math.inf
        self._carried_bytes = 0
        self._best_bytes_per_s = 0.0
        self._queued_s: dict[Hashable, float] = {}

    @property
    def go_bytes(self) -> float:
        """How much of one payload is sent before it is the next one's turn."""
        return max(GO_S * self.bytes_per_s, LEAST_GO_BYTES)

    def busy_s(self, now: float) -> float:
        """For how long nothing more is to be sent; not above 0 if something may be."""
        busy_s = self._free_at - now
        self._held_back |= busy_s > 0
        return busy_s

    def sent(self, n_bytes: int, now: float) -> None:
        self._free_at = max(self._free_at, now - SLACK_S) + n_bytes / self.bytes_per_s

    def arrived(self, n_bytes: int, to: Hashable, queued_s: float, now: float) -> None:
        """A frame has come to a peer, so much later than on an empty path."""
        if now - self._arrived_at > LOOK_S:
            # After a pause it is not the link that it took so long.
            self._begin(now)
        self._arrived_at = now
        self._carried_bytes += n_bytes
        self._queued_s[to] = min(queued_s, self._queued_s.get(to, math.inf))
        if (passed_s := now - self._looked_at) > LOOK_S and self._carried_bytes >= LOOK_BYTES:
            self._look(self._carried_bytes / passed_s)
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._looked_at, self._carried_bytes, self._queued_s, self._held_back = now, 0, {}, False

    def _look(self, bytes_per_s: float) -> None:
        self._best_bytes_per_s = max(bytes_per_s, FADE * self._best_bytes_per_s)
        queued_s = min(self._queued_s.values()) - max(OWN_QUEUE_S, OWN_QUEUE_FRAMES * LEAST_GO_BYTES / bytes_per_s)
        less = 0.0
        if queued_s < 0:
            if self._held_back and bytes_per_s > 0.85 * self._rate:
                self._rate *= MORE
        elif len(self._queued_s) > 1 or bytes_per_s > 0.5 * self._rate:
            self._rate = max(bytes_per_s, LEAST_PART * self._best_bytes_per_s)
            less = min(LESS * queued_s, MOST_LESS)
        self.bytes_per_s = (1 - less) * self._rate
