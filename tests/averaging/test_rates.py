"""What a link carries, seen from the rounds."""

import pytest

from runtime.averaging.rates import LEAST_BYTES, Meter


def a_round(meter: Meter, bytes_per_s: float, seconds: float, idle_s: float = 0.0, began: float = 100.0) -> None:
    for tick in range(round(seconds / 0.01)):
        meter.count(round(bytes_per_s * 0.01), began + idle_s + tick * 0.01)
    meter.round_over()


def test_nothing_is_known_before_a_round_and_little_is_learnt_from_a_small_one() -> None:
    meter = Meter()
    assert meter.bytes_per_s == 0
    meter.count(LEAST_BYTES - 1, 1.0)
    meter.round_over()
    assert meter.bytes_per_s == 0


@pytest.mark.parametrize("seconds", [0.2, 1.0, 10.0])
def test_the_rate_is_that_of_a_full_link(seconds: float) -> None:
    meter = Meter()
    a_round(meter, 6.25e7, seconds)
    assert meter.bytes_per_s == pytest.approx(6.25e7, rel=0.1)


def test_a_link_that_waits_for_others_half_of_the_time_is_not_taken_for_a_slow_one() -> None:
    meter = Meter()
    for second in range(4):
        for tick in range(50):
            meter.count(62_500, 100.0 + second + tick * 0.01)
    meter.round_over()
    assert meter.bytes_per_s == pytest.approx(6.25e6, rel=0.1)


def test_a_link_that_has_become_slower_is_known_after_three_rounds_and_a_faster_one_after_one() -> None:
    meter = Meter()
    for rate in (6.25e6, 6.25e5, 6.25e5, 6.25e5):
        a_round(meter, rate, 3.0)
    assert meter.bytes_per_s == pytest.approx(6.25e5, rel=0.1)
    a_round(meter, 2.5e7, 1.0)
    assert meter.bytes_per_s == pytest.approx(2.5e7, rel=0.1)
