"""What events make of the picture, and that none can break it."""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peers.wire import MAX_INT
from runtime.log import parse_events
from runtime.monitor.picture import MOST_SPANS, MOST_STEPS, Picture
from runtime.monitor.said import MOST_MEMBERS

ANN, BOB, CAT = "12D3KooWann", "12D3KooWbob", "12D3KooWcat"
FIGURES = {
    "device": "cuda",
    "tokens_per_s": 1000,
    "trained_ms": 900,
    "waited_ms": 100,
    "up": 5,
    "down": 6,
    "sent_bytes": 7,
    "received_bytes": 8,
    "error_ppm": 8700,
    "strikes": 0,
}


def commit(step: int, **more: Any) -> dict[str, Any]:
    return {
        "event": "outer_step_committed",
        "time": 100.0 + step,
        "peer": ANN,
        "outer_step": step,
        "loss": 2.0,
        "tokens": 3000 * step,
        "live": 2,
        "round_s": 0.1,
        "members": [ANN, BOB],
        "weights": [2000, 1000],
        "losses": [1.5, None],
        "figures": [FIGURES, None],
        **more,
    }


def members(**doing: str) -> dict[str, Any]:
    said = {peer: {"doing": what, "outer_step": 3, "progress": 40} for peer, what in doing.items()}
    return {"event": "members", "time": 110.0, "peer": ANN, "members": said}


def seen(*events: dict[str, Any]) -> Picture:
    picture = Picture()
    for event in events:
        picture.see(event)
    return picture


def test_a_commit_makes_a_point_and_its_members_figures() -> None:
    picture = seen(commit(1), commit(2))
    last = picture.last
    assert last is not None
    assert (last.outer_step, last.loss, last.tokens, last.n_members, last.participation) == (2, 2.0, 6000, 2, 1.0)
    assert last.busy == pytest.approx(0.9)
    ann, bob = picture.ranked()
    assert (ann.peer, ann.tokens, ann.n_steps, ann.device, ann.loss) == (ANN, 4000, 2, "cuda", 1.5)
    assert ann.error == pytest.approx(0.0087)
    assert (bob.tokens, bob.device) == (2000, "")


def test_a_step_that_two_members_tell_of_counts_once() -> None:
    picture = seen(commit(1), commit(1, peer=BOB, time=101.2))
    assert [member.tokens for member in picture.ranked()] == [2000, 1000]
    assert len(picture.steps) == 1


def test_who_is_there_who_is_gone_and_what_each_does() -> None:
    picture = seen(commit(1), members(**{ANN: "training", BOB: "ready"}))
    assert {member.peer: member.doing for member in picture.present()} == {ANN: "training", BOB: "ready"}
    picture.see({"event": "member_down", "time": 110.5, "peer": ANN, "member": BOB, "reason": "end of stream"})
    assert [member.peer for member in picture.present()] == [ANN]
    gone = picture.members[BOB]
    assert (gone.doing, gone.gone_at, gone.gone_reason) == ("gone", 110.5, "end of stream")
    # It had contributed before it went; to the next step it cannot have.
    began = {"event": "round_began", "time": 110.8, "peer": ANN, "outer_step": 11, "attempt": 0, "leader": ANN}
    picture.see({**began, "members": [ANN, BOB], "codec": "int8"})
    assert BOB not in picture.round.doing
    picture.see(commit(11))
    assert picture.members[BOB].gone_at == 110.5
    picture.see(commit(12))
    picture.see(commit(11, peer=BOB, time=113.0))
    assert picture.members[BOB].gone_at is None
    assert [mark.kind for mark in picture.marks] == ["came", "came", "gone", "came"]


def test_who_says_goodbye_is_gone_and_what_the_others_tell_of_it_is_no_news() -> None:
    picture = seen(
        commit(1),
        {"event": "left", "time": 102.0, "peer": BOB, "reason": "interrupted"},
        {"event": "member_down", "time": 102.1, "peer": ANN, "member": BOB, "reason": "end of stream"},
        commit(1, peer=BOB, time=102.2),
    )
    assert [mark.words for mark in picture.marks] == ["", "", "left: interrupted"]
    assert [member.peer for member in picture.present()] == [ANN]


