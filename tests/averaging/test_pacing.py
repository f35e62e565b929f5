"""Bulk leaves room for control: what is under way on a link is what it carries in the time that control may wait."""

import asyncio
import random
from contextlib import suppress

import pytest

from peers.errors import StreamClosed
from peers.memory import MemoryNetwork
from peers.transport import FRAME_HEADER_BYTES, Stream
from runtime.averaging.pacing import (
    LEAST_FRAME_BYTES,
    MOST_WINDOW_BYTES,
    QUEUE_S,
    Window,
    receive_payload,
    send_payload,
)
from runtime.averaging.payload import Dropped, Payload


def given(n_bytes: int) -> Payload:
    return Payload.of(memoryview(bytes(n_bytes)))


def test_a_window_doubles_a_round_trip_while_the_path_is_quick() -> None:
    window = Window()
    for _ in range(3):
        for _ in range(window.n_bytes // LEAST_FRAME_BYTES):
            window.acknowledged(LEAST_FRAME_BYTES, QUEUE_S / 10)
    assert window.n_bytes == 8 * LEAST_FRAME_BYTES


def test_a_window_follows_the_delay_down_and_never_below_the_least() -> None:
    window = Window()
    window.acknowledged(1, 0.0)
    window.n_bytes = MOST_WINDOW_BYTES
    window.acknowledged(LEAST_FRAME_BYTES, 3 * QUEUE_S)
    assert window.n_bytes < MOST_WINDOW_BYTES
    for _ in range(100):
        window.acknowledged(LEAST_FRAME_BYTES, 10 * QUEUE_S)
    assert window.n_bytes == LEAST_FRAME_BYTES


@pytest.mark.parametrize("bytes_per_s", [1.25e6, 12.5e6])
def test_what_is_sent_on_a_narrow_link_waits_at_the_sender_and_not_on_the_link(bytes_per_s: float) -> None:
    async def main() -> float:
        network = MemoryNetwork(random.Random(0), 0.001, 0.001)
        network.bytes_per_s["ann"] = bytes_per_s
        got: asyncio.Queue[bytes] = asyncio.Queue()
        n_bytes = int(bytes_per_s)

        async def take(stream: Stream) -> None:
            payload = Payload(n_bytes)
            await receive_payload(stream, payload)
            got.put_nowait(bytes(payload.view))

        await network.transport("bob").serve("bulk", take)
        transport = network.transport("ann")
        sending = asyncio.create_task(send_payload(await transport.open("bob", (), "bulk"), given(n_bytes)))
        waits = []
        while not sending.done():
            await asyncio.sleep(0.05)
            waits.append(network.passage_s("ann", "bob", 0))
        assert len(await got.get()) == n_bytes
        return max(waits)

    assert asyncio.run(main()) < 3 * QUEUE_S


def test_a_long_path_is_no_queue() -> None:
    window = Window()
    for _ in range(3):
        for _ in range(window.n_bytes // LEAST_FRAME_BYTES):
            window.acknowledged(LEAST_FRAME_BYTES, 0.4)
    assert window.n_bytes == 8 * LEAST_FRAME_BYTES


def test_what_comes_to_be_while_it_is_sent_arrives_and_what_is_dropped_ends_the_stream() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(0), 0.001, 0.01)
        ended: asyncio.Queue[Payload] = asyncio.Queue()

        async def take(stream: Stream) -> None:
            payload = Payload(4 * LEAST_FRAME_BYTES)
            with suppress(StreamClosed):
                await receive_payload(stream, payload)
            ended.put_nowait(payload)

        await network.transport("bob").serve("bulk", take)
        transport = network.transport("ann")
        for dropped in (False, True):
            payload, stream = Payload(4 * LEAST_FRAME_BYTES), await transport.open("bob", (), "bulk")
            sending = asyncio.create_task(send_payload(stream, payload))
            for _ in range(3 if dropped else 4):
                await asyncio.sleep(0.02)
                payload.grow(payload.n_ready + LEAST_FRAME_BYTES)
            await asyncio.sleep(0.05)
            if dropped:
                payload.drop()
                with pytest.raises(Dropped):
                    await sending
                stream.close()
            else:
                await sending
            assert (await ended.get()).n_ready == payload.n_ready

    asyncio.run(main())


def test_what_is_sent_at_the_same_time_is_counted_to_the_byte() -> None:
    # A sum that is read before an await and written after it loses what others add meanwhile.
    async def main() -> int:
        network, counted = MemoryNetwork(random.Random(0), 0.001, 0.01), [0]

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(3 * LEAST_FRAME_BYTES))

        def count(n_bytes: int) -> None:
            counted[0] += n_bytes

        await network.transport("bob").serve("bulk", take)
        transport = network.transport("ann")
        streams = [await transport.open("bob", (), "bulk") for _ in range(5)]
        await asyncio.gather(*(send_payload(stream, given(3 * LEAST_FRAME_BYTES), count) for stream in streams))
        return counted[0]

    assert asyncio.run(main()) == 5 * 3 * (LEAST_FRAME_BYTES + FRAME_HEADER_BYTES)
