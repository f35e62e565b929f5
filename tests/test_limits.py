"""What a volunteer writes as limits, what it means, and when a peer pauses for it."""

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import machine
from runtime.limits import MINUTES_A_DAY, Hours, Limits, limit_words, parse_hours, parse_rate, parse_size
from runtime.machine import MOST_FILES, Spent, allow_files, others_share
from runtime.pausing import Busy, Look, reason_to_pause

NOON, NIGHT = 12 * 60, 23 * 60
NIGHTS = Limits(hours=parse_hours("22:00-07:00"))


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("2MB/s", 2_000_000),
        ("500kB/s", 500_000),
        ("500KB/s", 500_000),
        ("10Mbit/s", 1_250_000),
        ("1.5 MB/s", 1_500_000),
        ("1Gbit/s", 125_000_000),
        ("125000B/s", 125_000),
        ("off", 0),
    ],
)
def test_a_rate_is_read_in_bytes_and_in_bits(text: str, bytes_per_s: int) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize(
    "text", ["", "2", "2MB", "2Mb/s", "2mb/s", "-2MB/s", "2MB/h", "1e3kB/s", "nan", "٣MB/s", "2MB/s "]
)
def test_what_could_mean_two_things_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0MB/s", "0.4B/s", "0kbit/s"])
def test_to_lend_nothing_is_not_to_lend_all(text: str) -> None:
    with pytest.raises(ValueError, match="is nothing; no limit is off"):
        parse_rate(text)
    with pytest.raises(ValueError, match="is nothing; no limit is off"):
        parse_size("0GB")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GB", 4 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("0.5 TB", 5 * 10**11), ("off", 0)],
)
def test_a_size_is_read(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "4", "4G", "4gb", "4GB/s", "-4GB", "four"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


def test_hours_may_go_over_midnight_and_there_may_be_several() -> None:
    hours = parse_hours("22:00-07:00, 12:30-13:00")
    assert hours is not None
    open_at = [minute for minute in range(MINUTES_A_DAY) if hours.has(minute)]
    assert open_at == [*range(7 * 60), *range(750, 780), *range(22 * 60, MINUTES_A_DAY)]
    assert hours.next_start(8 * 60) == 750
    assert hours.next_start(14 * 60) == 22 * 60


@pytest.mark.parametrize(
    "text", ["", "22", "22-07", "22:00", "25:00-07:00", "22:60-07:00", "07:00-07:00", "00:00-24:00", "1:2-3:4"]
)
def test_what_is_no_span_of_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"span|day"):
        parse_hours(text)


@given(st.integers(0, MINUTES_A_DAY - 1), st.integers(0, MINUTES_A_DAY - 1), st.integers(0, MINUTES_A_DAY - 1))
def test_a_span_has_its_beginning_and_not_its_end(start: int, stop: int, minute: int) -> None:
    if start == stop:
        return
    hours = Hours(((start, stop),))
    assert hours.has(start)
    assert not hours.has(stop)
    inside = start <= minute < stop if start < stop else not stop <= minute < start
    assert hours.has(minute) is inside


def test_without_a_reason_nothing_pauses() -> None:
    look = Look(NOON, on_battery=True, others_share=1.0, memory_bytes=10**12)
    assert reason_to_pause(Limits(), look, asked=False, busy=True) is None


def test_each_limit_is_a_reason_of_its_own() -> None:
    noon, unplugged = Look(NOON), Look(NIGHT, on_battery=True)
    assert reason_to_pause(NIGHTS, Look(NIGHT), asked=False, busy=False) is None
    assert reason_to_pause(NIGHTS, noon, asked=False, busy=False) == "outside 22:00-07:00, again at 22:00"
    assert reason_to_pause(Limits(pause_on_battery=True), unplugged, asked=False, busy=False) == "on battery"
    assert reason_to_pause(Limits(pause_when_busy=True), noon, asked=False, busy=True) == "other programs are busy"
    assert reason_to_pause(Limits(), noon, asked=True, busy=False) == "as you said"
    held = "it held 5 GB of memory, and the limit is 4 GB"
    assert (
        reason_to_pause(Limits(memory_bytes=4 * 10**9), noon, asked=False, busy=False, too_large_bytes=5 * 10**9)
        == held
    )


def test_a_pause_for_memory_ends_with_a_higher_limit() -> None:
    for limit in (0, 6 * 10**9):
        raised = Limits(memory_bytes=limit)
        assert reason_to_pause(raised, Look(NOON), asked=False, busy=False, too_large_bytes=5 * 10**9) is None


def busy_for(busy: Busy, share: float, seconds: float, since: float = 0.0) -> float | None:
    """After how many seconds of such a share the answer changes, looking every two; None if it does not."""
    was = busy.is_busy
    for step in range(int(seconds / 2) + 1):
        if busy.look(since + 2.0 * step, share) is not was:
            return 2.0 * step
    return None


def test_a_machine_is_busy_after_a_while_and_free_after_a_longer_one() -> None:
    busy = Busy()
    assert busy_for(busy, 1.0, 60) == 14
    assert busy_for(busy, 0.4, 600, since=14) is None, "between the thresholds all stays as it is"
    assert busy_for(busy, 0.0, 600, since=616) == 28, "from 0.4; from 1 it takes 84 s"
    assert busy_for(busy, 0.4, 600, since=1400) is None


def test_a_short_burst_pauses_nothing() -> None:
    busy = Busy()
    for second in range(0, 600, 2):
        assert not busy.look(second, 1.0 if second % 60 < 10 else 0.1)


def test_a_limit_in_words_is_what_its_user_would_say() -> None:
    assert [limit_words(value) for value in ("2MB/s", "off", 2, 0, True, False)] == [
        *("2MB/s", "off", "2", "any", "on", "off")
    ]


def test_own_work_is_not_that_of_others() -> None:
    before = Spent(all_s=1000.0, busy_s=500.0, own_s=100.0)
    assert others_share(before, Spent(1020.0, 520.0, 119.0)) == pytest.approx(0.05)
    assert others_share(before, Spent(1020.0, 516.0, 100.0)) == pytest.approx(0.8)
    assert others_share(before, Spent(1020.0, 520.0, 60.0)) == 1.0, "a child that has ended took its time with it"
    assert others_share(before, before) == 0.0


def test_a_mouse_that_runs_down_is_not_this_machine_on_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SUPPLIES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(power_plugged=False))
    (tmp_path / "hidpp_battery_0").mkdir()
    (tmp_path / "hidpp_battery_0" / "scope").write_text("Device\n")
    assert not machine.Machine().look().on_battery
    (tmp_path / "BAT0").mkdir()
    assert machine.Machine().look().on_battery


def test_a_machine_that_says_little_of_itself_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise FileNotFoundError("/sys/class/power_supply")

    for name in ("sensors_battery", "cpu_times"):
        monkeypatch.setattr(psutil, name, missing)
    looking = machine.Machine()
    for _ in range(2):
        look = looking.look()
        assert (look.on_battery, look.others_share) == (False, 0.0)


def test_a_peer_may_have_as_many_files_open_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_files()
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert allowed == (MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard))
        # Who was given more keeps it.
        allow_files(most=100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
