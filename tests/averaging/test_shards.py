from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from runtime.averaging.shards import shard_bounds, shard_parts


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 10**7), st.integers(1, 256), st.sampled_from([1, 2, 7, 4096]))
@example(1, 256, 4096)
@example(4096 * 256, 256, 4096)
@example(4096 * 256 + 1, 256, 4096)
def test_shards_cover_the_vector_once_in_whole_blocks_and_near_equal(n: int, n_shards: int, block: int) -> None:
    bounds, owners = shard_bounds(n, [1.0 / n_shards] * n_shards, block)
    assert len(owners) == len(bounds) - 1
    assert list(owners) == sorted(set(owners))
    assert bounds[0] == 0
    assert bounds[-1] == n
    assert all(start < stop for start, stop in pairwise(bounds))
    assert all(bound % block == 0 for bound in bounds[:-1])
    n_blocks = -(-n // block)
    assert len(bounds) - 1 == min(n_shards, n_blocks)
    sizes = [-(-(stop - start) // block) for start, stop in pairwise(bounds)]
    assert max(sizes) - min(sizes) <= 1


def test_bounds_of_a_small_vector_by_hand() -> None:
    assert shard_bounds(10, [1, 1, 1], 4) == ((0, 4, 8, 10), (0, 1, 2))
    assert shard_bounds(10, [0.0, 2, 1], 4) == ((0, 8, 10), (1, 2))
    assert shard_bounds(3, [1, 1, 1, 1], 4)[0] == (0, 3)


def slowest_s(parts: Sequence[float], rates: Sequence[float]) -> float:
    return max((1 + (len(rates) - 2) * part) / rate for part, rate in zip(parts, rates, strict=True))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=9), st.data())
def test_the_parts_are_those_of_the_linear_program(rates: list[float], data: st.DataObject) -> None:
    n = len(rates)
    able = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    parts = shard_parts([rate if one else None for rate, one in zip(rates, able, strict=True)])
    assert sum(parts) == pytest.approx(1.0)
    assert all(part >= 0 and (one or part == 0) for part, one in zip(parts, able, strict=True))
    # minimise T over (x, T): 1 + (n - 2) x_i <= T r_i, sum x = 1, x_i = 0 for those who are not able.
    least = linprog(
        [0.0] * n + [1.0],
        A_ub=[[(n - 2.0) * (i == j) for j in range(n)] + [-rates[i]] for i in range(n)],
        b_ub=[-1.0] * n,
        A_eq=[[1.0] * n + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None) if one else (0, 0) for one in able] + [(0, None)],
    )
    assert slowest_s(parts, rates) == pytest.approx(least.fun, rel=1e-6)


def test_a_member_with_a_slow_link_reduces_nothing_and_equal_ones_share_alike() -> None:
    assert shard_parts([10.0, 10.0, 10.0, 1.0]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
    assert shard_parts([5.0] * 4) == pytest.approx([0.25] * 4)
    assert shard_parts([None, 5.0, None]) == [0.0, 1.0, 0.0]
    assert shard_parts([None, None]) == [0.5, 0.5]
