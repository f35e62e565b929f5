"""Meshes of several peers on a network in memory: who meets whom, and through whom."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from virtual_clock import run_virtual

from peers import announcing, service
from peers.identity import Identity
from peers.membership import Down
from peers.memory import MemoryNetwork
from peers.messages import CONTROL, PROTOCOL_VERSION, RECORD, Hello, Introduction, MemberRecord, Role, Status
from peers.records import MEMBER_CONTEXT, RECORD_TTL_S
from peers.service import Mesh
from peers.transport import Stream
from peers.wire import seal

RUN = "5" * 40
STATUS = Status(Role.MEMBER, 0, bytes(32), 0)
ANN, BOB, CAT = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))


class Silence:
    """A discovery that finds nobody."""

    async def store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
        return False

    async def get(self, key: str) -> dict[str, bytes]:
        return {}


def mesh(network: MemoryNetwork, identity: Identity, *known: Identity) -> Mesh:
    addresses = [f"/memory/{one.peer}/p2p/{one.peer}" for one in known]
    return Mesh(
        identity,
        RUN,
        network.transport(identity.peer),
        Silence(),
        STATUS,
        random.Random(0),
        lambda peer, reason: pytest.fail(f"{peer}: {reason}"),
        network.unix_time,
        known=addresses,
    )


def run(scenario: Callable[[MemoryNetwork], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10.0):
            await scenario(MemoryNetwork(random.Random(0)))

    asyncio.run(main())


async def until(done: Callable[[], bool]) -> None:
    while True:
        if done():
            return
        await asyncio.sleep(0.01)


def test_who_is_known_from_before_is_met_without_the_dht() -> None:
    async def scenario(network: MemoryNetwork) -> None:
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        tasks = [asyncio.create_task(one.run()) for one in (bob, ann)]
        await until(lambda: set(ann.members()) == {BOB.peer} and set(bob.members()) == {ANN.peer})
        for task in tasks:
            task.cancel()

    run(scenario)


def test_whoever_is_met_introduces_those_it_is_linked_with() -> None:
    async def scenario(network: MemoryNetwork) -> None:
        # Ann and Cat have only Bob in common, who has met Cat first.
        ann, bob, cat = mesh(network, ANN, BOB), mesh(network, BOB), mesh(network, CAT, BOB)
        tasks = [asyncio.create_task(one.run()) for one in (bob, cat)]
        await until(lambda: set(bob.members()) == {CAT.peer} == set(bob.members()) and BOB.peer in cat.members())
        tasks.append(asyncio.create_task(ann.run()))
        await until(lambda: set(ann.members()) == {BOB.peer, CAT.peer} and ANN.peer in cat.members())
        for task in tasks:
            task.cancel()

    run(scenario)


@pytest.mark.parametrize("lie", ["not signed by whom it is of", "of another run", "expired"])
def test_an_introduction_that_nobody_could_have_made_is_not_followed(lie: str) -> None:
    async def scenario(network: MemoryNetwork) -> None:
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        expires_at = network.unix_time() + (-1.0 if lie == "expired" else RECORD_TTL_S)
        record = MemberRecord("6" * 40 if lie == "of another run" else RUN, ("/memory/x",), expires_at, left=False)
        sealed = seal(CAT, "something else" if "signed" in lie else MEMBER_CONTEXT, RECORD.encode(record))
        bob._announcing._records[BOB.peer] = sealed
        announce = bob._announcing.announce

        async def announce_nothing(left: bool = False) -> None:
            if left:
                await announce(left)

        bob._announcing.announce = announce_nothing  # type: ignore[method-assign]
        tasks = [asyncio.create_task(one.run()) for one in (bob, ann)]
        await until(lambda: BOB.peer in ann.members())
        await asyncio.sleep(0.1)
        assert CAT.peer not in ann._machine._links
        for task in tasks:
            task.cancel()

    run(scenario)


def test_a_goodbye_is_the_last_that_is_seen_of_a_leaver_while_it_cleans_up() -> None:
    async def scenario(network: MemoryNetwork) -> None:
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        seen: list[object] = []
        bob.listener = seen.append
        tasks = [asyncio.create_task(one.run()) for one in (bob, ann)]
        await until(lambda: set(ann.members()) == {BOB.peer} and set(bob.members()) == {ANN.peer})
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ann.leave("enough")
        assert loop.time() - began < 0.5
        await until(lambda: any(isinstance(event, Down) for event in seen))
        # What Bob closes is no loss to Ann: she calls nobody back.
        await asyncio.sleep(0.5)
        assert seen[-1] == Down(ANN.peer, "left: enough", left=True)
        for task in tasks:
            task.cancel()

    run(scenario)


@pytest.mark.parametrize("silent_s", [0.0, 1.5], ids=["at once", "after a silence"])
def test_who_greets_anew_after_a_silence_is_dialled_anew_too(silent_s: float) -> None:
    """Its network is another: nothing says that the old way, by which it is spoken to, leads to nobody now."""

    async def main() -> None:
        network = MemoryNetwork(random.Random(0))
        ann, bob = mesh(network, ANN, BOB), network.transport(BOB.peer)
        greetings = list[Stream]()

        async def listen(stream: Stream) -> None:
            greetings.append(stream)
            # Kept open, and whether anything comes of it is Ann's affair.
            await asyncio.Event().wait()

        await bob.serve(service.CONTROL_PROTOCOL, listen)
        running = asyncio.create_task(ann.run())
        hello = b"\0" + CONTROL.encode(Hello(PROTOCOL_VERSION, RUN, ("/memory/x",), STATUS))
        for _ in range(2):
            stream = await bob.open(ANN.peer, (), service.CONTROL_PROTOCOL)
            await stream.send(hello)
            await until(lambda: set(ann.members()) == {BOB.peer})
            await asyncio.sleep(silent_s)
        assert len(greetings) == (2 if silent_s else 1)
        running.cancel()

    run_virtual(main())


def test_another_protocol_version_is_told_of_once_on_both_sides_and_is_no_offence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(network: MemoryNetwork) -> None:
        told: list[tuple[str, str, int]] = []
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        for one in (ann, bob):
            one.other_version = lambda peer, version, one=one: told.append((one.peer, peer, version))  # type: ignore[misc]
        newer = replace(Hello(PROTOCOL_VERSION, RUN, ("/memory/x",), STATUS), version=PROTOCOL_VERSION + 1)

        def greet(version: int, *fields: Any) -> Hello:
            return newer

        running = [asyncio.create_task(bob.run())]
        monkeypatch.setattr(service, "Hello", greet)
        running.append(asyncio.create_task(ann.run()))
        await until(lambda: len(told) == 2)
        # Ann dials again and again, ever more rarely.
        await asyncio.sleep(1.5)
        assert sorted(told) == sorted(
            [(BOB.peer, ANN.peer, PROTOCOL_VERSION + 1), (ANN.peer, BOB.peer, PROTOCOL_VERSION)]
        )
        assert not ann.members()
        assert not bob.members()
        for task in running:
            task.cancel()

    run(scenario)


def test_whoever_greets_in_ever_another_version_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(network: MemoryNetwork) -> None:
        told: list[tuple[str, int]] = []
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        bob.other_version = lambda peer, version: told.append((peer, version))
        versions: list[int] = []

        def greet(version: int, *fields: Any) -> Hello:
            versions.append(PROTOCOL_VERSION + 1 + len(versions))
            return replace(Hello(PROTOCOL_VERSION, RUN, ("/memory/x",), STATUS), version=versions[-1])

        running = [asyncio.create_task(bob.run())]
        monkeypatch.setattr(service, "Hello", greet)
        running.append(asyncio.create_task(ann.run()))
        await until(lambda: len(versions) >= 3)
        await asyncio.sleep(0.1)
        assert told == [(ANN.peer, PROTOCOL_VERSION + 1)]
        for task in running:
            task.cancel()

    run(scenario)


def test_a_stranger_that_tells_of_any_number_of_peers_takes_no_more_room_than_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcing, "MOST_KNOWN", 8)

    async def scenario(network: MemoryNetwork) -> None:
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        met: list[str] = []
        ann.met = lambda peer, addresses: met.append(peer)
        made_up = [Identity.from_seed(bytes([number]) * 32) for number in range(100, 130)]
        record = RECORD.encode(MemberRecord(RUN, ("/memory/x",), network.unix_time() + RECORD_TTL_S, left=False))
        sealed = tuple(seal(one, MEMBER_CONTEXT, record) for one in made_up)
        told = bob._announcing.introduction

        def tell_of_many() -> Introduction:
            return Introduction((*sealed, *told().records))

        bob._announcing.introduction = tell_of_many  # type: ignore[method-assign]
        tasks = [asyncio.create_task(one.run()) for one in (bob, ann)]
        await until(lambda: BOB.peer in ann.members() and BOB.peer in ann._announcing._records)
        # It was looked at whole, and there is room for those who are there, after it as well.
        assert len(ann._announcing._records) == 8
        assert {ANN.peer, BOB.peer} <= ann._announcing._records.keys()
        assert set(met) == {BOB.peer}
        for task in tasks:
            task.cancel()

    run(scenario)


def test_where_a_peer_can_be_dialled_is_its_word_now_though_its_clock_was_set_back() -> None:
    async def scenario(network: MemoryNetwork) -> None:
        ann, bob = mesh(network, ANN, BOB), mesh(network, BOB)
        tasks = [asyncio.create_task(one.run()) for one in (bob, ann)]
        await until(
            lambda: BOB.peer in ann.members() and BOB.peer in ann._announcing._records and ANN.peer in bob.members()
        )

        async def moved() -> tuple[str, ...]:
            return ("/memory/moved",)

        bob._announcing._unix_time = lambda: network.unix_time() - 600
        bob._transport.addresses = moved  # type: ignore[method-assign]
        bob.tell_addresses()
        await until(lambda: ann._machine.addresses_of(BOB.peer) == ("/memory/moved",))
        for task in tasks:
            task.cancel()

    run(scenario)
