"""How fast this peer's link is, learnt from the transfers of the rounds that happen anyway."""

from collections import deque

# Long enough that what is counted has gone over the link, short against a round on a slow one.
BUCKET_S, BUCKETS = 0.1, 3
# Below this a round says more of delays than of rates.
LEAST_BYTES = 1 << 20


class Meter:
    """Bytes one way. The rate is the highest over 0.3 s of a round, of the last three rounds the highest.

    The highest, because for the rest of a round a link waits for others. Times are loop time in seconds.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._first_at = self._last_at = 0.0
        self._rounds: deque[float] = deque(maxlen=3)

    def count(self, n_bytes: int, now: float) -> None:
        """So many bytes have gone, or come, by now."""
        if not self._buckets:
            self._first_at = now
        self._last_at = now
        bucket = int(now / BUCKET_S)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + n_bytes

    def round_over(self) -> None:
        buckets, self._buckets = self._buckets, {}
        if sum(buckets.values()) < LEAST_BYTES:
            return
        span_s = max(self._last_at - self._first_at, 1e-3)
        if span_s < BUCKETS * BUCKET_S:
            self._rounds.append(sum(buckets.values()) / span_s)
            return
        most = max(sum(buckets.get(bucket + later, 0) for later in range(BUCKETS)) for bucket in buckets)
        self._rounds.append(most / (BUCKETS * BUCKET_S))

    @property
    def bytes_per_s(self) -> int:
        """0 while nothing is known."""
        return round(max(self._rounds, default=0.0))
