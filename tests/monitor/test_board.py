"""What the dashboard's pages are given: only what is new, only what JSON has a word for, and bounded."""

import json
from typing import Any

import pytest

from peers.identity import Identity
from runtime.config import OuterSection, RunConfig
from runtime.manifest import sign_manifest
from runtime.monitor.dashboard.board import Board
from runtime.monitor.dashboard.snapshot import MOST_BEFORE, MOST_LAST, thinned
from runtime.monitor.dashboard.tracks import MOST_TRACK, Tracks
from runtime.monitor.picture import MOST_STEPS, Picture
from runtime.monitor.pictured import StepPicture
from runtime.monitor.said import MOST_MEMBERS
from runtime.monitor.source import Watched

ANN, BOB = "12D3KooWann", "12D3KooWbob"


def figures(sent: float) -> dict[str, Any]:
    rates = {"tokens_per_s": 1000, "trained_ms": 900, "waited_ms": 100, "up": 5, "down": 6}
    return {"device": "cuda", **rates, "sent_bytes": sent, "received_bytes": 2 * sent, "error_ppm": 8700, "strikes": 0}


def commit(step: int, **more: Any) -> dict[str, Any]:
    return {
        "event": "outer_step_committed",
        "time": 100.0 + 10 * step,
        "peer": ANN,
        "outer_step": step,
        "loss": 2.0,
        "tokens": 3000 * step,
        "live": 2,
        "round_s": 0.1,
        "members": [ANN, BOB],
        "weights": [2000, 1000],
        "losses": [1.5, None],
        "figures": [figures(100.0 * step), None],
        **more,
    }


