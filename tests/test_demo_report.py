import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runtime.config import InnerSection, OuterSection, RunConfig
from runtime.demo.report import Demo, Happening, build_report, byte_words, ranges, render_report
from runtime.log import Event, parse_events
from runtime.rotation import Tail

STEPS, INNER, BATCH, CONTEXT, P = 4, 10, 2, 8, 1000
FULL = INNER * BATCH * CONTEXT
"""Tokens in a contribution with all its inner steps."""
IDS = {f"peer-{number}": f"12D3KooW{number}" for number in (1, 2, 3)}
DEMO = Demo(
    config=RunConfig(inner=InnerSection(steps=INNER, batch=BATCH), outer=OuterSection(steps=STEPS)),
    n_parameters=P,
    context=CONTEXT,
    peer_ids=IDS,
    wall_s=12.5,
)


def committed(step: int, peer: str, members: dict[str, int], **changed: Any) -> Event:
    return {
        "event": "outer_step_committed",
        "time": 1e9 + step,
        "peer": IDS[peer],
        "outer_step": step,
        "attempt": 0,
        "lineage": f"{step:064x}",
        "anchor_sha256": f"{step + 100:064x}",
        "members": [IDS[name] for name in members],
        "weights": list(members.values()),
        "live": len(members),
        "loss": 3.0 - step / 10,
        "round_s": 0.1 * int(peer[-1]),
        "forming_s": 0.01 * int(peer[-1]),
        "bytes_sent": 100 * step,
        "bytes_received": 200 * step,
        "state_bytes_sent": 7,
    } | changed


def validated(step: int, val_loss: float) -> Event:
    return {"event": "validated", "outer_step": step, "val_loss": val_loss}


def good_logs() -> dict[str, list[Event]]:
    """Peers 1 and 2 take all four steps; peer-3 is killed in the third, before which it has sent 200 bytes."""
    logs: dict[str, list[Event]] = {name: [] for name in IDS}
    for step in range(1, STEPS + 1):
        names = ["peer-1", "peer-2", "peer-3"] if step <= 2 else ["peer-1", "peer-2"]
        for name in names:
            logs[name].append(committed(step, name, dict.fromkeys(names, FULL)))
    logs["peer-1"].insert(0, validated(0, 5.5))
    logs["peer-1"].append(validated(STEPS, 2.0))
    logs["peer-2"].append(validated(STEPS, 3.0))
    return logs


KILLED = dataclasses.replace(DEMO, killed=Happening("peer-3", 3, mid_round=True), down=frozenset({"peer-3"}))


def test_a_good_run_has_no_problems_and_its_figures() -> None:
    report = build_report(good_logs(), KILLED)
    assert report.problems == []
    assert (report.outer_steps, report.anchors_equal) == (STEPS, True)
    assert (report.val_loss_start, report.val_loss_end) == (5.5, 2.5)
    assert report.participation == {"peer-1": (1, 2, 3, 4), "peer-2": (1, 2, 3, 4), "peer-3": (1, 2)}
    assert [done.round_s for done in report.rounds] == pytest.approx([0.3, 0.3, 0.2, 0.2])
    assert report.group_forming_s_median == pytest.approx(0.01)
    assert report.peers["peer-3"].state_bytes_sent == 7


def test_the_ratio_is_a_float32_ring_at_every_inner_step_over_what_was_sent() -> None:
    report = build_report(good_logs(), KILLED)
    ring = 2 * INNER * (3 * 2 * 2 / 3 * 4 * P) + 2 * INNER * (2 * 2 * 1 / 2 * 4 * P)
    assert report.bytes_data_parallel == ring
    assert report.bytes_sent == 400 + 400 + 200
    assert report.bytes_ratio == pytest.approx(ring / 1000)


