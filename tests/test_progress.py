"""How far a peer is, in words: whatever it does and however narrow the terminal, three lines that fit."""

import io
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runtime.commands.control import status_lines
from runtime.progress import (
    Given,
    Progress,
    Rates,
    amount,
    bar,
    doing_words,
    download_words,
    fitted,
    given_before,
    lines,
    progress_from,
    span,
)
from runtime.view import View

OWN = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKown"
A, B, C, D = (OWN[:-6] + name * 6 for name in "ABCD")
MEGABYTES = 6.0e6
AT_WORK = Progress(
    outer_step=8,
    outer_steps=20,
    inner_step=13,
    inner_steps=25,
    tokens_per_s=12_345,
    doing="training",
    others={A: "training", B: "training", C: "training"},
    quorum=2,
    rates=(0.0, 0.0),
    given=Given(1_230_000, 7),
    run_s=720.0,
)
DOWNLOADING: dict[str, Any] = {
    "event": "state_downloading",
    "time": 1.0,
    "peer": OWN,
    "bytes": 3_000_000,
    "of_bytes": 15_400_000,
    "bytes_per_s": 2_100_000,
    "seconds_left": 5.9,
}


def test_eighty_columns_tell_everything() -> None:
    assert lines(AT_WORK, 80) == [
        "outer step 8 of 20  inner step 13 of 25  ━━━━━━╌╌╌╌╌╌  12.3 k tokens/s",
        "training",
        "4 members here  gave 1.23 M tokens  was in 7 outer steps  here for 12 min",
    ]


def test_limits_have_a_line_of_their_own() -> None:
    limited = replace(AT_WORK, limits=("up 2MB/s", "hours 22:00-07:00"))
    assert lines(limited, 80) == [*lines(AT_WORK, 80), "limits:  up 2MB/s  hours 22:00-07:00"]
    assert lines(limited, 20)[-1] == "limits:  up 2MB/s"


def test_its_figures_are_json_and_make_the_same_words_elsewhere() -> None:
    figures = json.loads(json.dumps({**AT_WORK.figures(), "doing": AT_WORK.doing}))
    assert progress_from(figures) == AT_WORK


def test_forty_columns_tell_what_matters_most() -> None:
    assert lines(AT_WORK, 40) == [
        "outer step 8 of 20  inner step 13 of 25",
        "training",
        "4 members here  gave 1.23 M tokens",
    ]


@pytest.mark.parametrize("columns", [1, 2, 10, 20, 39, 40, 41, 60, 80, 200])
@pytest.mark.parametrize("doing", ["", "training", "ready", "averaging", "auxiliary", "behind"])
def test_no_line_is_ever_wider_than_the_terminal(columns: int, doing: str) -> None:
    busy = replace(AT_WORK, doing=doing, rates=(MEGABYTES, MEGABYTES), outer_step=123_456, outer_steps=2_000_000)
    for progress in (busy, replace(busy, others={}), replace(busy, others=dict.fromkeys((A, B, C, D), "training"))):
        for download in ([], download_words(DOWNLOADING)):
            drawn = lines(progress, columns, download)
            assert len(drawn) == 3
            assert all(len(line) <= columns for line in drawn)


@pytest.mark.parametrize(
    ("doing", "others", "said"),
    [
        ("training", {A: "training"}, ["training"]),
        ("training", {A: "ready", B: "training"}, ["training", "others ready: 1 of 2"]),
        ("ready", {A: "ready", B: "training"}, ["waiting for BBBBBB"]),
        ("ready", {A: "training", B: "behind", C: "still"}, ["waiting for AAAAAA, BBBBBB"]),
        ("ready", dict.fromkeys((D, C, B, A), "training"), ["waiting for AAAAAA, BBBBBB, CCCCCC and 1 more"]),
        ("ready", {A: "joining"}, ["waiting for more members, a step needs 2"]),
        ("ready", {A: "ready"}, ["waiting for the round to begin"]),
        ("averaging", {A: "averaging", B: "joining"}, ["averaging with 1 other", "up 6.0 MB/s", "down 0.5 MB/s"]),
        ("auxiliary", {A: "training"}, ["reduces for the others, who train"]),
        ("", {A: "training"}, ["waiting for a member that has the run's state"]),
    ],
)
def test_it_says_what_is_waited_for_and_what_moves(doing: str, others: dict[str, str], said: list[str]) -> None:
    assert doing_words(replace(AT_WORK, doing=doing, others=others, rates=(MEGABYTES, 500_000.0))) == said


