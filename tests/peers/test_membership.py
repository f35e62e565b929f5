from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.identity import Identity
from peers.membership import (
    DOUBT_AGAIN_S,
    DOUBT_S,
    HEARTBEAT_S,
    MOST_DIALS,
    MOST_KNOWN,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    SILENCE_LEAST_S,
    Action,
    Changed,
    Dial,
    DialFailed,
    Dialled,
    Doubted,
    Down,
    Drop,
    Ended,
    Event,
    Gone,
    Half,
    Heard,
    Known,
    Membership,
    Slept,
    Tick,
    Up,
)
from peers.messages import RECORD, MemberRecord, Status
from peers.records import MEMBER_CONTEXT, RECORD_TTL_S, read_records
from peers.wire import seal

HERE = ("/ip4/1.2.3.4/tcp/1",)
STATUS = Status(1, 0, bytes(32), 0)
T = 1000.0


def fed(*events: Event, now: float = T) -> tuple[Membership, list[Action]]:
    """A machine after these events, and what it did at the last."""
    machine, actions = Membership("me"), list[Action]()
    for event in events:
        actions = machine.handle(event, now)
        machine.validate()
    return machine, actions


def test_a_known_peer_is_dialled_once() -> None:
    machine, actions = fed(Known("bob", HERE))
    assert actions == [Dial("bob", HERE)]
    assert machine.handle(Known("bob", HERE), T) == []
    assert machine.handle(Known("bob", ("/ip4/4.3.2.1/tcp/1",)), T) == []
    assert machine.handle(Tick(), T + 1000) == []


def test_a_link_is_up_only_when_both_directions_are_open() -> None:
    for first, second in ((Dialled("bob"), Heard("bob", STATUS)), (Heard("bob", STATUS), Dialled("bob"))):
        machine, actions = fed(Known("bob", HERE), first)
        assert not any(isinstance(action, Up) for action in actions)
        assert machine.members() == {}
        assert machine.handle(second, T) == [Up("bob", STATUS)]
        assert machine.members() == {"bob": STATUS}


def test_who_found_us_first_is_dialled_at_once() -> None:
    _, actions = fed(Heard("bob", STATUS))
    assert actions == [Dial("bob", ())]


def test_a_new_status_is_told_and_another_message_is_not() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    assert machine.handle(Heard("bob", None), T) == []
    later = replace(STATUS, progress=1)
    assert machine.handle(Heard("bob", later), T) == [Changed("bob", later)]


def test_the_end_of_a_stream_is_death_now_and_once() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    assert machine.handle(Ended("bob", "EOF"), T) == [Down("bob", "EOF"), Drop("bob")]
    assert machine.members() == {}
    assert machine.handle(Ended("bob", "EOF"), T) == []


def test_a_lost_peer_that_cannot_be_dialled_is_gone_and_one_that_can_is_up_again() -> None:
    linked = (Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine, actions = fed(*linked, Ended("bob", "EOF", Half.TO_PEER))
    assert actions == [Down("bob", "EOF"), Dial("bob", HERE)]
    assert machine.handle(DialFailed("bob"), T) == [Gone("bob")]
    machine, _ = fed(*linked, Ended("bob", "EOF", Half.TO_PEER))
    assert machine.handle(Dialled("bob"), T) == [Up("bob", STATUS)]


def test_the_end_of_one_stream_is_death_now_and_closes_nothing_that_is_still_open() -> None:
    linked = (Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine, actions = fed(*linked, Ended("bob", "EOF", Half.FROM_PEER))
    assert actions == [Down("bob", "EOF")]
    assert machine.handle(Heard("bob", STATUS), T) == [Up("bob", STATUS)]
    machine, actions = fed(*linked, Ended("bob", "EOF", Half.FROM_PEER), Ended("bob", "EOF", Half.TO_PEER))
    assert actions == [Dial("bob", HERE)]
    assert machine.handle(DialFailed("bob"), T) == [Gone("bob")]


def test_silence_is_death_and_any_message_ends_it() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine.handle(Heard("bob", None), T + 0.6)
    assert machine.handle(Tick(), T + SILENCE_LEAST_S) == []
    down, drop = machine.handle(Tick(), T + 0.6 + SILENCE_LEAST_S)
    assert isinstance(down, Down)
    assert drop == Drop("bob")


def test_a_link_that_was_slow_is_given_more_time_and_forgets_it_again() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine.handle(Heard("bob", None), now := T + 1.5)
    assert machine.handle(Tick(), now + SILENCE_LEAST_S) == []
    for _ in range(200):
        machine.handle(Heard("bob", None), now := now + HEARTBEAT_S)
    assert isinstance(machine.handle(Tick(), now + SILENCE_LEAST_S)[0], Down)


def test_what_another_has_lost_has_two_heartbeats_to_show_that_it_lives() -> None:
    for heard, down in ((True, False), (False, True)):
        machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS), Doubted("bob"), Doubted("cat"))
        if heard:
            machine.handle(Heard("bob", None), T + 0.5)
        assert bool(machine.handle(Tick(), T + DOUBT_S)) is down


