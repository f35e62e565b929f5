"""Tables of a few peers on real sockets, in one process; the hostile ones speak hivemind's own RPC."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PHandlerError, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from peers import discovery as discovery_module
from peers.discovery import (
    _MAX_REQUEST_BYTES,
    _MAX_REQUEST_KEYS,
    CALL_TIMEOUT_S,
    MAX_VALUE_BYTES,
    DhtDiscovery,
    _BoundedStorage,
)
from peers.identity import Identity
from peers.messages import RECORD, MemberRecord
from peers.p2pd import P2pdTransport
from peers.records import MEMBER_CONTEXT, is_own
from peers.wire import seal

KEY, HERE = "run/members", ("/ip4/192.0.2.1/tcp/1",)


@dataclasses.dataclass
class Member:
    transport: P2pdTransport
    discovery: DhtDiscovery


@contextlib.asynccontextmanager
async def swarm(
    folder: Path, count: int, clients: int = 0, belongs: Callable[[str, bytes, float], bool] | None = None
) -> AsyncIterator[list[Member]]:
    """``count`` members and then ``clients`` that only dial out, all joined through the first."""
    async with contextlib.AsyncExitStack() as stack:
        members: list[Member] = []
        bootstrap: tuple[str, ...] = ()
        for index in range(count + clients):
            path = folder / f"key{index}"
            Identity.generate().save(path)
            transport = await P2pdTransport.create(path, bootstrap=bootstrap, client_mode=index >= count)
            stack.push_async_callback(transport.close)
            bootstrap = bootstrap or await transport.addresses()
            discovery = await DhtDiscovery.create(transport, bootstrap, belongs=belongs)
            stack.push_async_callback(discovery.close)
            members.append(Member(transport, discovery))
        yield members


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def soon() -> float:
    return time.time() + 60


async def call_store(
    sender: Member,
    receiver: Member,
    subkey: bytes,
    value: bytes,
    expires_at: float,
    in_cache: bool = False,
    times: int = 1,
) -> list[bool]:
    """What a hostile peer sends: any bytes, past all checks of the sender's own node."""
    stub = sender.discovery._node.protocol.get_stub(PeerID.from_base58(receiver.transport.peer))
    request = dht_pb2.StoreRequest(
        keys=[DHTID.generate(KEY).to_bytes()] * times,
        subkeys=[subkey] * times,
        values=[value] * times,
        expiration_time=[expires_at] * times,
        in_cache=[in_cache] * times,
        peer=sender.discovery._node.protocol.node_info,
    )
    answer = await stub.rpc_store(request, timeout=5)
    return list(answer.store_ok)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_any_of_three_stores_all_three_get(tmp_path: Path, factory: Callable[[], Any]) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 3) as members:
            for index, member in enumerate(members):
                assert await member.discovery.store(KEY, member.transport.peer, b"%d" % index, soon())
            expected = {member.transport.peer: b"%d" % index for index, member in enumerate(members)}
            for member in members:
                assert await member.discovery.get(KEY) == expected
                assert await member.discovery.get("another key") == {}

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 30))


def test_a_peer_alone_has_a_table_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 1) as (member,):
            assert await member.discovery.store(KEY, "me", b"here", soon())
            assert await member.discovery.get(KEY) == {"me": b"here"}

    run(main())


def test_a_later_expiry_replaces_and_an_earlier_one_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (first, second):
            now = time.time()
            assert await first.discovery.store(KEY, "a", b"old", now + 60)
            assert await first.discovery.store(KEY, "a", b"new", now + 61)
            assert not await second.discovery.store(KEY, "a", b"older", now + 59)
            assert await second.discovery.get(KEY) == {"a": b"new"}

    run(main())


def test_a_client_stores_into_others_and_reads_from_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 1, clients=2) as (server, client, other):
            assert await client.discovery.store(KEY, "client", b"here", soon())
            for member in (server, client, other):
                assert await member.discovery.get(KEY) == {"client": b"here"}

    run(main())


def test_a_client_that_reaches_nobody_has_stored_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        Identity.generate().save(tmp_path / "key")
        transport = await P2pdTransport.create(tmp_path / "key", client_mode=True)
        discovery = await DhtDiscovery.create(transport, ())
        assert not await discovery.store(KEY, "client", b"here", soon())
        assert await discovery.get(KEY) == {}
        await discovery.close()
        await discovery.close()
        await transport.close()

    run(main())


