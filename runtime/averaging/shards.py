"""Where the flat pseudo-gradient is cut: one range for each member that reduces, as long as its link is good for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Beyond this no link is what a round waits for (2.4 Gbit/s), and what is measured there is the machine's other work.
FAST_BYTES_PER_S = 300e6
# Halvings of the interval in which the time of a round is looked for: to the last bit of a float.
HALVINGS = 100


@dataclass(frozen=True)
class Link:
    """Of one member: rates in one unit, any; whether it contributes, and whether it may reduce."""

    up: float
    down: float
    trains: bool = True
    reduces: bool = True

    def part(self, time: float, n_members: int, n_trainers: int) -> float:
        """The largest part of the vector that this member can reduce in ``time``, in vectors over a rate's unit.

        With part x it sends its shares of all other parts, and x to each other member; it receives x from each other
        who trains, and all other parts as results.
        """
        if not self.reduces:
            return 0.0
        sent = 1 if self.trains else 0
        up = _most(time * self.up - sent, n_members - 1 - sent)
        down = _most(time * self.down - 1, n_trainers - sent - 1)
        return max(0.0, min(up, down, 1.0))


def _most(room: float, slope: int) -> float:
    """The largest x with ``slope * x <= room``."""
    if slope > 0:
        return room / slope
    return math.inf if room >= 0 else 0.0


def shard_parts(links: Sequence[Link]) -> list[float]:
    """The part of the vector that each member reduces, so that the slowest is done as early as can be.

    The parts that all can reduce in a time grow with it; the least time in which they make up the whole is looked for.
    It is what the linear program gives. A link too slow to be done by then even so reduces nothing.

    Returns: parts that sum to one. Equal ones if nobody may reduce.
    """
    n, n_trainers = len(links), sum(link.trains for link in links)
    if not any(link.reduces for link in links):
        return [1.0 / n] * n
    if n_trainers == n <= 2 or n_trainers == 1:
        # What either of two sends does not depend on the cut, and one contribution alone is in everybody's hands.
        n_able = sum(link.reduces for link in links)
        return [link.reduces / n_able for link in links]

    def parts(time: float) -> list[float]:
        return [link.part(time, n, n_trainers) for link in links]

    low, high = 0.0, 2 * n / min(min(link.up, link.down) for link in links if link.reduces)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if sum(parts(middle)) >= 1 else (middle, high)
    found = parts(high)
    return [part / sum(found) for part in found]


def least_time(links: Sequence[Link], parts: Sequence[float]) -> float:
    """When the last member is done if nothing but its link holds it up, in vectors over a rate's unit.

    Args: parts as of ``shard_parts``.
    """
    n, n_trainers = len(links), sum(link.trains for link in links)
    times = [0.0]
    for link, part in zip(links, parts, strict=True):
        sent = 1 if link.trains else 0
        times.append(((1 - part) * sent + part * (n - 1)) / link.up)
        times.append((part * (n_trainers - sent) + 1 - part) / link.down)
    return max(times)


def shard_bounds(n_elements: int, parts: Sequence[float], block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut points ``0 = b0 < b1 < ... = n_elements`` in whole blocks, and for each shard the index of its part.

    A shard begins at a multiple of ``block`` elements, so that a codec's blocks never span two shards. A part that
    comes to no block has no shard.
    """
    n_blocks = -(-n_elements // block)
    bounds, owners, done = [0], list[int](), 0.0
    for index, part in enumerate(parts):
        done += part / sum(parts)
        stop = min(round(done * n_blocks) * block, n_elements)
        if stop > bounds[-1]:
            bounds.append(stop)
            owners.append(index)
    if bounds[-1] < n_elements:
        # Rounding has left the last block to nobody.
        bounds[-1] = n_elements
    return tuple(bounds), tuple(owners)
