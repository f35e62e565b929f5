"""What a run looks like in a terminal: everything fits, nothing is markup, and silence is said."""

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import BEGAN, commit, mark, members, peers, run_of
from rich.cells import cell_len
from rich.console import Console

from peers.identity import Identity
from runtime.config import OuterSection, RunConfig
from runtime.manifest import sign_manifest
from runtime.monitor.screen import LEAST_HEIGHT, LEAST_WIDTH, Showing, view_lines
from runtime.monitor.source import Watched, replay
from runtime.monitor.sparkline import sparkline
from runtime.monitor.terminal import show, view

ROOT = Path(__file__).parents[2]
HOSTILE = "[bold red]lies[/] [link=file:///etc]x[/link] \x1b[2J\x07\u202e\r\n" + "y" * 400


def showing(*events: dict[str, Any], **more: Any) -> Showing:
    watched = Watched("7" * 40)
    for event in events:
        watched.see(event)
    return Showing(watched, **more)


def lines(shown: Showing, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in view_lines(shown, width, height)]


@pytest.mark.parametrize("n_members", [0, 1, 4, 200])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 5), (40, 12), (80, 24), (130, 40), (250, 80)])
def test_it_fits_whatever_the_size(width: int, height: int, n_members: int) -> None:
    doing = {peer: "training" if number % 2 else "ready" for number, peer in enumerate(peers(n_members))}
    events = [*run_of(n_members, 30), members(BEGAN + 122, doing), mark("strike", BEGAN + 123, "bob", reason=HOSTILE)]
    for told in ([], events[:1], events):
        shown = lines(showing(*told), width, height)
        assert len(shown) <= max(height, LEAST_HEIGHT)
        assert max(map(cell_len, shown)) <= max(width, LEAST_WIDTH)


def test_a_normal_terminal_shows_all_there_is_of_four_members() -> None:
    doing = dict(zip(peers(4), ("ready", "training", "ready", "still"), strict=True))
    shown = showing(
        *run_of(4, 12),
        {"event": "validated", "time": BEGAN + 48.1, "peer": "ann", "outer_step": 12, "val_loss": 1.25},
        members(BEGAN + 50, doing),
        mark("strike", BEGAN + 50, peers(4)[3], reason="late"),
    )
    said = "\n".join(lines(shown))
    for words in (
        *("outer step 12", "4 members", "int8", "777777777777", "told by 000000", "46 s"),
        *("loss 1.333, least 1.333; validation 1.250 at 12; 48k tokens; 100 % took part", "█", "median 0.25 s"),
        *("tokens/s", "12.3k", "12.5MB", "50MB", "25 %", "90 %", "0.87 %", "cuda:0", "still", "strikes"),
        *("outer step 13: waits for 000001", "strike against 000003: late", "000002 is here"),
    ):
        assert words in said, words


def test_of_two_hundred_the_greatest_are_shown_and_the_rest_is_counted() -> None:
    shown = showing(*run_of(200, 3))
    said = lines(shown, 80, 50)
    rows = [line for line in said if line.startswith("000")]
    assert rows[0].startswith("000000")
    listed = said.index(next(line for line in said if line.startswith("member"))) + 1
    more = next(line for line in said[listed:] if line.startswith("and "))
    assert said.index(more) - listed + int(more.split()[1]) == 200


def test_narrow_terminals_lose_the_columns_that_say_least() -> None:
    def header(width: int) -> list[str]:
        return next(line.split() for line in lines(showing(*run_of(4, 3)), width) if line.startswith("member"))

    wide, narrow = header(120), header(40)
    assert len(wide) == 11
    assert narrow == ["member", "doing", "tokens/s", "share", "busy"]


def test_the_round_under_way_is_a_bar_of_phases_and_says_who_is_waited_for() -> None:
    ann, bob = peers(2)
    shown = showing(
        *run_of(2, 3),
        members(BEGAN + 13.0, {ann: "training", bob: "training"}),
        members(BEGAN + 14.0, {ann: "ready", bob: "training"}),
        members(BEGAN + 16.0, {ann: "ready", bob: "training"}),
        over=True,
    )
    said = lines(shown)
    bars = {line[:6]: line for line in said if line.endswith(("ready", "training")) and "█" in line}
    assert "waits for 000001" in "\n".join(said)
    assert next(iter(bars)) == "000001"
    # Four seconds in all, of which ann has trained two.
    assert bars["000000"].count("█") == pytest.approx(bars["000000"].count("░"), abs=1)
    assert "░" not in bars["000001"]
    averaging = showing(*run_of(2, 3), {**run_of(2, 4)[-2]})
    assert "led by 000001" in "\n".join(lines(averaging))