def test_what_is_out_of_bounds_is_stored_neither_here_nor_by_others(tmp_path: Path) -> None:
    cases = [
        ("a", MAX_VALUE_BYTES + 1, 60.0),
        ("a" * 129, 1, 60.0),
        ("a", 1, -1.0),
        ("a", 1, 86_500.0),
        ("a", 1, math.inf),
        ("a", 1, math.nan),
    ]

    async def main() -> None:
        async with swarm(tmp_path, 2) as (first, second):
            for subkey, value_bytes, lifetime_s in cases:
                value, expires_at = bytes(value_bytes), time.time() + lifetime_s
                assert not await first.discovery.store(KEY, subkey, value, expires_at)
                packed = MSGPackSerializer.dumps(subkey), MSGPackSerializer.dumps(value)
                assert await call_store(first, second, *packed, expires_at) == [False]
                assert await second.discovery.get(KEY) == {}

    run(main())


def test_hostile_records_are_refused_and_hide_nothing(tmp_path: Path) -> None:
    dumps = MSGPackSerializer.dumps
    hostile = {
        "a value that is not msgpack": (dumps("evil"), b"\xc1"),
        "a value cut short": (dumps("evil"), dumps(b"whole")[:-1]),
        "a value of another type": (dumps("evil"), dumps({"a": 1})),
        "an empty value": (dumps("evil"), b""),
        "a plain value": (dumps(None), dumps(b"plain")),
        "a plain value that is not msgpack": (dumps(None), b"\xc1"),
        "a sub-key that is no text": (dumps(7), dumps(b"x")),
        "a sub-key that is not msgpack": (b"\xd9", dumps(b"x")),
    }

    async def main() -> None:
        async with swarm(tmp_path, 3) as (evil, good, reader):
            assert await good.discovery.store(KEY, "good", b"record", soon())
            for why, (subkey, value) in hostile.items():
                for target in (good, reader):
                    assert await call_store(evil, target, subkey, value, soon() + 600) == [False], why
            started = time.monotonic()
            assert await reader.discovery.get(KEY) == {"good": b"record"}
            assert time.monotonic() - started < 1

    run(main())


def test_nobody_takes_the_place_of_anothers_record_nor_makes_an_old_one_of_it_last(tmp_path: Path) -> None:
    victim = Identity.generate()
    run_id = "5" * 40

    def record(expires_at: float, identity: Identity = victim) -> bytes:
        return seal(identity, MEMBER_CONTEXT, RECORD.encode(MemberRecord(run_id, HERE, expires_at, False)))

    async def main() -> None:
        async with swarm(tmp_path, 2, belongs=is_own) as (evil, good):
            dumps, old = MSGPackSerializer.dumps, soon()
            hostile = {
                "junk": (b"x", old + 600),
                "a record of another": (record(old + 600, Identity.generate()), old + 600),
                "an old one of its own, for longer": (record(old), old + 600),
            }
            for why, (value, expires_at) in hostile.items():
                refused = await call_store(evil, good, dumps(victim.peer), dumps(value), expires_at)
                assert refused == [False], why
            assert await good.discovery.store(KEY, victim.peer, record(old + 1), old + 1)
            assert await good.discovery.store(KEY, victim.peer, record(old + 2), old + 2)
            assert await good.discovery.get(KEY) == {victim.peer: record(old + 2)}

    run(main())


def test_nothing_is_kept_in_the_cache_where_it_would_hide_what_is_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (evil, good):
            assert await good.discovery.store(KEY, "good", b"record", soon())
            dumps = MSGPackSerializer.dumps
            assert await call_store(evil, good, dumps("evil"), dumps(b"x"), soon() + 600, in_cache=True) == [False]
            assert await good.discovery.get(KEY) == {"good": b"record"}

    run(main())


