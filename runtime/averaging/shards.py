"""Where the flat pseudo-gradient is cut: one range for each member that reduces, as long as its link is good for."""

from collections.abc import Sequence

# Beyond this no link is what a round waits for (2.4 Gbit/s), and what is measured there is the machine's other work.
FAST_BYTES_PER_S = 300e6


def shard_parts(rates: Sequence[float | None]) -> list[float]:
    """The part of the vector that each member reduces, so that the slowest member is done as early as can be.

    With part x a member sends, and receives, 1 + (n - 2) x vectors: its shares for the others, and its shard from and
    to each of them. So the best x are where all are done at the same time T, but for those whose link is too slow to
    reduce anything: x = (T rate - 1) / (n - 2), not below zero, T such that they sum to one. It is what the linear
    program gives.

    Args: rates are the slower of up and down, in any unit, of each member; None for one that is not to reduce.
    Returns: parts that sum to one. Equal ones if nobody may reduce.
    """
    n = len(rates)
    able = [rate for rate in rates if rate is not None]
    if not able:
        return [1.0 / n] * n
    if n <= 2:
        # What a member of two sends does not depend on the cut.
        return [1.0 / len(able) if rate is not None else 0.0 for rate in rates]
    done_at = _done_at(sorted(able, reverse=True), n)
    parts = [max(0.0, (done_at * rate - 1) / (n - 2)) if rate is not None else 0.0 for rate in rates]
    return [part / sum(parts) for part in parts]


def _done_at(rates: Sequence[float], n: int) -> float:
    """T of those of the rates, the highest first, that are worth a shard."""
    for count in range(len(rates), 0, -1):
        done_at = (n - 2 + count) / sum(rates[:count])
        if done_at * rates[count - 1] >= 1:
            return done_at
    raise AssertionError("the fastest alone is always worth it")


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
