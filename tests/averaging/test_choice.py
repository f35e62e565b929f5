"""``codec = "auto"``: int8 on a link, float32 where the link is faster than the codec."""

import math

import pytest

from runtime.averaging.codecs.choice import AUTO, CHOICES, allowed, chosen, exact_from, measured_costs
from runtime.averaging.messages import Ready
from runtime.averaging.plan import slowest_link

COSTS = {"int8": 4e-9, "float32": 1e-9}


def ready(up: int, down: int) -> Ready:
    return Ready(0, 0, bytes(32), bytes(32), 1, None, None, None, (), up, down)


def test_it_changes_over_at_the_rate_that_the_docs_say_how_to_compute() -> None:
    for n_members in (2, 4, 8):
        threshold = exact_from(COSTS, n_members)
        assert chosen(AUTO, COSTS, round(threshold * 0.99), n_members) == "int8"
        assert chosen(AUTO, COSTS, round(threshold * 1.01), n_members) == "float32"
    # 3 bytes an element are saved, each of 2 (n - 1) / n passes, for 3 ns of the processor.
    assert exact_from(COSTS, 2) == pytest.approx(2.999 * 1 / 3e-9, rel=1e-3)


def test_a_link_of_which_nothing_is_known_is_not_a_fast_one_and_who_is_alone_has_no_link() -> None:
    assert chosen(AUTO, COSTS, 0, 4) == "int8"
    assert chosen(AUTO, COSTS, 0, 1) == "float32"


def test_the_slowest_link_either_way_decides() -> None:
    assert slowest_link([ready(9, 7), ready(8, 0)]) == 7
    assert slowest_link([ready(9, 7), ready(0, 0)]) == 0


def test_where_int8_costs_no_more_it_is_always_the_quicker() -> None:
    assert math.isinf(exact_from({"int8": 1e-9, "float32": 1e-9}, 4))


@pytest.mark.parametrize("codec", ["int8", "fp4"])
def test_a_run_that_names_its_codec_has_no_other(codec: str) -> None:
    assert chosen(codec, COSTS, 1 << 40, 4) == codec
    assert allowed(codec) == (codec,)
    assert allowed(AUTO) == CHOICES


def test_what_the_codecs_cost_is_measured() -> None:
    costs = measured_costs()
    assert set(costs) == set(CHOICES)
    assert all(1e-11 < cost < 1e-6 for cost in costs.values())
