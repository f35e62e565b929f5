"""What a storm is said to have cost, by logs written by hand."""

import random
from typing import Any, cast

import pytest

from runtime.demo.processes import PeerProcess
from runtime.demo.storm import RESTART_S, Storm
from runtime.demo.toll import toll
from runtime.log import Event

IDS = {"a": "A", "b": "B"}


def commit(time: float, step: int, members: str, tokens: int, lineage: str = "l", anchor: str = "x") -> Event:
    return {
        "event": "outer_step_committed",
        "time": time,
        "outer_step": step,
        "lineage": f"{lineage}{step}",
        "anchor_sha256": f"{anchor}{step}",
        "members": list(members),
        "weights": [100] * len(members),
        "tokens": tokens,
    }


def both(*commits: tuple[float, int, str, int]) -> dict[str, list[Event]]:
    return {name: [commit(*one) for one in commits] for name in IDS}


def test_a_calm_run_costs_nothing() -> None:
    logs = both(*((10.0 + step, step, "AB", 200 * step) for step in range(1, 11)))
    cost = toll(logs, {}, IDS, since=11.0, until=20.0, tokens_per_s=100.0)
    assert (cost.faults, cost.outer_steps, cost.mismatches, cost.forks) == (0, 10, 0, 0)
    assert cost.efficiency == pytest.approx(1.0)
    assert cost.participation == 1.0
    assert cost.back_s is None


def test_what_the_dead_had_trained_is_lost_and_their_absence_is_not_counted() -> None:
    logs = both(*((10.0 + step, step, "AB", 200 * step) for step in range(1, 4)))
    logs["a"] += [commit(14.0, 4, "A", 700), commit(15.0, 5, "A", 800), commit(22.0, 6, "AB", 1000)]
    logs["b"] += [{"event": "joined", "time": 20.5}, commit(22.0, 6, "AB", 1000)]
    cost = toll(logs, {"b": [13.9]}, IDS, since=11.0, until=22.0, tokens_per_s=100.0)
    assert cost.faults == 1
    assert cost.back_s == pytest.approx(6.6)
    assert cost.efficiency == pytest.approx((1000 - 200) / (100.0 * (11.0 + 2.9 + 1.5)))
    assert cost.participation == 1.0


def test_a_member_that_is_there_and_not_in_the_step_costs_participation() -> None:
    cost = toll(both((11.0, 1, "AB", 200), (12.0, 2, "A", 300)), {}, IDS, 11.0, 12.0, 100.0)
    # Both are first seen with the first step: before it nobody was there.
    assert cost.participation == pytest.approx(0.5)


def test_two_anchors_of_one_history_differ_and_two_histories_are_a_fork() -> None:
    one, other = commit(11.0, 1, "A", 100), commit(11.0, 1, "B", 100, anchor="y")
    assert toll({"a": [one], "b": [other]}, {}, IDS, 0.0, 20.0).mismatches == 1
    forked = toll({"a": [one], "b": [commit(11.0, 1, "B", 100, lineage="m", anchor="y")]}, {}, IDS, 0.0, 20.0)
    assert (forked.mismatches, forked.forks) == (0, 1)


class FakePeer:
    def __init__(self, name: str) -> None:
        self.name, self.exit_code, self.is_member = name, cast(int | None, None), True

    def kill(self) -> None:
        self.exit_code = -9


def test_a_storm_strikes_at_its_rate_starts_again_and_spares_as_many_as_a_step_needs() -> None:
    peers: list[Any] = [FakePeer(name) for name in "abc"]
    started: list[tuple[str, float]] = []
    now = 1000.0

    def restart(peer: PeerProcess) -> None:
        started.append((peer.name, now))
        cast(Any, peer).exit_code = None

    storm = Storm(360.0, random.Random(1), restart, least=2)
    for _ in range(360_000):
        now += 0.01
        storm.act(now, cast(list[PeerProcess], peers))
        assert sum(peer.exit_code is None for peer in peers) >= 2
    # One in ten seconds, less those that fall into the five in which one is down already.
    assert 180 < storm.faults < 300
    deaths = sorted(at for times in storm.deaths.values() for at in times)
    assert [at for _, at in started] == pytest.approx([at + RESTART_S for at in deaths[: len(started)]], abs=0.02)
