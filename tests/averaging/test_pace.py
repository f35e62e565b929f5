"""The rule for stragglers, by its figures: docs/agreement.md has it in words."""

import pytest

from runtime.averaging.pace import FIRST_GRACE_S, LEAST_WAIT_S, Pace, worth_waiting_until


def paced(phase_s: float, round_s: float = 0.1) -> Pace:
    pace = Pace()
    pace.phase(phase_s)
    pace.round(round_s)
    return pace


def test_waiting_ends_when_half_the_missing_tokens_have_been_idled() -> None:
    # Three peers of 100 tokens/s idle 300 tokens a second; half of the missing 1200 are 600: two seconds.
    assert worth_waiting_until([(100.0, 50.0)] * 3, 1200) == pytest.approx(52.0)


def test_who_has_waited_longer_has_idled_more() -> None:
    assert worth_waiting_until([(100.0, 50.0), (100.0, 52.0)], 1200) == pytest.approx(54.0)


def test_peers_that_train_nothing_lose_nothing_and_gain_nothing() -> None:
    assert worth_waiting_until([(0.0, 50.0), (0.0, 51.0)], 1200) == 51.0


def test_the_more_are_ready_the_shorter_a_straggler_is_waited_for() -> None:
    waits = [paced(10.0).stop_at(0.0, [(1000, 10.0)] * n_ready, 1000) - 10.0 for n_ready in (1, 2, 4)]
    assert waits == pytest.approx([5.0, 2.5, 1.25])


def test_nobody_waits_longer_than_half_a_phase() -> None:
    assert paced(10.0).stop_at(0.0, [(1000, 10.0)], 100_000) == pytest.approx(15.0)


def test_a_moment_of_jitter_is_always_waited_for() -> None:
    assert paced(10.0).stop_at(0.0, [(1000, 10.0)] * 100, 1) == pytest.approx(10.0 + 2 * LEAST_WAIT_S)


def test_the_first_phase_has_its_kernels_to_warm_up() -> None:
    assert Pace().begin_by(10.0, 10.5, 0.0) >= 10.0 + FIRST_GRACE_S
    assert paced(10.0).begin_by(10.0, 10.5, 0.0) < 10.0 + FIRST_GRACE_S


def test_who_was_told_to_stop_may_end_its_inner_step() -> None:
    assert paced(100.0).begin_by(10.0, 10.0, 2.0) == pytest.approx(10.0 + LEAST_WAIT_S + 3.0)
    assert paced(100.0).begin_by(10.0, 10.0, 60.0) == pytest.approx(10.0 + LEAST_WAIT_S + 10.0)


def test_a_reducer_waits_for_a_late_share_as_long_as_it_is_worth() -> None:
    # One of four equals is missing: three idle for it, each at most a third of half its phase.
    assert paced(8.0).shares_by(0.0, 1.0, 3000, 1000) == pytest.approx(1.0 + 4.0 / 3)
    assert paced(8.0).shares_by(0.0, None, 1000, 3000) == pytest.approx(5.0)
    # One that carries the work of many steps, or a far faster one: but nobody idles for more than a phase.
    assert paced(8.0).shares_by(0.0, 1.0, 4000, 3000) == pytest.approx(1.0 + 3.0)
    assert paced(8.0).shares_by(0.0, 1.0, 3000, 90_000) == pytest.approx(1.0 + 8.0)


def test_each_attempt_is_given_up_later_than_the_one_before() -> None:
    ends = [paced(10.0).attempt_s(attempt, begun=True) for attempt in range(6)]
    assert ends == sorted(ends)
    assert ends[-1] == ends[-2]


def test_before_the_first_round_a_large_model_has_the_time_that_a_slow_link_takes_for_it() -> None:
    small, large = Pace(1_000_000), Pace(123_000_000)
    assert small.shares_by(10.0, None, 0, 0) == 10.0 + 30.0
    assert large.shares_by(10.0, None, 0, 0) == 10.0 + 123.0
    assert large.attempt_s(0, begun=True) > large.reduce_s > small.reduce_s
    large.round(20.0)
    assert large.reduce_s == 100.0