def test_whoever_says_again_and_again_that_a_peer_is_lost_is_believed_once_in_a_while() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS), Doubted("bob"))
    machine.handle(Heard("bob", None), T + 0.5)
    machine.handle(Doubted("bob"), T + 0.5)
    assert machine.handle(Tick(), T + 0.5 + DOUBT_S) == []
    later = T + DOUBT_AGAIN_S
    machine.handle(Heard("bob", None), later)
    machine.handle(Doubted("bob"), later)
    assert isinstance(machine.handle(Tick(), later + DOUBT_S + 1.5 * DOUBT_AGAIN_S)[0], Down)


def test_what_a_peer_did_not_hear_in_its_sleep_is_nobodys_silence() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine.handle(Slept(60.0), T + 60.0)
    assert machine.handle(Tick(), T + 60.0 + SILENCE_LEAST_S - 0.1) == []
    assert isinstance(machine.handle(Tick(), T + 60.0 + SILENCE_LEAST_S)[0], Down)


def test_a_goodbye_is_death_now_and_is_not_dialled_again_soon() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    assert machine.handle(Ended("bob", "left: tired", left=True), T) == [
        Down("bob", "left: tired", left=True),
        Drop("bob"),
    ]
    assert machine.handle(Tick(), T + RETRY_MOST_S - 1) == []
    assert machine.handle(Tick(), T + RETRY_MOST_S) == [Dial("bob", HERE)]


def test_a_peer_that_cannot_be_dialled_is_tried_ever_more_rarely() -> None:
    machine, _ = fed(Known("bob", HERE))
    now, gaps = T, []
    for _ in range(30):
        machine.handle(DialFailed("bob"), now)
        deadline = machine.next_deadline()
        assert deadline is not None
        gaps.append(deadline - now)
        now = deadline
        assert machine.handle(Tick(), now) == [Dial("bob", HERE)]
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(RETRY_FIRST_S)
    assert gaps[-1] == pytest.approx(RETRY_MOST_S)


def test_when_one_that_was_away_is_back_all_others_that_are_away_are_dialled() -> None:
    # What has healed, a partition or this peer's own cable, has healed for all of them.
    machine, _ = fed(Known("bob", HERE), Known("cat", HERE), Dialled("bob"), Heard("bob", STATUS))
    machine.handle(Ended("bob", "silent"), T)
    for second in range(60):
        machine.handle(DialFailed("cat"), T + second)
        machine.handle(DialFailed("bob"), T + second)
        machine.handle(Tick(), T + second + 0.9)
    machine.handle(DialFailed("cat"), T + 60)
    machine.handle(Dialled("bob"), T + 60)
    assert machine.handle(Heard("bob", STATUS), T + 60.1) == [Up("bob", STATUS), Dial("cat", HERE)]


def test_the_addresses_worth_keeping_are_of_the_linked_and_then_of_those_heard_last() -> None:
    machine, _ = fed(Known("old", ("/old",)), Known("bob", ("/bob",)), Dialled("bob"), Heard("bob", STATUS))
    machine.handle(Known("new", ("/new",)), T + 5)
    assert machine.addresses() == ("/bob", "/new", "/old")


def test_a_peer_that_takes_our_stream_and_never_greets_is_dropped() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"))
    assert machine.handle(Tick(), T + SILENCE_LEAST_S) == [Drop("bob")]
    assert machine.handle(Tick(), T + SILENCE_LEAST_S + RETRY_FIRST_S) == [Dial("bob", HERE)]