def test_the_group_of_a_round_averages_and_what_is_told_of_an_old_round_is_no_news() -> None:
    began = {"event": "round_began", "time": 101.5, "peer": ANN, "outer_step": 2, "attempt": 1, "leader": BOB}
    picture = seen(commit(1), {**began, "members": [ANN, BOB], "codec": "int8"})
    assert (picture.round.leader, picture.round.attempt, picture.round.codec) == (BOB, 1, "int8")
    assert picture.round.doing[BOB] == [(101.0, "training"), (101.5, "averaging")]
    picture.see(commit(2))
    picture.see({**began, "members": [ANN], "codec": "fp4"})
    assert (picture.round.outer_step, picture.round.began_at, picture.round.codec) == (3, None, "int8")
    assert picture.members[ANN].doing == "training"


def test_of_a_commit_that_is_not_what_it_should_be_nothing_counts() -> None:
    picture = seen(commit(1), *[commit(2, loss="low")] * 3, commit(2, figures=[FIGURES]))
    assert picture.members[ANN].tokens == 2000
    assert picture.refused == 4


@pytest.mark.parametrize("hostile", [{}, "many", {**FIGURES, "up": "fast"}, {**FIGURES, "up": 1 << 64}])
def test_what_one_member_says_of_itself_hides_no_step_and_no_other_member(hostile: object) -> None:
    picture = seen(commit(1), commit(2, figures=[FIGURES, hostile]))
    assert picture.last is not None
    assert picture.last.outer_step == 2
    assert picture.members[ANN].up == FIGURES["up"]
    everyone = members(**{ANN: "training", BOB: "ready", CAT: "ready"})
    everyone["members"][ANN]["progress"] = 1 << 64
    picture.see(everyone)
    assert [picture.members[peer].doing for peer in (BOB, CAT)] == ["ready", "ready"]
    assert picture.refused == 1


def test_as_much_as_members_tell_each_other_is_shown() -> None:
    picture = seen(commit(1, figures=[{**FIGURES, "up": MAX_INT}, None]))
    assert picture.refused == 0
    assert picture.members[ANN].up == float(MAX_INT)


def test_who_is_there_now_is_there_whatever_the_clock_of_another_said() -> None:
    gone = {"event": "member_down", "time": 9e9, "peer": BOB, "member": CAT, "reason": "end of stream"}
    picture = seen(commit(1), members(**{ANN: "training", CAT: "training"}), gone)
    assert picture.members[CAT].gone_at is not None
    picture.see({**members(**{ANN: "training", CAT: "training"}), "time": 103.0})
    assert picture.members[CAT].gone_at is None
    assert picture.time == 103.0


def test_a_stranger_that_is_struck_is_no_member() -> None:
    picture = seen(commit(1), {"event": "strike", "time": 102.0, "peer": ANN, "member": "stranger", "reason": "rude"})
    assert "stranger" not in picture.members
    assert [mark.kind for mark in picture.marks if mark.member == "stranger"] == ["strike"]


def test_a_step_that_the_run_does_not_have_is_none() -> None:
    picture = Picture()
    picture.most_step = 5
    for event in (commit(5), commit(6), {"event": "strike", "time": 1.0, "peer": ANN, "member": BOB, "outer_step": 6}):
        picture.see(event)
    assert (list(picture.steps), picture.refused) == ([5], 2)


def test_no_member_can_fill_the_memory_with_what_it_does_or_measures() -> None:
    picture = seen(commit(1))
    for number in range(10 * MOST_SPANS):
        picture.see(members(**{ANN: "ready" if number % 2 else "training"}))
    for number in range(MOST_STEPS + 10):
        picture.see({"event": "validated", "time": 1.0, "peer": ANN, "outer_step": number, "val_loss": 1.0})
    assert len(picture.round.doing[ANN]) == MOST_SPANS
    assert len(picture.validations) == MOST_STEPS