def test_control_messages_are_no_transfer() -> None:
    assert doing_words(replace(AT_WORK, doing="averaging", rates=(2000.0, 49_999.0))) == ["averaging with 0 others"]


def test_a_download_takes_the_place_of_the_round() -> None:
    assert lines(AT_WORK, 80, download_words(DOWNLOADING))[1] == (
        "downloading the state  3.0 of 15.4 MB  2.1 MB/s  5.9 s left"
    )


def test_who_is_joining_is_no_member_yet() -> None:
    assert lines(replace(AT_WORK, others={A: "joining"}), 80)[2].startswith("1 member here")


def test_before_it_has_a_state_it_does_not_pretend_to_know_where_the_run_is() -> None:
    assert lines(replace(AT_WORK, doing="", others={}), 80) == [
        "joining the run",
        "waiting for a member that has the run's state",
        "gave 1.23 M tokens  was in 7 outer steps  here for 12 min",
    ]


def test_an_auxiliary_peer_has_no_inner_steps() -> None:
    assert lines(replace(AT_WORK, doing="auxiliary"), 80)[:2] == [
        "outer step 8 of 20",
        "reduces for the others, who train",
    ]


def test_a_part_without_room_is_left_out_and_the_first_is_cut() -> None:
    assert fitted(["one", "a long second", "two"], 10) == "one  two"
    assert fitted(["averaging"], 6) == "aver.."
    assert fitted(["averaging"], 1) == "."
    assert fitted(["averaging"], 0) == ""


