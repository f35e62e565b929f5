"""Whether this peer can be dialled, as members say that tell the truth, lie, or say nothing."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from virtual_clock import run_virtual

from peers import direct
from peers.addresses import MARK
from peers.dialback import DIALBACK, DIALBACK_PROTOCOL, Ask, Reach, Refused, Seen, ask_dialback
from peers.direct import DirectTransport
from peers.errors import ProtocolViolation, Unreachable
from peers.identity import Identity
from peers.memory import MemoryNetwork, MemoryTransport
from peers.reaching import AGAIN_IF_NOT_S, FIRST_S, Reaching
from peers.relay import RelayedTransport
from peers.transport import Stream

ANN, BOB, CAT = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
ASKED = Ask(4002, (4001,))
HERE = Seen("203.0.113.7", 4001, True, (4001,), 0.0)


class Asker:
    """Ann, and members that answer as they are told to, or never."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(random.Random(0))
        self.below: MemoryTransport = self.network.transport(ANN.peer)
        relayed = RelayedTransport(ANN, self.below, [])  # type: ignore[arg-type]
        self.direct = DirectTransport(ANN, relayed, [])
        self.reaching = Reaching(self.below, self.direct, relayed)
        self.asked: list[str] = []

    async def member(self, identity: Identity, answer: Callable[[], Seen | Refused | None]) -> None:
        async def serve(stream: Stream) -> None:
            DIALBACK.decode(await stream.receive(1024), stream.peer)
            self.asked.append(identity.peer)
            said = answer()
            if said is not None:
                await stream.send(DIALBACK.encode(said))
            await asyncio.sleep(3600)

        await self.network.transport(identity.peer).serve(DIALBACK_PROTOCOL, serve)