def test_the_round_under_way_says_since_when_each_does_what() -> None:
    picture = seen(commit(1), members(**{ANN: "training", BOB: "training"}), members(**{ANN: "ready", BOB: "training"}))
    assert picture.round.outer_step == 2
    assert [what for _, what in picture.round.doing[ANN]] == ["training", "ready"]
    picture.see(commit(2))
    assert picture.round.doing[ANN] == [(102.0, "training")]


def test_what_a_member_tells_again_counts_once() -> None:
    """Who follows a run comes back to a member that it has heard before."""
    strike = {"event": "strike", "time": 101.0, "peer": ANN, "member": BOB, "reason": "x"}
    down = {"event": "member_down", "time": 101.5, "peer": ANN, "member": BOB, "reason": "silent"}
    up = {"event": "member_up", "time": 102.0, "peer": ANN, "member": BOB}
    picture = seen(commit(1), strike, down, up, commit(2))
    before = len(picture.marks)
    for event in (strike, down, up):
        picture.see(event)
    (bob,) = (member for member in picture.present() if member.peer == BOB)
    assert bob.strikes == 1
    assert len(picture.marks) == before


def test_faults_are_marked_where_they_happened() -> None:
    picture = seen(commit(1), {"event": "strike", "time": 101.5, "peer": ANN, "member": BOB, "reason": "\x1b[2Jlies"})
    mark = picture.marks[-1]
    assert (mark.kind, mark.outer_step, mark.member, mark.words) == ("strike", 1, BOB, "?[2Jlies")
    assert picture.members[BOB].strikes == 1


@pytest.mark.parametrize(
    "hostile",
    [
        commit(1, loss="low"),
        commit(1, loss=math.nan),
        commit(1, tokens=1e300),
        commit(1, members=["x" * 1000, BOB]),
        commit(1, members=["<script>", BOB]),
        commit(1, weights=[1]),
        commit(-1),
        commit(True),
        members(**{f"peer{number}": "training" for number in range(MOST_MEMBERS + 1)}),
        {"event": "members", "time": 1.0, "peer": ANN, "members": {ANN: {"doing": 3}}},
        {"event": "strike", "time": 1.0, "peer": ANN, "member": ["x"]},
        {"event": "strike"},
        {"event": ["strike"], "time": 1.0, "peer": ANN},
    ],
)
def test_what_is_not_what_it_should_be_is_counted_and_shown_to_nobody(hostile: dict[str, Any]) -> None:
    picture = seen(commit(5), hostile, commit(6))
    assert picture.refused == 1
    assert sorted(picture.steps) == [5, 6]


def test_a_million_members_do_not_fill_the_memory() -> None:
    picture = Picture()
    for number in range(3 * MOST_MEMBERS):
        picture.see({"event": "member_up", "time": float(number), "peer": ANN, "member": f"peer{number}"})
    assert len(picture.members) <= MOST_MEMBERS


def test_json_that_no_reader_should_read_is_skipped() -> None:
    assert parse_events(b'{"event": "x", "loss": NaN}\n' + b"[" * 100_000 + b'\n{"event": "y"}\n{"eve') == [
        {"event": "y"}
    ]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
kinds = ["outer_step_committed", "members", "round_began", "validated", "member_up", "member_down", "run", "strike"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(kinds), st.dictionaries(st.sampled_from([*commit(1), "member", "reason"]), values), st.booleans()
)
def test_nothing_that_is_said_breaks_the_picture(kind: str, said: dict[str, Any], whole: bool) -> None:
    picture = seen(commit(1), {**(commit(2) if whole else {}), **said, "event": kind}, commit(3))
    assert {1, 3} <= picture.steps.keys()
    picture.ranked()
