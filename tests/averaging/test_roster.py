from peers.messages import Role, Status
from runtime.averaging.roster import REDIAL_MOST_S, REDIAL_S, STILL_LEAST_S, STILL_STEPS, Roster

A, B = b"a" * 32, b"b" * 32


def member(outer_step: int = 3, lineage: bytes = A, progress: int = 0, tokens: int = 300) -> Status:
    return Status(Role.MEMBER, outer_step, lineage, progress, tokens)


def roster(*peers: str, group: frozenset[str] = frozenset()) -> Roster:
    made = Roster("me")
    made.step_begun(3, A, group, 0.0)
    for peer in peers:
        made.saw(peer, member(), 0.0)
    return made


def test_a_thread_that_moves_is_given_ten_of_its_inner_steps() -> None:
    made = roster("ann")
    for second in range(1, 11):
        made.saw("ann", member(progress=second), float(second))
    assert 10.0 + STILL_STEPS * 0.9 < made.still_at("ann") < 10.0 + STILL_STEPS * 1.6


def test_a_thread_that_stands_still_is_given_up_whatever_its_heartbeats_say() -> None:
    made = roster("ann")
    for tenth in range(1, 11):
        made.saw("ann", member(progress=tenth), tenth / 10)
    for second in range(2, 60):
        made.saw("ann", member(progress=10), float(second))
    assert made.still_at("ann") < 1.0 + max(STILL_LEAST_S, STILL_STEPS * 0.5)


def test_what_this_peer_slept_is_nobodys_standing_still() -> None:
    made = roster("ann")
    before = made.still_at("ann")
    made.slept(100.0)
    assert made.still_at("ann") == before + 100.0


def test_where_most_of_the_group_are_lost_at_a_stroke_this_peer_may_be_the_one_that_was_cut_off() -> None:
    one = roster("ann", "bob", "cat", group=frozenset({"me", "ann", "bob", "cat"}))
    one.down("ann", left=False, now=10.0)
    assert one.lost_until(10.0) == 10.0 + REDIAL_S
    one.down("bob", left=False, now=10.0)
    one.down("cat", left=False, now=10.0)
    assert one.lost_until(10.0) == 10.0 + REDIAL_MOST_S
    assert one.lost_until(10.0 + REDIAL_MOST_S) is None


def test_whom_a_new_dial_does_not_reach_is_not_waited_for_unless_nobody_is_reached_any_more() -> None:
    """Without a link every dial fails at once, as that of a killed process does."""
    one = roster("ann", "bob", "cat", group=frozenset({"me", "ann", "bob", "cat"}))
    one.down("ann", left=False, now=10.0)
    one.unreachable.add("ann")
    assert one.lost_until(10.0) is None
    one.down("bob", left=False, now=10.1)
    assert one.lost_until(10.1) == 10.1 + REDIAL_S
    one.unreachable.add("bob")
    one.down("cat", left=False, now=10.2)
    one.unreachable.add("cat")
    assert one.lost_until(10.2) == 10.2 + REDIAL_MOST_S
    one.saw("ann", member(), 11.0)
    assert one.lost_until(11.0) is None


def test_names_that_come_and_go_leave_nothing_and_the_group_is_remembered() -> None:
    made = roster("ann", *(f"stranger{number}" for number in range(100)), group=frozenset(("me", "ann")))
    made.down("ann", left=False, now=1.0)
    for number in range(100):
        made.down(f"stranger{number}", left=False, now=2.0 + number)
    assert set(made.lost) <= {"ann", *(f"stranger{number}" for number in range(94, 100))}
    assert "ann" in made.lost


def test_a_goodbye_is_not_waited_for() -> None:
    made = roster("ann", group=frozenset({"me", "ann"}))
    made.down("ann", left=True, now=10.0)
    assert made.lost_until(10.0) is None


def test_ahead_is_who_has_committed_more_tokens_whatever_the_step() -> None:
    made = roster()
    made.saw("heavy", member(outer_step=2, lineage=B, tokens=900), 0.0)
    made.saw("long", member(outer_step=9, lineage=B, tokens=100), 0.0)
    assert made.ahead((300, 3, A)) == ["heavy"]


def test_who_was_refuted_counts_again_when_it_says_something_else() -> None:
    made = roster("ann")
    made.refute("ann")
    assert made.members() == []
    made.saw("ann", member(lineage=B), 1.0)
    assert [peer for peer, _ in made.members()] == ["ann"]


def test_a_fork_is_another_lineage_at_a_step_of_the_own_history() -> None:
    made = roster()
    assert made.on_fork(member(lineage=B))
    assert not made.on_fork(member(lineage=A))
    assert not made.on_fork(member(outer_step=9, lineage=B)), "nothing to compare it with"