def test_a_bar_is_as_long_as_ever_and_full_only_at_the_end() -> None:
    assert bar(0.0, ascii_only=True) == "." * 12
    assert bar(0.5, ascii_only=True) == "######......"
    assert bar(1.0) == bar(1.2) == "━" * 12


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (1_234_567, "1.23 M"),
        (5e12, "5.00 T"),
        (7e15, "7000 T"),
    ],
)
def test_amounts_have_three_digits(number: float, said: str) -> None:
    assert amount(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (59.9, "59 s"), (60.0, "1 min"), (3 * 3600 + 300, "3 h 05 min"), (53 * 3600, "2 d 5 h")],
)
def test_spans_have_two_units_at_most(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_rates_are_means_over_the_last_looks() -> None:
    rates = Rates()
    assert rates.look(10.0, (100, 100)) == (0.0, 0.0)
    assert rates.look(10.5, (600, 100)) == (1000.0, 0.0)
    for later in range(1, 10):
        told = rates.look(10.5 + later, (600, 100 + 50 * later))
    assert told == (0.0, 50.0)


def commit(*members: str) -> dict[str, object]:
    return {"event": "outer_step_committed", "peer": OWN, "members": members, "weights": [100] * len(members)}


def test_what_was_given_before_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    assert given_before(log) == Given()
    events = [commit(A, OWN), commit(A), {"event": "left", "peer": OWN, "reason": "x"}, commit(OWN)]
    log.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "outer_step_comm')
    given = given_before(log)
    assert given == Given(200, 2)
    given.add(commit(OWN, B))
    assert given == Given(300, 3)


# The view itself, on a terminal that is a string.


def a_view(columns: int = 40, terminal: bool = True) -> tuple[View, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=columns, height=10, markup=False, highlight=False)
    return View(console), written


def test_the_area_stays_below_the_lines_and_is_gone_at_the_end() -> None:
    view, written = a_view()
    with view.area():
        view.draw(AT_WORK)
        view.say("member A is here")
        view.draw(replace(AT_WORK, inner_step=14))
    screen = rendered(written.getvalue())
    assert screen == ["member A is here"]


def test_while_it_is_drawn_the_area_has_three_lines_under_what_was_said() -> None:
    view, written = a_view()
    with view.area():
        view.draw(AT_WORK)
        for number in range(3):
            view.say(f"line {number}")
            view.draw(replace(AT_WORK, inner_step=number))
        screen = rendered(written.getvalue())
        assert screen == ["line 0", "line 1", "line 2", *lines(replace(AT_WORK, inner_step=2), 40)]
        before = len(written.getvalue())
        view.draw(replace(AT_WORK, inner_step=2))
        assert len(written.getvalue()) == before, "what has not changed is not written again"


def test_words_of_others_never_move_the_cursor() -> None:
    view, written = a_view(80)
    hostile = "\x1b[2J\x1b[10A\rgone\n\x9b2J\u202e[bold]"
    with view.area():
        view.draw(AT_WORK)
        view.show({"event": "member_down", "time": 1.0, "peer": OWN, "member": A, "reason": f"left: {hostile}"})
        screen = rendered(written.getvalue())
    assert screen[0] == "member AAAAAA is gone: left: ?[2J?[10A?gone??2J?[bold]"
    assert screen[1:] == lines(AT_WORK, 80)


def test_a_long_line_is_wrapped_at_words_on_a_terminal_and_whole_elsewhere() -> None:
    long = "the state could not be saved, what was saved before stands: no room"
    for terminal, wanted in (
        (True, ["the state could not be saved, what was", "saved before stands: no room"]),
        (False, [long]),
    ):
        view, written = a_view(40, terminal)
        view.say(long)
        assert rendered(written.getvalue()) == wanted


def test_without_a_terminal_there_is_no_area_and_a_download_is_told_every_tenth() -> None:
    view, written = a_view(80, terminal=False)
    with view.area():
        view.draw(AT_WORK)
        for done in range(0, 15_400_000, 200_000):
            view.show({**DOWNLOADING, "bytes": done})
    told = written.getvalue().splitlines()
    assert 9 <= len(told) <= 11
    assert told[0] == "downloading the state: 0.0 of 15.4 MB, 2.1 MB/s, 5.9 s left"
    assert "\x1b" not in written.getvalue()


def test_on_a_terminal_a_download_is_in_the_area_until_it_is_over() -> None:
    view, written = a_view(80)
    with view.area():
        view.show(DOWNLOADING)
        view.draw(AT_WORK)
        assert rendered(written.getvalue())[1].startswith("downloading the state  3.0 of 15.4 MB")
        view.show({"event": "state_downloaded", "time": 1.0, "peer": OWN, "bytes": 1, "received_bytes": 1})
        view.draw(AT_WORK)
        assert rendered(written.getvalue())[1] == "training"


def test_who_stops_reading_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``2>&1 | head`` does."""
    reading, writing = os.pipe()
    stderr = os.fdopen(writing, "w")
    monkeypatch.setattr("sys.stderr", stderr)
    view = View()
    os.close(reading)
    for _ in range(3):
        view.say("a line")
    with suppress(BrokenPipeError):
        stderr.close()


def rendered(written: str) -> list[str]:
    """What a terminal shows of it: of all that can be written to one, the few things that rich writes here."""
    screen, row, column = [""], 0, 0
    for control, argument, code, sign in re.findall(r"\x1b\[([?]?)([\d;]*)([A-Za-z])|(.|\n)", written, re.DOTALL):
        if sign == "\n":
            row, column = row + 1, 0
            screen += [""] * (row + 1 - len(screen))
        elif sign == "\r":
            column = 0
        elif sign:
            line = screen[row].ljust(column)
            screen[row], column = line[:column] + sign + line[column + 1 :], column + 1
        elif code == "A":
            row -= int(argument or 1)
        elif code == "K":
            assert argument == "2"
            screen[row] = ""
        else:
            # Colours, and the cursor that is hidden or shown.
            assert code == "m" or control == "?", (argument, code)
    while screen and not screen[-1].strip():
        screen.pop()
    return [line.rstrip() for line in screen]


def test_what_a_peer_says_of_itself_is_read_back() -> None:
    of_it = {"run": "reef", "run_id": "5" * 40, "folder": "here", "pid": 7, "paused": None, "limits": {}}
    told = {**of_it, **AT_WORK.figures(), "doing": "training", "memory_bytes": 1, "disk_bytes": 1}
    assert progress_from(told) == AT_WORK
    assert progress_from({name: value for name, value in told.items() if name != "unsaved"}) == AT_WORK
    assert any("training" in line for line in status_lines(told))
    # Of a peer that has no state yet the socket says that it is joining.
    joining = status_lines({**told, "doing": "joining"})
    assert "joining the run" in joining
    assert "waiting for a member that has the run's state" in joining
    full = status_lines({**told, "unsaved": "No space left on device"})
    assert "not saved, what was saved before stands: No space left on device" in full
