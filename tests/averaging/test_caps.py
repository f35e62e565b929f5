"""A volunteer's limits hold over any five seconds, whoever sends, and the plan counts on no more."""

import asyncio
import random

import pytest
from virtual_clock import run_virtual

from peers.caps import FREE_BYTES, ON_DEVICE, CappedTransport, Caps
from peers.memory import MemoryNetwork
from peers.transport import Stream
from runtime.averaging.pacing import Uplink, receive_payload, send_payload
from runtime.averaging.payload import Payload

OVER_S, WITHIN = 5.0, 0.05


def most_and_mean(passed: list[tuple[float, int]]) -> tuple[float, float]:
    """Bytes a second as the device counts them: the most over any five seconds, and from the first to the last."""
    most = max(sum(n_bytes for at, n_bytes in passed if since <= at < since + OVER_S) / OVER_S for since, _ in passed)
    total = sum(n_bytes for _, n_bytes in passed)
    return ON_DEVICE * most, ON_DEVICE * total / (passed[-1][0] - passed[0][0])


@pytest.mark.parametrize(
    ("way", "mbit"), [("up", 1), ("up", 10), ("up", 200), ("down", 4), ("down", 10), ("down", 200)]
)
@pytest.mark.parametrize("n_streams", [1, 6])
def test_a_cap_holds_over_any_five_seconds_and_is_used(way: str, mbit: float, n_streams: int) -> None:
    cap = round(mbit * 1e6 / 8)

    async def main() -> list[tuple[float, int]]:
        network, passed = MemoryNetwork(random.Random(0), 0.01, 0.02), list[tuple[float, int]]()
        for peer in ("ann", "bob"):
            network.bytes_per_s[peer] = 1e9 / 8
        n_bytes = 12 * cap // n_streams

        def note(n_bytes: int) -> None:
            passed.append((asyncio.get_running_loop().time(), n_bytes))

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(n_bytes))

        sender, taker = network.transport("ann"), network.transport("bob")
        await CappedTransport(taker, ["bulk"], lambda: Caps(down=cap if way == "down" else 0)).serve("bulk", take)
        capped = CappedTransport(sender, ["bulk"], lambda: Caps(up=cap if way == "up" else 0))
        streams = [await capped.open("bob", (), "bulk") for _ in range(n_streams)]
        sent, uplink = Payload.of(memoryview(bytearray(n_bytes))), Uplink()
        await asyncio.gather(*(send_payload(stream, sent, uplink, count=note) for stream in streams))
        return passed

    most, mean = most_and_mean(run_virtual(main()))
    assert most <= cap * (1 + WITHIN)
    assert mean >= cap * 0.9, "a cap is a limit, and what is below it is the volunteer's to give"


def test_control_is_not_held_up_by_a_full_cap() -> None:
    async def main() -> float:
        network, loop = MemoryNetwork(random.Random(0), 0.001, 0.002), asyncio.get_running_loop()

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(1 << 20))

        async def answer(stream: Stream) -> None:
            await stream.send(await stream.receive(FREE_BYTES))

        bob = network.transport("bob")
        await bob.serve("bulk", take)
        await bob.serve("control", answer)
        capped = CappedTransport(network.transport("ann"), ["bulk"], lambda: Caps(up=125_000))
        bulk = await capped.open("bob", (), "bulk")
        sending = asyncio.create_task(send_payload(bulk, Payload.of(memoryview(bytearray(1 << 20))), Uplink()))
        await asyncio.sleep(1.0)
        asked_at = loop.time()
        control = await capped.open("bob", (), "control")
        await control.send(b"?" * (FREE_BYTES - 1))
        await control.receive(FREE_BYTES)
        took_s = loop.time() - asked_at
        await sending
        return took_s

    assert run_virtual(main()) < 0.05


def test_a_changed_cap_holds_for_what_waits_already() -> None:
    caps = [Caps(up=125_000)]

    async def main() -> list[float]:
        network, loop = MemoryNetwork(random.Random(0), 0.001, 0.002), asyncio.get_running_loop()
        taken = list[float]()

        async def take(stream: Stream) -> None:
            while True:
                await stream.receive(1 << 20)
                taken.append(loop.time())

        await network.transport("bob").serve("bulk", take)
        capped = CappedTransport(network.transport("ann"), ["bulk"], lambda: caps[0])
        streams = [await capped.open("bob", (), "bulk") for _ in range(4)]
        began = loop.time()
        sending = [asyncio.create_task(stream.send(bytes(1 << 20))) for stream in streams]
        # The first alone takes 8.8 s, the fourth 35.
        await asyncio.sleep(2.0)
        assert not taken
        caps[0] = Caps(up=12_500_000)
        await asyncio.sleep(0.35)
        caps[0] = Caps()
        await asyncio.gather(*sending)
        await asyncio.sleep(0.1)
        return [at - began for at in taken]

    first, *_, last = run_virtual(main())
    assert 2.0 < first < 2.3
    assert last < 2.7


def test_the_plan_counts_on_the_cap_and_not_on_the_link() -> None:
    caps = Caps(up=1_000_000)
    assert caps.planned(0, 0) == (round(1_000_000 / ON_DEVICE), 0), "known before anything is measured"
    assert caps.planned(5_000_000, 7_000_000) == (round(1_000_000 / ON_DEVICE), 7_000_000)
    assert caps.planned(300_000, 7_000_000) == (300_000, 7_000_000), "a link may be slower than what it is allowed"