def test_a_peer_that_ends_while_it_is_dialled_is_dialled_again() -> None:
    # Drop closes what is left of the link, the dial as well: no DialFailed and no Dialled will follow.
    machine, actions = fed(Heard("bob", STATUS), Ended("bob", "EOF"))
    assert actions == [Drop("bob")]
    assert machine.handle(Tick(), T + RETRY_MOST_S) == [Dial("bob", ())] or machine.handle(
        Known("bob", HERE), T + RETRY_MOST_S
    ) == [Dial("bob", HERE)]


def test_a_stream_that_breaks_before_the_greeting_is_out_is_a_dial_that_failed() -> None:
    # Once this link was never dialled again, nor answered: half of a swarm did not see a peer that had come back.
    machine, actions = fed(Known("bob", HERE), Ended("bob", "EOF", Half.TO_PEER))
    assert actions == []
    assert machine.handle(Tick(), T + RETRY_FIRST_S) == [Dial("bob", HERE)]


def test_a_peer_that_falls_silent_while_it_is_dialled_is_dialled_again() -> None:
    machine, _ = fed(Known("bob", HERE), Heard("bob", STATUS))
    assert machine.handle(Tick(), T + SILENCE_LEAST_S) == [Drop("bob")]
    assert machine.handle(Tick(), T + SILENCE_LEAST_S + RETRY_MOST_S) == [Dial("bob", HERE)]


def test_heartbeats_of_a_peer_that_cannot_be_dialled_do_not_outrun_the_backoff() -> None:
    machine, _ = fed(Heard("bob", STATUS))
    dials = 0
    for tenth in range(600):
        machine.handle(DialFailed("bob"), T + tenth / 10)
        dials += len(machine.handle(Heard("bob", STATUS), T + tenth / 10 + 0.05))
    # 0.5 + 1 + 2 + 4 + ... s: at most eight in a minute.
    assert dials <= 10


def test_a_peer_never_links_with_itself() -> None:
    machine, actions = fed(Known("me", HERE), Heard("me", STATUS), Dialled("me"), Ended("me", ""), DialFailed("me"))
    assert actions == []
    assert machine.next_deadline() is None


def test_dead_peers_are_forgotten_beyond_a_bound() -> None:
    machine = Membership("me")
    for index in range(MOST_KNOWN + 50):
        machine.handle(Known(f"peer-{index}", HERE), T + index)
        machine.handle(DialFailed(f"peer-{index}"), T + index)
    assert len(machine._links) <= MOST_KNOWN + 1


def test_peers_that_are_being_dialled_are_bounded_too() -> None:
    machine = Membership("me")
    for index in range(MOST_KNOWN + 50):
        machine.handle(Known(f"peer-{index}", HERE), T)
    assert len(machine._links) <= MOST_KNOWN + 1


def test_a_flood_of_records_is_dialled_a_few_at_a_time_and_who_was_heard_before_all_of_them() -> None:
    machine, dialled = Membership("me"), list[str]()

    def note(actions: list[Action]) -> None:
        dialled.extend(action.peer for action in actions if isinstance(action, Dial))
        machine.validate()

    for index in range(MOST_DIALS + 50):
        note(machine.handle(Known(f"peer-{index:03}", HERE), T))
    assert len(dialled) == MOST_DIALS
    assert machine.next_deadline() is None
    note(machine.handle(Heard("bob", STATUS), T))
    assert dialled[MOST_DIALS:] == ["bob"]
    note(machine.handle(Dialled("bob"), T))
    note(machine.handle(Ended("bob", "the link broke", Half.FROM_PEER), T))
    note(machine.handle(Ended("bob", "the link broke", Half.TO_PEER), T))
    assert dialled[MOST_DIALS:] == ["bob", "bob"], "a member that was lost is dialled at once too"
    # Each that is over makes room for one.
    note(machine.handle(DialFailed(dialled[0]), T))
    note(machine.handle(Dialled(dialled[1]), T))
    assert len(set(dialled)) == len(dialled) - 1 == MOST_DIALS + 2


def test_a_live_peer_is_never_forgotten() -> None:
    machine, _ = fed(Known("bob", HERE), Dialled("bob"), Heard("bob", STATUS))
    for index in range(MOST_KNOWN + 50):
        machine.handle(Known(f"peer-{index}", HERE), T)
        machine.handle(DialFailed(f"peer-{index}"), T)
    assert "bob" in machine.members()


