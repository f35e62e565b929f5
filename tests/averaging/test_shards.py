from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from runtime.averaging.shards import Link, least_time, shard_bounds, shard_parts


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


def passes(links: Sequence[Link], index: int, part: float) -> tuple[float, float]:
    """Vectors that a member sends and receives which reduces this part: counted share by share and result by result."""
    link, others = links[index], [link for at, link in enumerate(links) if at != index]
    shares_out = (1 - part) * link.trains
    results_out = part * len(others)
    shares_in = part * sum(other.trains for other in others)
    results_in = 1 - part
    return shares_out + results_out, shares_in + results_in


def slowest_s(parts: Sequence[float], links: Sequence[Link]) -> float:
    times = []
    for index, (part, link) in enumerate(zip(parts, links, strict=True)):
        up, down = passes(links, index, part)
        times.append(max(up / link.up, down / link.down))
    return max(times)


RATES = st.floats(0.01, 100.0)
LINKS = st.lists(st.builds(Link, RATES, RATES, st.booleans(), st.booleans()), min_size=2, max_size=9)


@settings(deadline=None, max_examples=300)
@given(LINKS.filter(lambda links: sum(one.trains for one in links) >= 2 and any(one.reduces for one in links)))
def test_the_parts_are_those_of_the_linear_program(links: list[Link]) -> None:
    n = len(links)
    parts = shard_parts(links)
    assert sum(parts) == pytest.approx(1.0)
    assert all(part >= 0 and (link.reduces or part == 0) for part, link in zip(parts, links, strict=True))
    # minimise T over (x, T): what each sends and receives, linear in its x, <= T times its rate; sum x = 1.
    rows, room = [], []
    for index, link in enumerate(links):
        for way, rate in ((0, link.up), (1, link.down)):
            still = passes(links, index, 0.0)[way]
            slope = passes(links, index, 1.0)[way] - still
            rows.append([slope * (index == at) for at in range(n)] + [-rate])
            room.append(-still)
    least = linprog(
        [0.0] * n + [1.0],
        A_ub=rows,
        b_ub=room,
        A_eq=[[1.0] * n + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None) if link.reduces else (0, 0) for link in links] + [(0, None)],
    )
    assert slowest_s(parts, links) == pytest.approx(least.fun, rel=1e-6)
    assert least_time(links, parts) == pytest.approx(slowest_s(parts, links))


def test_a_member_with_a_slow_link_reduces_nothing_and_equal_ones_share_alike() -> None:
    fast, slow = Link(10.0, 10.0), Link(1.0, 1.0)
    assert shard_parts([fast, fast, fast, slow]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
    assert shard_parts([fast] * 4) == pytest.approx([0.25] * 4)
    nowhere = Link(10.0, 10.0, reduces=False)
    assert shard_parts([nowhere, fast, nowhere]) == [0.0, 1.0, 0.0]
    assert shard_parts([nowhere, nowhere]) == [0.5, 0.5]


def test_an_auxiliary_peer_takes_the_reducing_off_those_with_slow_uploads() -> None:
    home, rented = Link(1.0, 10.0), Link(100.0, 100.0, trains=False)
    parts = shard_parts([home, home, home, rented])
    assert parts == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=1e-9)
    assert slowest_s(parts, [home, home, home, rented]) == pytest.approx(1.0), (
        "each sends its contribution, and no more"
    )
    assert slowest_s(shard_parts([home] * 3), [home] * 3) == pytest.approx(4 / 3)