class Shown:
    """A board, and what a page that asks it knows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runtime.monitor.dashboard.board.EVERY_S", 0.0)
        self.watched = Watched("7" * 40)
        self.board = Board(self.watched)
        self.stamp = ""

    def ask(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.board.run(self.stamp))
        self.stamp = said["stamp"]
        return said


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(monkeypatch)


def test_a_page_is_told_everything_once_and_then_only_what_is_new(shown: Shown) -> None:
    for step in (1, 2, 3):
        shown.watched.see(commit(step))
    first = shown.ask()
    assert first["whole"]
    assert [row[0] for row in first["steps"]] == [1, 2, 3]
    assert [mark[2] for mark in first["marks"]] == ["came", "came"]
    assert (shown.ask()["steps"], shown.ask()["marks"]) == ([], [])
    shown.watched.see(commit(4))
    shown.watched.see({"event": "strike", "time": 141.0, "peer": ANN, "member": BOB, "reason": "lies"})
    second = shown.ask()
    assert not second["whole"]
    assert [row[0] for row in second["steps"]] == [4]
    assert [mark[2:] for mark in second["marks"]] == [["strike", BOB, "lies", "fault"]]
    assert second["head"]["faults"] == {"strike": 1}


def test_a_step_that_is_told_anew_is_shown_anew(shown: Shown) -> None:
    shown.watched.see(commit(1))
    shown.ask()
    shown.watched.see(commit(1, loss=1.75))
    assert [row[:3] for row in shown.ask()["steps"]] == [[1, 110.0, 1.75]]


def test_a_page_that_knows_the_past_from_another_process_hears_all_of_it(shown: Shown) -> None:
    shown.watched.see(commit(1))
    for stamp in ("", "0", "cafecafe-3", "cafecafe-", "-", "x" * 1000, shown.board.run("")[:0].decode() + "-1"):
        shown.stamp = stamp
        assert shown.ask()["whole"]


def test_bytes_of_a_step_are_what_its_members_have_moved_since_they_last_told(shown: Shown) -> None:
    shown.watched.see(commit(1))
    shown.watched.see(commit(2, figures=[figures(250.0), figures(40.0)]))
    shown.watched.see(commit(3, figures=[figures(5.0), figures(100.0)]))
    rows = {row[0]: row[-2:] for row in shown.ask()["steps"]}
    # Whoever tells for the first time has no before; whose process began anew counts from zero.
    assert rows == {1: [0.0, 0.0], 2: [190.0, 380.0], 3: [60.0, 120.0]}


def test_rates_are_of_the_last_steps_and_nothing_is_said_of_what_nobody_knows(shown: Shown) -> None:
    empty = shown.ask()["head"]["figures"]
    assert (empty["loss"], empty["tokens_per_s"], empty["step_s"], empty["members"]) == (None, None, None, 0)
    for step in (1, 2, 3):
        shown.watched.see(commit(step))
    said = shown.ask()["head"]["figures"]
    assert (said["tokens_per_s"], said["step_s"], said["participation"]) == (300.0, 10.0, 1.0)
    assert said["busy"] == pytest.approx(0.9)


def test_who_is_waited_for_is_who_trains_while_others_are_ready(shown: Shown) -> None:
    shown.watched.see(commit(1))
    doing = {
        peer: {"doing": what, "outer_step": 1, "progress": 9} for peer, what in ((ANN, "training"), (BOB, "ready"))
    }
    shown.watched.see({"event": "members", "time": 112.0, "peer": ANN, "members": doing})
    said = shown.ask()["head"]["round"]
    assert said["waited_for"] == [ANN]
    assert said["members"] == [[ANN, [[0.0, "training"]]], [BOB, [[0.0, "training"], [2.0, "ready"]]]]


def test_in_a_log_who_has_trained_averages_from_when_the_round_begins(shown: Shown) -> None:
    shown.watched.see(commit(1))
    began = {"event": "round_began", "time": 118.0, "peer": ANN, "outer_step": 2, "attempt": 0, "members": [ANN, BOB]}
    shown.watched.see({**began, "leader": BOB, "codec": "int8"})
    now = shown.ask()["head"]["round"]
    assert (now["began_s"], now["now_s"], now["leader"]) == (8.0, 8.0, BOB)
    assert now["members"] == [[peer, [[0.0, "training"], [8.0, "averaging"]]] for peer in (ANN, BOB)]


def test_a_peer_has_a_page_with_its_own_past(shown: Shown) -> None:
    for step in (1, 2, 3):
        shown.watched.see(commit(step, members=[ANN], weights=[10], losses=[2.0 / step], figures=[figures(step)]))
    shown.watched.see(commit(4))
    said = json.loads(shown.board.peer(ANN))
    assert (said["peer"]["rank"], said["peer"]["of"], said["peer"]["share"]) == (1, 2, 2030 / 3030)
    assert [row[:2] for row in said["track"]] == [[1.0, 2.0], [2.0, 1.0], [3.0, 2.0 / 3], [4.0, 1.5]]
    assert json.loads(shown.board.peer(BOB))["strip"] == [[1, 0], [2, 0], [3, 0], [4, 1]]
    assert json.loads(shown.board.peer("nobody"))["peer"] is None


def test_a_silent_run_is_not_live_and_an_ended_replay_is_not_silent(shown: Shown) -> None:
    assert shown.ask()["head"]["watching"]["state"] == "waiting"
    shown.watched.see(commit(1))
    assert shown.ask()["head"]["watching"]["state"] == "live"
    shown.watched.heard_at -= 12.0
    watching = shown.ask()["head"]["watching"]
    assert (watching["state"], round(watching["silent_s"])) == ("silent", 12)
    assert json.loads(Board(shown.watched, replayed=True).run(""))["head"]["watching"]["state"] == "replay"
    config = RunConfig(outer=OuterSection(steps=1))
    manifest = sign_manifest(Identity.from_seed(bytes(32)), config, bytes(32), "")
    shown.watched.trouble = "no member answers"
    shown.watched.manifest = manifest
    over = shown.ask()["head"]
    assert (over["watching"]["state"], over["watching"]["trouble"], over["run"]["outer_steps"]) == ("over", "", 1)
    shown.board.ended = True
    assert shown.ask()["head"]["watching"]["state"] == "ended"


def test_hostile_figures_are_counted_and_the_answer_stays_json(shown: Shown) -> None:
    shown.watched.see(commit(1))
    lies: list[object] = [float("nan"), float("inf"), "<b>", [], 1e300]
    for hostile in lies:
        shown.watched.see(commit(2, loss=hostile))
        shown.watched.see(commit(3, figures=[figures(1) | {"sent_bytes": hostile}, None]))
    shown.watched.see(commit(4, loss=1e18, figures=[figures(4e17), figures(-4e17)]))
    said = shown.ask()
    assert said["head"]["watching"]["refused"] == len(lies), "what is said of oneself costs nobody a step"
    assert [row[0] for row in said["steps"]] == [1, 3, 4]
    json.dumps(said, allow_nan=False)


def test_a_long_past_is_thinned_and_keeps_its_last_steps() -> None:
    steps = [StepPicture(number, float(number), 1.0, 1.0, 1, 1, None) for number in range(1, MOST_STEPS + 1)]
    kept = [step.outer_step for step in thinned(steps)]
    assert len(kept) <= MOST_LAST + MOST_BEFORE
    assert kept[0] == 1
    assert kept[-MOST_LAST:] == list(range(MOST_STEPS - MOST_LAST + 1, MOST_STEPS + 1))
    assert thinned(steps[:100]) == steps[:100]


def test_what_is_kept_beside_the_picture_is_bounded() -> None:
    picture = Picture()
    tracks = Tracks(picture)
    for step in range(1, MOST_STEPS + 200):
        peer = f"peer{step % (2 * MOST_MEMBERS)}"
        picture.see(commit(step, members=[ANN, peer], weights=[1, 1], figures=[figures(step), None]))
        tracks.look()
        if step % 100 == 0:
            tracks.refresh()
    tracks.refresh()
    assert len(tracks.track(ANN)) == MOST_TRACK
    assert len(tracks.steps_since(0)) == len(picture.steps) == MOST_STEPS
    assert tracks.bytes_of(1) is None
    assert set(tracks._tracks) <= set(picture.members)
