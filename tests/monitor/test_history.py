"""The past of a run stays within bounds, on disk and in memory, and is the same for who comes late."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.monitor.history import MOST_MARKS, MOST_STEPS, MOST_WHOLE, History

MEMBERS = ["ann", "bob"]


def commit(step: int, **more: Any) -> dict[str, Any]:
    fields = {"loss": 2.0, "tokens": 10 * step, "live": 2, "round_s": 0.1, "members": MEMBERS, "figures": [None, None]}
    return {"event": "outer_step_committed", "time": 100.0 + step, "peer": "ann", "outer_step": step, **fields, **more}


def strike(time: float) -> dict[str, Any]:
    return {"event": "strike", "time": time, "peer": "ann", "member": "bob", "reason": "late"}


def test_the_last_steps_are_whole_and_those_before_have_what_is_of_the_run() -> None:
    history = History()
    for step in range(1, MOST_WHOLE + 11):
        history.add(commit(step))
    told = history.since(0)
    assert [event["outer_step"] for event in told] == list(range(1, MOST_WHOLE + 11))
    assert all("figures" not in event and event["n_members"] == 2 for event in told[:10])
    assert all(event["members"] == MEMBERS for event in told[10:])


def test_a_long_run_is_thinned_evenly_and_keeps_its_first_step_and_its_last_ones() -> None:
    history = History()
    last = 5 * MOST_STEPS
    for step in range(1, last + 1):
        history.add(commit(step))
    steps = [event["outer_step"] for event in history.since(0)]
    assert len(steps) <= MOST_STEPS
    assert steps[0] == 1
    assert steps[-MOST_WHOLE:] == list(range(last - MOST_WHOLE + 1, last + 1))
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert max(gaps) <= 16


def test_marks_are_bounded_and_what_nobody_needs_is_not_kept() -> None:
    history = History()
    for number in range(MOST_MARKS + 5):
        history.add(strike(float(number)))
    history.add({"event": "transfer_failed", "time": 1.0, "peer": "ann"})
    assert len(history.since(0)) == MOST_MARKS
    assert history.since(0)[0]["time"] == 5.0


def test_it_is_on_disk_and_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history.add(commit(step))
    with path.open("ab") as file:
        file.write(json.dumps(commit(4)).encode()[:40])
    again = History(path)
    assert again.outer_step == 3
    again.add(commit(4))
    assert History(path).since(0) == again.since(0)


def test_the_file_does_not_grow_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    for _ in range(20):
        for step in range(1, 200):
            history.add(commit(step))
    assert len(path.read_bytes().splitlines()) < 1500


def test_who_comes_late_has_what_was_before_and_keeps_its_own_word_of_what_it_saw() -> None:
    old, late = History(), History()
    for step in range(1, 11):
        old.add(commit(step))
    old.add(strike(105.5))
    late.add(commit(10, peer="bob"))
    late.merge(old.since(0))
    told = late.since(0)
    assert [event["outer_step"] for event in told if "outer_step" in event] == list(range(1, 11))
    assert told[-1]["peer"] == "bob"
    assert [event["event"] for event in told].count("strike") == 1
    assert [event["outer_step"] for event in late.since(7)] == [8, 9, 10]
    late.merge([commit(1 << 40)], until=10)
    assert late.outer_step == 10, "of a future nothing is believed"


def test_what_has_no_time_or_no_step_is_nothing() -> None:
    history = History()
    history.merge(
        [
            {"event": "outer_step_committed"},
            {"event": "strike"},
            commit(1, time="now"),
            commit(1, time=10**400),
            strike(float("inf")),
            {**commit(1), "outer_step": "x"},
            # As keys these would end who looks them up.
            {**commit(1), "outer_step": [1]},
            {**commit(1), "outer_step": {}},
            {**commit(1), "outer_step": -1},
            {**strike(1), "event": []},
            {**strike(1), "event": {}},
        ]
    )
    assert history.since(0) == []


def test_what_is_told_again_is_kept_once_and_who_was_there_hears_only_what_is_new() -> None:
    """A peer that comes back each night asks for the past each time."""
    history, told = History(), [*(commit(step) for step in range(1, 6)), strike(103.5), strike(105.5)]
    for _ in range(3):
        history.merge(told)
    assert history.since(0).count(strike(103.5)) == 1
    assert [event["event"] for event in history.since(4)] == ["outer_step_committed", "strike"]
    assert history.since(5) == [strike(105.5)]


@pytest.mark.parametrize(
    "large",
    [
        strike(1.0) | {"reason": "x" * 1000},
        strike(1.0) | {"reason": [{}] * 100},
        strike(1.0) | {str(number): 0 for number in range(100)},
        strike(1.0) | {"a": {"b": {"c": 1}}},
        commit(1) | {"figures": [{}, {}]},
        commit(1) | {"figures": [{"up": [1]}, None]},
        commit(1) | {"losses": [0] * 100_000},
        commit(1) | {"figures": [{str(number): "x" * 300 for number in range(30)}] * 100},
    ],
    ids=["word", "list", "keys", "depth", "empty", "nested", "long", "all of it"],
)
def test_what_others_tell_takes_no_more_memory_than_an_honest_word(large: dict[str, Any]) -> None:
    history = History()
    history.merge([large])
    assert history.since(0) == []
