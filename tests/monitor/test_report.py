"""The page of a run: whole, alone, and nobody's words are markup in it."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from made_up import BEGAN, commit, mark, peers, run_of

from runtime.monitor.charts import Axis, Series, line_chart, thinned, ticks
from runtime.monitor.picture import Picture
from runtime.monitor.report import report, stays_of
from runtime.monitor.said import MOST_NUMBER

HOSTILE = '<script>alert(1)</script><img src=x onerror="a">\'&\x1b'
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Raises where a tag is closed that is not open, or the other way round."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def picture(*events: dict[str, Any]) -> Picture:
    made = Picture()
    for event in events:
        made.see(event)
    return made


def page(*events: dict[str, Any], name: str = "demo") -> tuple[str, Page]:
    html = report(picture(*events), name, None)
    return html, Page(html)


def test_the_page_has_the_runs_numbers_its_charts_and_its_events() -> None:
    html, read = page(
        {"event": "validated", "time": BEGAN, "peer": "ann", "outer_step": 0, "val_loss": 5.5},
        *run_of(4, 20),
        {"event": "validated", "time": BEGAN + 81, "peer": "ann", "outer_step": 20, "val_loss": 1.5},
        mark("member_down", BEGAN + 82, peers(4)[3], reason="end of stream"),
        mark("strike", BEGAN + 83, peers(4)[2], reason="late"),
    )
    said = " ".join(read.words)
    for words in ("1.500", "from 5.500", "1.200", "80k", "100 %", "0.25 s", "90 %", "0.87 %", "7 MB", "cuda:0"):
        assert words in said, words
    assert "000003 is gone: end of stream" in said
    assert "strike against 000002: late" in said
    assert read.tags.count("svg") == 8
    assert "prefers-color-scheme:dark" in html


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    html, read = page(*run_of(3, 3))
    assert not re.search(r"https?://|//\w|url\(|@import", html)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert not [name for name in read.attributes if name.startswith("on") or name in ("src", "href")]


def test_hostile_words_are_words() -> None:
    html, read = page(
        *run_of(2, 2),
        commit(3, 2, figures=[{**commit(3, 1)["figures"][0], "device": "<b>&\"'"}, None]),
        mark("strike", BEGAN + 13, peers(2)[1], reason=HOSTILE),
        mark("member_down", BEGAN + 13, peers(2)[1], reason=HOSTILE),
        name=HOSTILE,
    )
    assert not {"script", "img", "b"} & set(read.tags)
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in unescape(html)
    assert "<script>alert(1)</script>" in unescape("".join(read.words))


@pytest.mark.parametrize("n_members", [0, 1, 300])
@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_it_works_for_the_least_of_runs_and_for_many_members(n_steps: int, n_members: int) -> None:
    _, read = page(*run_of(n_members, n_steps))
    assert read.tags.count("section") == 8


def test_old_logs_without_figures_and_numbers_beyond_reason_make_a_page_too() -> None:
    old = {key: value for key, value in commit(1, 2).items() if key not in ("figures", "live", "round_s")}
    greatest = commit(2, 2, loss=MOST_NUMBER, tokens=MOST_NUMBER, round_s=-MOST_NUMBER, time=MOST_NUMBER)
    page(old)
    page(old, greatest)
    page(greatest, commit(3, 2, loss=-MOST_NUMBER, time=-MOST_NUMBER))
    page(commit(1, 2, loss=MOST_NUMBER), commit(2, 2, loss=MOST_NUMBER - 256), commit(3, 2, loss=None))


def test_a_member_that_came_twice_has_two_stays() -> None:
    bob = peers(2)[1]
    made = picture(
        *run_of(2, 2),
        mark("member_down", BEGAN + 9, bob, reason="end of stream"),
        mark("member_up", BEGAN + 20, bob),
        commit(6, 2),
    )
    assert stays_of(made, BEGAN)[bob] == [(BEGAN + 3.75, BEGAN + 9), (BEGAN + 20, BEGAN + 24)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.13), (1, 20), (-5, 5), (0, 1e18), (7, 7.001), (0, 86400)])
@pytest.mark.parametrize("kind", ["number", "whole", "time"])
def test_ticks_are_within_few_and_round(low: float, high: float, kind: str) -> None:
    found = ticks(low, high, kind, 5)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 <= tick <= high * 1.000001 for tick in found)
    if kind == "whole" and len(found) > 1:
        assert all(tick == round(tick) for tick in found)


def test_a_thinned_curve_keeps_its_extremes() -> None:
    points = [(float(number), 0.0) for number in range(10_000)]
    points[4321] = (4321.0, 9.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100
    assert (4321.0, 9.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.0, 0.0], [1e18, 1e18], [-3.0, 5.0]])
def test_a_chart_has_only_numbers_for_places(values: list[float]) -> None:
    points = [(float(number), value) for number, value in enumerate(values)]
    for axis in (Axis("y"), Axis("y", kind="whole", from_zero=True), Axis("y", kind="time")):
        svg = line_chart([Series("curve", points)], axis, axis)
        assert not re.search(r"nan|inf", svg)
        heights = [float(number) for number in re.findall(r'c?y="([\d.-]+)"', svg)]
        assert all(0 <= height <= 240 for height in heights)


def test_an_empty_chart_says_so() -> None:
    assert "no loss is known" in line_chart([Series("curve", [])], Axis("x"), Axis("loss"))


def test_the_page_of_a_long_run_is_not_long() -> None:
    assert len(report(picture(*(commit(step, 3) for step in range(1, 5001))), "long", None)) < 400_000


def test_what_is_told_late_leaves_the_figures_of_a_step_as_they_were() -> None:
    late = commit(1, 2, time=BEGAN + 900, round_s=None)
    made = picture(commit(1, 2), commit(2, 2), late)
    first = made.steps[1]
    assert (first.time, first.round_s, first.busy) == (BEGAN + 4, 0.25, 0.9)
    assert {one.outer_step for one in made.members.values()} == {2}
