"""How fast a link is, measured over links in memory whose rate is known."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from virtual_clock import run_virtual

from peers import rate
from peers.errors import ProtocolViolation, StreamClosed, Unreachable
from peers.memory import MemoryNetwork, MemoryTransport
from peers.rate import RATE, RATE_PROTOCOL, WHOLE_S, Agreed, Measure, RateServer, measure_rates
from peers.transport import Stream

ANN, BOB, CAT = "ann", "bob", "cat"
Scenario = Callable[[MemoryNetwork, MemoryTransport], Coroutine[Any, Any, None]]


def run(scenario: Scenario, bytes_per_s: int = 0) -> list[BaseException]:
    """Bob serves, Ann has this link; what his handler has raised."""
    raised: list[BaseException] = []

    async def main() -> None:
        async with asyncio.timeout(100.0):
            network = MemoryNetwork(random.Random(0))
            if bytes_per_s:
                network.bytes_per_s[ANN] = bytes_per_s
            server = RateServer()

            async def serve(stream: Stream) -> None:
                try:
                    await server.serve(stream)
                except Exception as error:
                    raised.append(error)

            await network.transport(BOB).serve(RATE_PROTOCOL, serve)
            await scenario(network, network.transport(ANN))

    run_virtual(main())
    return raised


@pytest.mark.parametrize("bytes_per_s", [12_500, 125_000, 10**6, 10**7])
def test_every_link_is_measured_in_time_slow_ones_too(bytes_per_s: int) -> None:
    async def scenario(network: MemoryNetwork, ann: MemoryTransport) -> None:
        began = asyncio.get_running_loop().time()
        up, down = await measure_rates(ann, BOB)
        assert asyncio.get_running_loop().time() - began < WHOLE_S
        assert up == pytest.approx(bytes_per_s, rel=0.2)
        assert down == pytest.approx(bytes_per_s, rel=0.2)

    assert all(isinstance(error, StreamClosed) for error in run(scenario, bytes_per_s))


def test_where_not_even_a_second_frame_comes_it_is_slow_and_not_too_quick_to_tell() -> None:
    async def scenario(network: MemoryNetwork, ann: MemoryTransport) -> None:
        assert all(0 < found < 10_000 for found in await measure_rates(ann, BOB))

    run(scenario, 6_000)


def test_one_is_measured_with_at_a_time_and_each_seldom() -> None:
    async def scenario(network: MemoryNetwork, ann: MemoryTransport) -> None:
        cat = network.transport(CAT)
        await measure_rates(ann, BOB)
        with pytest.raises(Unreachable, match="less than 60 s ago"):
            await measure_rates(ann, BOB)
        with pytest.raises(Unreachable, match="busy"):
            await measure_rates(cat, BOB)
        await asyncio.sleep(rate.AGAIN_S)
        await measure_rates(cat, BOB)

    run(scenario)


def test_whoever_sends_without_end_is_cut_off() -> None:
    async def scenario(network: MemoryNetwork, ann: MemoryTransport) -> None:
        stream = await ann.open(BOB, (), RATE_PROTOCOL)
        await stream.send(RATE.encode(Measure()))
        assert RATE.decode(await stream.receive(100), BOB) == Agreed()

        async def flood() -> None:
            while True:
                await stream.send(bytes(rate.MAX_FRAME_BYTES))

        with pytest.raises(StreamClosed):
            await flood()

    assert [type(error) for error in run(scenario)] == [ProtocolViolation]


def test_whoever_does_not_answer_is_given_up() -> None:
    async def scenario(network: MemoryNetwork, ann: MemoryTransport) -> None:
        async def nothing(stream: Stream) -> None:
            await asyncio.sleep(3600)

        await network.transport(CAT).serve(RATE_PROTOCOL, nothing)
        with pytest.raises(Unreachable, match="not measured"):
            await measure_rates(ann, CAT)

    run(scenario)
