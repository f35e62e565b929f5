"""The simulator's clock, and what its network does to streams: what the faults of ``faults.py`` are made of."""

import asyncio
import contextvars
import random

import pytest
from virtual_clock import PEER, VirtualClockLoop, run_virtual

from peers.errors import Unreachable
from peers.memory import MemoryNetwork
from peers.transport import Stream


def loop() -> VirtualClockLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualClockLoop)
    return running


def as_peer(name: str) -> contextvars.Context:
    own = contextvars.copy_context()
    own.run(PEER.set, name)
    return own


def test_an_hour_passes_in_no_time_and_in_order() -> None:
    async def main() -> list[float]:
        woken: list[float] = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append(loop().time())

        await asyncio.gather(*(sleeper(seconds) for seconds in (3600.0, 1.0, 60.0)))
        return woken

    assert run_virtual(main()) == [1.0, 60.0, 3600.0]


def test_what_belongs_to_a_frozen_peer_stands_still_and_is_late_when_it_thaws() -> None:
    async def main() -> dict[str, float]:
        woken: dict[str, float] = {}

        async def sleeper(name: str) -> None:
            await asyncio.sleep(1.0)
            woken[name] = loop().time()

        tasks = [loop().create_task(sleeper(name), context=as_peer(name)) for name in ("ann", "bob")]
        await asyncio.sleep(0.5)
        loop().freeze("ann")
        await asyncio.sleep(10.0)
        assert woken == {"bob": 1.0}
        loop().thaw("ann")
        await asyncio.gather(*tasks)
        return woken

    assert run_virtual(main()) == {"ann": 10.5, "bob": 1.0}


def test_nothing_left_to_do_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main())


async def linked(network: MemoryNetwork) -> tuple[Stream, asyncio.Queue[tuple[float, bytes]]]:
    """A stream from ann to bob, and when what came out of it."""
    arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take(stream: Stream) -> None:
        while True:
            frame = await stream.receive(1 << 20)
            arrived.put_nowait((loop().time(), frame))

    await network.transport("bob").serve("x", take)
    return await network.transport("ann").open("bob", (), "x"), arrived


def test_a_slow_link_takes_its_time_for_every_byte() -> None:
    async def main() -> float:
        network = MemoryNetwork(random.Random(0), 0.0, 0.0)
        stream, arrived = await linked(network)
        network.bytes_per_s["bob"] = 1000.0
        began = loop().time()
        await stream.send(bytes(500))
        await stream.send(bytes(1500))
        await arrived.get()
        return (await arrived.get())[0] - began

    assert run_virtual(main()) == pytest.approx(2.0)


def test_a_pulled_cable_delays_what_is_on_its_way_and_refuses_no_dial_at_once() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(0), 0.0, 0.0)
        stream, arrived = await linked(network)
        network.isolated.add("bob")
        await stream.send(b"late")
        with pytest.raises(Unreachable):
            await network.transport("cat").open("bob", (), "x")
        assert loop().time() > 3.0
        assert arrived.empty()
        network.isolated.clear()
        assert (await arrived.get())[1] == b"late"

    run_virtual(main())