def test_a_request_that_would_keep_the_loop_for_long_is_not_worked_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (evil, good):
            dumps = MSGPackSerializer.dumps
            for times, value in ((_MAX_REQUEST_KEYS + 1, b"x"), (1, bytes(_MAX_REQUEST_BYTES))):
                with pytest.raises(P2PHandlerError):
                    await call_store(evil, good, dumps("evil"), dumps(value), soon(), times=times)
            assert await good.discovery.get(KEY) == {}
            accepted = await call_store(evil, good, dumps("evil"), dumps(b"x"), soon(), times=_MAX_REQUEST_KEYS)
            assert accepted == [True] + [False] * (_MAX_REQUEST_KEYS - 1)

    run(main())


def test_what_is_stored_again_and_again_takes_no_more_memory() -> None:
    storage, key, now = _BoundedStorage(2), DHTID.generate(KEY), time.time()
    for later in range(1000):
        assert storage.store_subkey(key, "evil", b"x", now + 60 + later)
        assert not storage.store_subkey(key, "evil", b"x", now + 60 + later)
    held = storage.get(key).value
    assert list(held.data) == ["evil"]
    assert max(len(storage.expiration_heap), len(storage.data[key].value.expiration_heap)) < 100


def test_of_an_answer_what_is_not_valid_is_left_out_and_the_rest_counts(tmp_path: Path) -> None:
    """As where a reader's clock is wrong: to it one record of many has expired."""

    async def main() -> None:
        async with swarm(tmp_path, 2) as (holder, reader):
            held = DictionaryDHTValue()
            with held.freeze():
                held.store("good", MSGPackSerializer.dumps(b"record"), soon())
                held.store("over", MSGPackSerializer.dumps(b"record"), time.time() - 60)
                held.store("far", MSGPackSerializer.dumps(b"record"), time.time() + 2 * 86_400)
            held.frozen = True
            holder.discovery._node.protocol.storage.get = lambda key: ValueWithExpiration(held, soon())
            reader.discovery._node.protocol.storage.clear()
            assert await reader.discovery.get(KEY) == {"good": b"record"}
            # What others answer is theirs to hold.
            assert not reader.discovery._node.protocol.storage.data

    run(main())