def test_nothing_that_others_say_is_markup_or_moves_the_cursor() -> None:
    shown = showing(
        *run_of(2, 2),
        mark("strike", BEGAN + 9, "bob", reason=HOSTILE),
        mark("member_down", BEGAN + 9, peers(2)[1], reason=HOSTILE),
        {"event": "refused", "time": BEGAN + 9, "peer": "ann", "reason": HOSTILE},
    )
    shown.watched.say(HOSTILE, HOSTILE)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    console.print(view(shown, console, 40))
    assert "[bold red]lies[/] [link=file:///etc]x[/link] ?[2J" in out.getvalue()
    assert not set("\x1b\x07\u202e\r") & set(out.getvalue())


def test_who_hears_nothing_says_so_and_since_when() -> None:
    shown = showing(*run_of(2, 2))
    assert "no data" not in "\n".join(lines(shown))
    shown.watched.heard_at -= 12
    assert "no data since 12 s" in lines(shown)[1]
    shown.watched.say("the member that told is gone (end of stream); asking another")
    assert lines(shown)[1] == "no data since 12 s; the member that told is gone (end of stream); asking another"
    assert "looking for a member" in lines(showing())[1]


def test_the_time_of_a_replay_is_that_of_the_logs() -> None:
    shown = showing(*run_of(2, 2), folder="logs", speed=10.0)
    shown.watched.heard_at -= 12
    assert shown.now == pytest.approx(BEGAN + 8 + 120, abs=5)
    assert "no data" not in "\n".join(lines(shown))
    assert lines(shown)[1].endswith("10 times as fast: logs")
    shown.over = True
    assert shown.now == BEGAN + 8


def test_a_run_that_is_over_is_not_taken_for_one_that_is_lost() -> None:
    config = RunConfig(name="x" * 64, outer=OuterSection(steps=2))
    shown = showing(*run_of(2, 2))
    shown.watched.manifest = sign_manifest(Identity.from_seed(bytes(32)), config, bytes(32), "nonce")
    shown.watched.heard_at -= 12
    assert lines(shown)[0].startswith("x" * 40 + " · outer step 2 of 2")
    assert lines(shown)[1] == "all outer steps are done; no data since 12 s"


def test_a_terminal_without_unicode_gets_other_signs() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    console = Console(file=file, width=80)
    console.print(view(showing(*run_of(3, 5)), console, 24))
    file.flush()
    assert b"#" in raw.getvalue()


def test_without_a_terminal_there_are_plain_lines_and_of_the_past_only_where_the_run_stands() -> None:
    out = io.StringIO()
    shown = showing()

    async def telling() -> None:
        shown.watched.say("", peers(1)[0])
        for event in run_of(2, 5):
            shown.watched.see(event)
        shown.watched.see({"event": "live", "time": BEGAN + 21, "peer": peers(1)[0]})
        shown.watched.see(mark("strike", BEGAN + 22, peers(2)[1], reason="[red]late"))
        shown.watched.see(commit(6, 2))
        shown.watched.say("the member that told is gone")

    asyncio.run(show(shown, telling(), Console(file=out, width=40)))
    said = out.getvalue().splitlines()
    assert said[0] == "run · outer step 5 · 2 members · 17 s · int8 · 777777777777"
    assert [line[9:] for line in said[1:4]] == [
        "outer step 5: loss 1.800, 2 members took part, round 0.25 s",
        "strike against 000001: [red]late",
        "outer step 6: loss 1.667, 2 members took part, round 0.25 s",
    ]
    assert said[4:] == ["the member that told is gone"]


def test_on_a_terminal_the_view_has_a_screen_of_its_own_and_the_last_one_stays() -> None:
    out = io.StringIO()
    shown = showing(folder="logs", speed=1000.0)
    console = Console(file=out, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    asyncio.run(show(shown, replay(run_of(2, 5), shown.watched, 1000.0), console))
    screen, _, after = out.getvalue().partition("\x1b[?1049l")
    assert screen.startswith("\x1b[?1049h")
    assert "outer step 5" in after
    assert "the end of logs" in after


def test_a_failure_to_watch_leaves_the_terminal_as_it_was_and_is_raised() -> None:
    async def telling() -> None:
        raise ValueError("no")

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    with pytest.raises(ValueError, match="no"):
        asyncio.run(show(showing(), telling(), console))
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize("n_values", [1, 2, 7, 80, 81, 1000])
@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_a_sparkline_spans_from_the_least_to_the_greatest(n_values: int, n_rows: int) -> None:
    curve = sparkline([float(-number) for number in range(n_values)], 80, n_rows)
    assert len(curve) == n_rows
    assert all(cell_len(row.plain) <= 80 for row in curve)
    assert curve[-1].plain[-1] == "▁"
    assert n_values == 1 or curve[0].plain[0] == "█"
    assert sparkline([], 80, n_rows) == []
    assert sparkline([1e18, -1e18, 1e18], 2, 1)


def test_watching_loads_neither_torch_nor_the_network() -> None:
    modules = "runtime.monitor.terminal, runtime.monitor.report, runtime.monitor.source, runtime.commands.watch"
    heavy = "{'torch', 'hivemind', 'libp2p', 'numpy'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy} & set(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