NAMES = st.sampled_from(["me", "ann", "bob", "cat"])
EVENTS = st.one_of(
    st.builds(Known, NAMES, st.sampled_from([(), HERE, ("/ip4/9.9.9.9/tcp/9",)])),
    st.builds(DialFailed, NAMES),
    st.builds(Dialled, NAMES),
    st.builds(Heard, NAMES, st.sampled_from([None, STATUS])),
    st.builds(Ended, NAMES, st.just("end"), st.booleans()),
    st.just(Tick()),
)


def feed(machine: Membership, event: Event, now: float, dialling: set[str], up: set[str]) -> None:
    """Hand an event to the machine and do what it says, as ``peers.service`` does."""
    for action in machine.handle(event, now):
        match action:
            case Dial(peer):
                assert peer not in dialling, "a dial while dialling"
                dialling.add(peer)
            case Up(peer):
                assert peer not in up
                up.add(peer)
            case Changed(peer):
                assert peer in up
            case Drop(peer) | Down(peer):
                assert isinstance(action, Down) == (peer in up)
                dialling.discard(peer)
                up.discard(peer)
    machine.validate()
    assert set(machine.members()) == up


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 10)), max_size=30), st.floats(0, 1e5))
def test_no_sequence_of_events_breaks_the_machine_or_makes_it_spin(
    story: list[tuple[Event, float]], now: float
) -> None:
    machine, dialling, up = Membership("me"), set[str](), set[str]()
    for event, pause_s in story:
        now += pause_s
        if isinstance(event, Dialled | DialFailed):
            # The end of a dial is reported only while there is one.
            if event.peer not in dialling:
                continue
            dialling.discard(event.peer)
        feed(machine, event, now, dialling, up)
        if (deadline := machine.next_deadline()) is not None:
            now = max(now, deadline)
            feed(machine, Tick(), now, dialling, up)
            later = machine.next_deadline()
            assert later is None or later > now, "the deadline does not move"
    known = {peer for peer, link in machine._links.items() if link.addresses and peer not in up | dialling}
    for _ in range(2):
        now += RETRY_MOST_S
        feed(machine, Tick(), now, dialling, up)
    assert known - dialling == set(), "a known peer is never dialled again"


# Records from the DHT, where anyone writes.

ALICE, BOB = Identity.from_seed(bytes(32)), Identity.from_seed(b"\1" * 32)
RUN, NOW_UNIX = "5" * 40, 1.8e9
RECORD_OF_ALICE = MemberRecord(RUN, HERE, NOW_UNIX + RECORD_TTL_S, False)


def sealed(record: MemberRecord, identity: Identity = ALICE, context: str = MEMBER_CONTEXT) -> bytes:
    return seal(identity, context, RECORD.encode(record))


def test_a_good_record_is_read() -> None:
    found = read_records({ALICE.peer: sealed(RECORD_OF_ALICE)}, RUN, NOW_UNIX)
    assert found == [Known(ALICE.peer, HERE)]


@pytest.mark.parametrize(
    "value",
    [
        sealed(replace(RECORD_OF_ALICE, expires_at=NOW_UNIX)),
        sealed(replace(RECORD_OF_ALICE, expires_at=NOW_UNIX + 2 * RECORD_TTL_S + 1)),
        sealed(replace(RECORD_OF_ALICE, run_id="6" * 40)),
        sealed(replace(RECORD_OF_ALICE, left=True)),
        sealed(replace(RECORD_OF_ALICE, addresses=HERE * 17)),
        sealed(replace(RECORD_OF_ALICE, addresses=("x" * 257,))),
        sealed(RECORD_OF_ALICE, BOB),
        sealed(RECORD_OF_ALICE, context="another context"),
        sealed(RECORD_OF_ALICE)[:-1] + bytes([sealed(RECORD_OF_ALICE)[-1] ^ 1]),
        seal(ALICE, MEMBER_CONTEXT, bytes(1 << 21)),
        seal(ALICE, MEMBER_CONTEXT, b""),
        b"",
        b"garbage",
    ],
    ids=lambda value: str(len(value)),
)
def test_a_bad_record_is_dropped_and_takes_no_other_with_it(value: bytes) -> None:
    good = sealed(replace(RECORD_OF_ALICE), BOB)
    assert read_records({ALICE.peer: value, BOB.peer: good}, RUN, NOW_UNIX) == [Known(BOB.peer, HERE)]


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=100), max_size=4))
def test_no_bytes_in_the_dht_are_taken_for_a_record_or_raise(values: dict[str, bytes]) -> None:
    assert read_records(values, RUN, NOW_UNIX) == []
