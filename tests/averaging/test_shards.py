from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.averaging.shards import shard_bounds


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 10**7), st.integers(1, 256), st.sampled_from([1, 2, 7, 4096]))
@example(1, 256, 4096)
@example(4096 * 256, 256, 4096)
@example(4096 * 256 + 1, 256, 4096)
def test_shards_cover_the_vector_once_in_whole_blocks_and_near_equal(n: int, n_shards: int, block: int) -> None:
    bounds = shard_bounds(n, n_shards, block)
    assert bounds[0] == 0
    assert bounds[-1] == n
    assert all(start < stop for start, stop in pairwise(bounds))
    assert all(bound % block == 0 for bound in bounds[:-1])
    n_blocks = -(-n // block)
    assert len(bounds) - 1 == min(n_shards, n_blocks)
    sizes = [-(-(stop - start) // block) for start, stop in pairwise(bounds)]
    assert max(sizes) - min(sizes) <= 1


def test_bounds_of_a_small_vector_by_hand() -> None:
    assert shard_bounds(10, 3, 4) == (0, 4, 8, 10)
    assert shard_bounds(10, 2, 4) == (0, 4, 10)
    assert shard_bounds(3, 4, 4) == (0, 3)
