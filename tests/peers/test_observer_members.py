import pytest

from peers.membership import Known
from peers.observer_members import MOST_FOUND, RETRY_MOST_S, Backoff, Members


def at(peer: str, port: int = 1) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer}"


def found(peer: str, port: int = 2) -> Known:
    return Known(peer, (f"/ip4/192.0.2.1/tcp/{port}",))


def in_turn(members: Members) -> list[str]:
    """Everybody whom a pass asks, in order."""
    order = []
    while waiting := members.to_ask():
        members.ask(waiting[0])
        order.append(waiting[0])
    return order


def test_a_pass_asks_everybody_once_and_first_who_announced_itself_last() -> None:
    members = Members([at("invited"), at("invited", 3)])
    members.learn([(found("old"), 10.0), (found("new"), 20.0)])
    assert in_turn(members) == ["new", "old", "invited"]
    assert len(members) == 3


def test_the_next_pass_begins_with_who_was_not_asked_for_longest() -> None:
    members = Members([at("a"), at("b")])
    members.ask("a")
    members.ask("b")
    members.begin_pass()
    members.learn([(found("c"), 10.0)])
    assert in_turn(members) == ["c", "a", "b"]


def test_an_address_in_a_newer_record_comes_before_the_invites() -> None:
    members = Members([at("a", 1), at("a", 2)])
    members.learn([(found("a", 9), 10.0)])
    members.learn([(found("a", 8), 5.0)])
    assert members.addresses("a") == ("/ip4/192.0.2.1/tcp/9", at("a", 1), at("a", 2))
    assert members.addresses("b") == ()


def test_an_address_for_members_alone_is_none_for_an_observer() -> None:
    direct = "/ip4/192.0.2.1/tcp/5/tls/p2p/a"
    members = Members([direct, at("a")])
    members.learn([(Known("a", (direct,)), 10.0)])
    assert members.addresses("a") == (at("a"),)


def test_of_too_many_the_latest_are_kept_and_whom_the_invite_names() -> None:
    members = Members([at("invited")])
    members.learn((found(f"{number}"), float(number)) for number in range(MOST_FOUND + 50))
    assert len(members) == MOST_FOUND + 1
    order = in_turn(members)
    assert (order[0], order[-2], order[-1]) == (f"{MOST_FOUND + 49}", "50", "invited")


def test_waits_double_to_ten_seconds_and_begin_again() -> None:
    backoff = Backoff()
    waits_s = [backoff.next_s(1.0) for _ in range(9)]
    assert waits_s == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])
    assert backoff.next_s(0.0) == pytest.approx(0.75 * RETRY_MOST_S)
    backoff.reset()
    assert backoff.next_s(1.0) == pytest.approx(0.2)
