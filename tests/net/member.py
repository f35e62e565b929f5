"""Members of a run as those who watch see them, in a process of their own.

Says in a line of JSON who they are, then does what it is told in lines on its standard input:
``close N`` takes the Nth away, and the end of the input is the end of all.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

from peers.discovery import DhtDiscovery
from peers.identity import Identity
from peers.messages import RECORD, MemberRecord
from peers.p2pd import P2pdTransport
from peers.records import MEMBER_CONTEXT
from peers.transport import Stream
from peers.wire import seal

PROTOCOL = "atoll-watch-1"
BEAT_S = 0.1


async def beat(stream: Stream) -> None:
    """The greeting back, then a small frame ten times a second."""
    await stream.send(b"welcome ", await stream.receive(1 << 16))
    while True:
        await stream.send(b"beat")
        await asyncio.sleep(BEAT_S)


async def refuse(stream: Stream) -> None:
    await stream.receive(1 << 16)
    await stream.send(b"refused")


async def boast(stream: Stream) -> None:
    """A frame of the largest size, and the beginning of one that is larger."""
    await stream.send(b"x" * (1 << 22))
    await stream.send(b"x" * ((1 << 22) + 1))
    await asyncio.Event().wait()


async def flood(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1 << 20))


BEHAVIOUR: dict[str, Callable[[Stream], Awaitable[None]]] = {
    "beat": beat,
    "refuse": refuse,
    "boast": boast,
    "flood": flood,
}


def record_of(identity: Identity, run_id: str, addresses: tuple[str, ...], lifetime_s: float, left: bool) -> bytes:
    record = MemberRecord(run_id, addresses, time.time() + lifetime_s, left)
    return seal(identity, MEMBER_CONTEXT, RECORD.encode(record))


def lie(discovery: DhtDiscovery, run_id: str, addresses: tuple[str, ...]) -> None:
    """Fill this peer's part of the table with what others may have written into it, beside the honest records."""
    key = DHTID.generate(f"atoll/{run_id}/members")
    entries = DictionaryDHTValue()
    held = discovery._node.protocol.storage.get(key)
    for subkey, (value, expires_at) in held.value.items():
        entries.store(subkey, value, expires_at)
    stranger, gone = Identity.generate(), Identity.generate()
    lies = {
        "not msgpack": b"\xc1",
        "": msgpack.packb({"a": 1}),
        "text": msgpack.packb("text"),
        "noise": msgpack.packb(bytes(4096)),
        "huge": msgpack.packb(bytes(1 << 20)),
        Identity.generate().peer: msgpack.packb(record_of(stranger, run_id, addresses, 3600.0, False)),
        stranger.peer: msgpack.packb(record_of(stranger, "0" * 40, addresses, 3600.0, False)),
        gone.peer: msgpack.packb(record_of(gone, run_id, ("/ip4/127.0.0.1/tcp/1",), 3600.0, True)),
    }
    for subkey, value in lies.items():
        entries.store(subkey, value, time.time() + 3600.0)
    entries.store(7, b"\xc0", time.time() + 3600.0)
    discovery._node.protocol.storage.data[key] = ValueWithExpiration(entries, time.time() + 3600.0)


async def main(options: argparse.Namespace) -> None:
    members: list[tuple[P2pdTransport, DhtDiscovery]] = []
    bootstrap = list(options.bootstrap)
    for number in range(options.members):
        key = options.folder / f"{options.name}-{number}"
        if not key.exists():
            Identity.generate().save(key)
        transport = await P2pdTransport.create(key, listen=(options.listen,), bootstrap=bootstrap[:1])
        if options.serves != "nothing":
            await transport.serve(PROTOCOL, BEHAVIOUR[options.serves])
        discovery = await DhtDiscovery.create(transport, bootstrap[:1])
        bootstrap += await transport.addresses()
        members.append((transport, discovery))
    for number, (transport, discovery) in enumerate(members):
        identity = Identity.load(options.folder / f"{options.name}-{number}")
        if not options.hidden:
            record = record_of(identity, options.run_id, await transport.addresses(), 3600.0, False)
            assert await discovery.store(
                f"atoll/{options.run_id}/members", transport.peer, record, time.time() + 3600.0
            )
    for transport, discovery in members if options.lies else ():
        lie(discovery, options.run_id, await transport.addresses())
    key_id = DHTID.generate(f"atoll/{options.run_id}/members")
    print(
        json.dumps(
            {
                "peers": [transport.peer for transport, _ in members],
                "addresses": [(await transport.addresses())[0] for transport, _ in members],
                "distances": [float(discovery._node.node_id.xor_distance(key_id)) for _, discovery in members],
            }
        ),
        flush=True,
    )
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.startswith("close "):
            transport, discovery = members[int(line.split()[1])]
            await discovery.close()
            await transport.close()
    for transport, discovery in members:
        await discovery.close()
        await transport.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("run_id")
    parser.add_argument("--serves", choices=[*BEHAVIOUR, "nothing"], default="beat")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--listen", default="/ip4/127.0.0.1/tcp/0")
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--hidden", action="store_true", help="not in the table of members")
    parser.add_argument("--lies", action="store_true")
    asyncio.run(main(parser.parse_args()))