def test_a_get_puts_nothing_that_others_answer_into_what_this_peer_holds(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (holder, reader):
            assert await reader.discovery.store(KEY, "own", b"record", soon())
            lies = DictionaryDHTValue()
            for number in range(50):
                lies.store(f"lie-{number}", MSGPackSerializer.dumps(b"record"), soon())
            holder.discovery._node.protocol.storage.get = lambda key: ValueWithExpiration(lies, soon())
            assert len(await reader.discovery.get(KEY)) == 51
            (held,) = reader.discovery._node.protocol.storage.data.values()
            assert list(held.value.data) == ["own"]

    run(main())


def test_where_there_is_no_room_for_another_key_those_that_are_there_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.discovery._MAX_STORED_KEYS", 4)

    async def main() -> None:
        async with swarm(tmp_path, 1) as (member,):
            assert await member.discovery.store(KEY, "own", b"record", soon())
            stored = [await member.discovery.store(f"key {n}", "a", b"x", soon() + 600) for n in range(6)]
            assert stored == [True] * 3 + [False] * 3
            assert await member.discovery.get(KEY) == {"own": b"record"}

    run(main())


def test_a_lying_holder_cannot_hide_what_others_hold(tmp_path: Path) -> None:
    forged = DictionaryDHTValue()
    forged.latest_expiration_time = "never"
    forged.maxsize = "all"
    lies = [
        ValueWithExpiration(MSGPackSerializer.dumps(b"plain"), math.inf),
        ValueWithExpiration(b"\xc1", math.inf),
        ValueWithExpiration(DictionaryDHTValue(), math.inf),
        ValueWithExpiration(forged, math.inf),
        None,
    ]

    async def main() -> None:
        async with swarm(tmp_path, 3) as (evil, good, reader):
            assert await good.discovery.store(KEY, "good", b"record", soon())
            reader.discovery._node.protocol.storage.clear()
            for lie in lies:
                evil.discovery._node.protocol.storage.get = lambda key, lie=lie: lie
                for _ in range(3):
                    assert await reader.discovery.get(KEY) == {"good": b"record"}

    run(main())


def test_a_poisoned_dictionary_costs_a_timeout_and_no_exception(tmp_path: Path) -> None:
    """The worst case, in our own storage and past every check: hivemind's search never ends."""

    async def main() -> None:
        async with swarm(tmp_path, 1) as (member,):
            entries = DictionaryDHTValue()
            entries.store("evil", b"\xc1", soon())
            protocol = member.discovery._node.protocol
            protocol.storage.data[DHTID.generate(KEY)] = ValueWithExpiration(entries, soon())
            started = time.monotonic()
            assert await member.discovery.get(KEY) == {}
            assert time.monotonic() - started < CALL_TIMEOUT_S + 1
            assert await member.discovery.store("another key", "a", b"x", soon())

    run(main())


def test_a_cancelled_call_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (first, second):
            for call in (first.discovery.get(KEY), first.discovery.store(KEY, "a", b"x", soon())):
                task = asyncio.create_task(call)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await second.discovery.store(KEY, "a", b"y", soon())
            assert await first.discovery.get(KEY) == {"a": b"y"}

    run(main())


def test_records_outlive_the_peer_that_stored_them_and_the_bootstrap_peer(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 4) as (bootstrap, writer, third, fourth):
            assert await writer.discovery.store(KEY, "writer", b"record", soon())
            for leaver in (bootstrap, writer):
                await leaver.discovery.close()
                await leaver.transport.close()
            for member in (third, fourth):
                assert await member.discovery.get(KEY) == {"writer": b"record"}
            assert await third.discovery.store(KEY, "third", b"new", soon())
            assert await fourth.discovery.get(KEY) == {"writer": b"record", "third": b"new"}

    run(main())


def test_an_emptied_table_is_joined_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (first, second):
            assert await first.discovery.store(KEY, "first", b"record", soon())
            table = second.discovery._node.protocol.routing_table
            for node_id in list(table.uid_to_peer_id):
                del table[node_id]
            second.discovery._node.protocol.storage.clear()
            assert await second.discovery.get(KEY) == {"first": b"record"}

    run(main())


def test_of_too_many_entries_a_bounded_number_is_kept_and_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery_module, "_MAX_STORED_ENTRIES", 5)
    monkeypatch.setattr(discovery_module, "MAX_ENTRIES", 3)

    async def main() -> None:
        async with swarm(tmp_path, 1) as (member,):
            stored = [await member.discovery.store(KEY, f"{i}", b"x", soon()) for i in range(7)]
            assert stored == [True] * 5 + [False] * 2
            assert await member.discovery.store(KEY, "0", b"y", soon() + 1)
            found = await member.discovery.get(KEY)
            assert len(found) == 3
            assert await member.discovery.get(KEY) == found

    run(main())


def test_after_the_death_of_p2pd_calls_fail_softly(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, 2) as (first, second):
            await first.transport.close()
            assert await first.discovery.get(KEY) == {}
            assert not await first.discovery.store(KEY, "a", b"x", soon())
            await first.discovery.close()
            assert await second.discovery.store(KEY, "a", b"x", soon())

    run(main())


def test_a_bootstrap_peer_that_comes_back_without_a_memory_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nobody; whoever has its address does, and with that it leads newcomers to what is stored."""
    monkeypatch.setattr(discovery_module, "LOOK_AGAIN_S", 0.1)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:

            async def member(name: str, bootstrap: tuple[str, ...], listen: str = "/ip4/127.0.0.1/tcp/0") -> Member:
                path = tmp_path / name
                if not path.exists():
                    Identity.generate().save(path)
                transport = await P2pdTransport.create(path, listen=(listen,))
                stack.push_async_callback(transport.close)
                discovery = await DhtDiscovery.create(transport, bootstrap)
                stack.push_async_callback(discovery.close)
                return Member(transport, discovery)

            guide = await member("guide", ())
            (address,) = await guide.transport.addresses()
            peer = await member("peer", (address,))
            looking = asyncio.create_task(peer.discovery.keep_looking())
            assert await peer.discovery.store(KEY, "peer", b"here", soon())
            await guide.discovery.close()
            await guide.transport.close()
            for _ in range(100):
                if not peer.discovery._node.protocol.routing_table.peer_id_to_uid:
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("a peer that is gone stays in the table")
            guide = await member("guide", (), address.partition("/p2p/")[0])
            newcomer = await member("newcomer", (address,))
            for _ in range(100):
                if await newcomer.discovery.get(KEY) == {"peer": b"here"}:
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("nobody has gone to the one that came back")
            looking.cancel()

    run(main())