def run(scenario: Callable[[Asker], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(1000.0):
            await scenario(Asker())

    run_virtual(main())


@pytest.mark.parametrize(
    "seen",
    [
        Seen("203.0.113.9\n\x1b[32mpass", 4001, True, (), 0.0),
        Seen("organiser.example", 4001, True, (), 0.0),
        Seen("x\0y", 4001, True, (), 0.0),
        Seen("fe80::1%\x1b[31m", 4001, True, (), 0.0),
        Seen("0.0.0.0", 4001, True, (), 0.0),
        Seen("224.0.0.1", 4001, True, (), 0.0),
        Seen("203.0.113.7", 1 << 16, True, (), 0.0),
        Seen("203.0.113.7", 4001, True, (4001, 22), 0.0),
    ],
    ids=["two lines", "a name", "no text", "a zone", "nowhere", "everywhere", "no port", "a port not asked for"],
)
def test_what_no_honest_peer_answers_is_an_offence_and_changes_nothing(seen: Seen) -> None:
    async def scenario(asker: Asker) -> None:
        strikes: list[str] = []
        asker.reaching.strike = lambda peer, reason: strikes.append(peer)
        await asker.member(BOB, lambda: seen)
        with pytest.raises(ProtocolViolation):
            await ask_dialback(asker.below, BOB.peer, ASKED)
        await asker.reaching.ask([BOB.peer])
        assert asker.reaching.found is None
        assert strikes == [BOB.peer]

    run(scenario)


def test_a_port_for_tls_that_was_not_asked_for_was_not_dialled() -> None:
    async def scenario(asker: Asker) -> None:
        await asker.member(BOB, lambda: HERE)
        with pytest.raises(ProtocolViolation):
            await ask_dialback(asker.below, BOB.peer, Ask(0, (4001,)))
        assert await ask_dialback(asker.below, BOB.peer, ASKED) == HERE

    run(scenario)


def test_a_refusal_is_no_offence() -> None:
    async def scenario(asker: Asker) -> None:
        asker.reaching.strike = lambda peer, reason: pytest.fail(reason)
        await asker.member(BOB, lambda: Refused("busy"))
        with pytest.raises(Unreachable, match="busy"):
            await ask_dialback(asker.below, BOB.peer, ASKED)
        await asker.reaching.ask([BOB.peer])

    run(scenario)


def test_who_has_answered_once_and_then_says_nothing_is_asked_now_and_then() -> None:
    async def scenario(asker: Asker) -> None:
        first = iter([Seen("203.0.113.7", 4001, False, (), 0.0)])
        await asker.member(BOB, lambda: next(first, None))
        running = asyncio.create_task(asker.reaching.run(lambda: [BOB.peer]))
        await asyncio.sleep(10 * AGAIN_IF_NOT_S)
        assert 5 < len(asker.asked) <= 10
        assert asker.reaching.found is not None
        running.cancel()

    run(scenario)


def test_who_cannot_be_dialled_is_looked_at_again_each_half_minute() -> None:
    async def scenario(asker: Asker) -> None:
        await asker.member(BOB, lambda: Seen("203.0.113.7", 4001, False, (), 0.0))
        running = asyncio.create_task(asker.reaching.run(lambda: [BOB.peer]))
        await asyncio.sleep(10.5 * AGAIN_IF_NOT_S)
        assert 8 < len(asker.asked) <= 11
        running.cancel()

    run(scenario)


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_question_outlives_the_asking(cancelled: bool) -> None:
    async def scenario(asker: Asker) -> None:
        for one in (BOB, CAT):
            await asker.member(one, lambda: None)
        before = asyncio.all_tasks()
        asking = asyncio.create_task(asker.reaching.ask([BOB.peer, CAT.peer]))
        await asyncio.sleep(1.0 if cancelled else FIRST_S + 0.1)
        questions = asyncio.all_tasks() - before - {asking}
        if cancelled:
            asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled() == cancelled
        # What is left serves the streams of members.
        assert not any("_ask" in str(task.get_coro()) for task in questions if not task.done())

    run(scenario)


HOME, OUTSIDE = "192.168.1.2", "203.0.113.7"


class Home(MemoryTransport):
    async def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/{HOME}/tcp/4001/p2p/{ANN.peer}",)


@pytest.mark.parametrize(
    ("reach", "plain", "direct"),
    [
        (None, [HOME], [HOME]),
        (Reach(True, 4001, (OUTSIDE,)), [OUTSIDE, HOME], [OUTSIDE, HOME]),
        (
            Reach(True, 4001, ("198.51.100.2", OUTSIDE)),
            ["198.51.100.2", OUTSIDE, HOME],
            ["198.51.100.2", OUTSIDE, HOME],
        ),
        # A router that passes on the port for bulk only, or p2pd's only, or none.
        (Reach(True, 0, (OUTSIDE,)), [HOME], [OUTSIDE, HOME]),
        (Reach(False, 4001, (OUTSIDE,)), [OUTSIDE, HOME], []),
        (Reach(False, 0, (OUTSIDE,)), [HOME], []),
    ],
)
def test_where_others_have_reached_this_peer_is_announced(
    reach: Reach | None, plain: list[str], direct: list[str]
) -> None:
    async def main() -> None:
        transport = DirectTransport(ANN, Home(MemoryNetwork(random.Random(0)), ANN.peer), [])
        await transport.listen("127.0.0.1", 0)
        transport.reach = reach
        expected = [f"/ip4/{host}/tcp/4001/p2p/{ANN.peer}" for host in plain]
        expected += [f"/ip4/{host}/tcp/{transport.port}/tls/p2p/{ANN.peer}" for host in direct]
        assert await transport.addresses() == tuple(expected)
        await transport.close()

    asyncio.run(main())


def test_of_however_many_one_hears_no_more_addresses_are_kept_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "MOST_KNOWN", 8)

    async def scenario(asker: Asker) -> None:
        transport = asker.direct
        at = f"/ip4/127.0.0.1/tcp/1{MARK}"
        transport.know(BOB.peer, (at + BOB.peer,))
        for number in range(50):
            transport.know(f"stranger {number}", (f"{at}stranger {number}",))
            transport.know(CAT.peer, (at + CAT.peer,))
        assert len(transport._known) == 8
        assert CAT.peer in transport._known
        assert BOB.peer not in transport._known
        # Nor does a dial for control count as a word of the peer's.
        with pytest.raises(Unreachable):
            await transport.open(BOB.peer, (at + BOB.peer,), "control")
        assert BOB.peer not in transport._known

    run(scenario)