def test_a_contribution_of_half_the_inner_steps_counts_half() -> None:
    members = {"peer-1": FULL, "peer-2": FULL // 2}
    logs = {name: [committed(1, name, members)] for name in members}
    assert build_report(logs, DEMO).bytes_data_parallel == 1.5 * INNER * 2 * 1 / 2 * 4 * P


def test_what_a_peer_sent_before_it_was_killed_and_came_back_counts_as_well() -> None:
    """Each process counts from 0."""
    logs = good_logs()
    before = build_report(logs, KILLED)
    logs["peer-3"] += [committed(step, "peer-3", {"peer-3": FULL}, bytes_sent=step) for step in (3, 4)]
    after = build_report(logs, dataclasses.replace(KILLED, down=frozenset()))
    assert before.peers["peer-3"].bytes_sent == 200
    assert after.peers["peer-3"].bytes_sent == 200 + 4


def test_a_run_of_one_peer_has_no_ratio() -> None:
    report = build_report({"peer-1": [committed(1, "peer-1", {"peer-1": FULL}, bytes_sent=0)]}, DEMO)
    assert report.bytes_ratio is None
    assert report.bytes_data_parallel == 0


@pytest.mark.parametrize("key", ["anchor_sha256", "lineage"])
def test_two_hashes_for_one_step_are_a_failure(key: str) -> None:
    logs = good_logs()
    logs["peer-2"][1] = {**logs["peer-2"][1], key: "0" * 64}
    report = build_report(logs, KILLED)
    assert not report.anchors_equal
    assert any("the anchors differ" in problem for problem in report.problems)


def test_a_missing_step_and_a_peer_that_stayed_behind_are_failures() -> None:
    logs = {name: [event for event in events if event["outer_step"] != 3] for name, events in good_logs().items()}
    logs["peer-2"] = [event for event in logs["peer-2"] if event["outer_step"] < 3]
    report = build_report(logs, KILLED)
    assert report.outer_steps == 2
    assert report.problems == ["only 2 of 4 outer steps were committed", "peer-2 ended at outer step 2 of 4"]


def test_a_loss_that_does_not_fall_is_a_failure() -> None:
    logs = good_logs()
    logs["peer-1"][0] = validated(0, 2.5)
    assert build_report(logs, KILLED).problems == [
        "the validation loss did not fall: 2.500 at the start, 2.500 at the end"
    ]
    logs["peer-1"][0] = validated(0, float("nan"))
    assert len(build_report(logs, KILLED).problems) == 1
    assert "no validation loss" in build_report({**logs, "peer-1": logs["peer-1"][1:]}, KILLED).problems[0]


def test_no_log_at_all_is_a_failure_and_not_a_crash() -> None:
    report = build_report({}, DEMO)
    assert report.outer_steps == 0
    assert not report.anchors_equal
    assert len(report.problems) == 5
    Console(quiet=True).print(render_report(report))


def test_the_report_is_json_and_the_tables_fit_80_columns() -> None:
    report = build_report(good_logs(), dataclasses.replace(KILLED, late=Happening("peer-2", 1)))
    written = json.loads(json.dumps(dataclasses.asdict(report)))
    assert {"outer_steps", "val_loss_start", "val_loss_end", "bytes_ratio", "peers", "anchors_equal"} <= set(written)
    assert {"rounds", "wall_s", "group_forming_s_median", "killed_peer", "late_joiner", "participation"} <= set(written)
    shown = io.StringIO()
    Console(width=80, file=shown).print(render_report(report))
    assert "killed in step 3" in shown.getvalue()
    assert "5.500 -> 2.500" in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 80


def test_who_fetched_a_result_has_no_times_of_its_own() -> None:
    logs = good_logs()
    logs["peer-2"][3] = {**logs["peer-2"][3], "round_s": None, "forming_s": None}
    logs["peer-1"][4] = {**logs["peer-1"][4], "loss": None}
    report = build_report(logs, KILLED)
    assert [done.round_s for done in report.rounds] == pytest.approx([0.3, 0.3, 0.2, 0.1])
    assert report.problems == []
    only = {"peer-1": [committed(1, "peer-1", {"peer-2": FULL}, round_s=None, forming_s=None)]}
    assert build_report(only, DEMO).group_forming_s_median is None


def test_a_torn_last_line_is_left_out() -> None:
    whole = json.dumps(committed(1, "peer-1", {"peer-1": FULL}))
    events = parse_events(f"{whole}\n{whole[:-20]}".encode())
    assert [event["outer_step"] for event in events] == [1]


@given(
    st.lists(st.binary() | st.just(b'{"event": "left"}\n') | st.just(b"[1]\n") | st.just(b'{"a": 1}\n')).map(b"".join)
)
def test_no_bytes_in_a_log_are_an_error(data: bytes) -> None:
    assert all("event" in event for event in parse_events(data))


def test_a_tail_yields_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == b""
    with path.open("ab", buffering=0) as file:
        for piece, read in ((b"one\ntw", b"one\n"), (b"", b""), (b"o", b""), (b"\n", b"two\n"), (b"3\n4\n", b"3\n4\n")):
            file.write(piece)
            assert tail.read() == read


@given(st.sets(st.integers(1, 60)))
def test_ranges_name_every_number_once(numbers: set[int]) -> None:
    named: list[int] = []
    for part in filter(None, ranges(sorted(numbers)).split(", ")):
        low, _, high = part.partition("-")
        named += range(int(low), int(high or low) + 1)
    assert named == sorted(numbers)


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (136_448, "136 kB"),
        (99_600_000, "100 MB"),
        (5_460_000_000, "5.46 GB"),
    ],
)
def test_bytes_in_words(n_bytes: int, words: str) -> None:
    assert byte_words(n_bytes) == words
