"""Bulk leaves room for control: what is under way on a link is what it carries in the time that control may wait."""

import asyncio
import random

import pytest

from peers.memory import MemoryNetwork
from peers.transport import FRAME_HEADER_BYTES, Stream
from runtime.averaging.transfer import CHUNK_BYTES, MOST_WINDOW_BYTES, QUEUE_S, Window, receive_bytes, send_bytes


def test_a_window_doubles_a_round_trip_while_the_path_is_quick() -> None:
    window = Window()
    for _ in range(3):
        for _ in range(window.n_bytes // CHUNK_BYTES):
            window.acknowledged(CHUNK_BYTES, QUEUE_S / 10)
    assert window.n_bytes == 8 * CHUNK_BYTES


def test_a_window_follows_the_delay_down_and_never_below_one_chunk() -> None:
    window = Window()
    window.n_bytes = MOST_WINDOW_BYTES
    window.acknowledged(CHUNK_BYTES, 3 * QUEUE_S)
    assert window.n_bytes < MOST_WINDOW_BYTES
    for _ in range(100):
        window.acknowledged(CHUNK_BYTES, 10 * QUEUE_S)
    assert window.n_bytes == CHUNK_BYTES


@pytest.mark.parametrize("bytes_per_s", [1.25e6, 12.5e6])
def test_what_is_sent_on_a_narrow_link_waits_at_the_sender_and_not_on_the_link(bytes_per_s: float) -> None:
    async def main() -> float:
        network = MemoryNetwork(random.Random(0), 0.001, 0.001)
        network.bytes_per_s["ann"] = bytes_per_s
        got: asyncio.Queue[bytes] = asyncio.Queue()
        n_bytes = int(bytes_per_s)

        async def take(stream: Stream) -> None:
            got.put_nowait(await receive_bytes(stream, n_bytes))

        await network.transport("bob").serve("bulk", take)
        transport = network.transport("ann")
        sending = asyncio.create_task(send_bytes(await transport.open("bob", (), "bulk"), bytes(n_bytes)))
        waits = []
        while not sending.done():
            await asyncio.sleep(0.05)
            waits.append(network.passage_s("ann", "bob", 0))
        assert len(await got.get()) == n_bytes
        return max(waits)

    assert asyncio.run(main()) < 3 * QUEUE_S


def test_what_is_sent_at_the_same_time_is_counted_to_the_byte() -> None:
    # A sum that is read before an await and written after it loses what others add meanwhile.
    async def main() -> int:
        network, counted = MemoryNetwork(random.Random(0), 0.001, 0.01), [0]

        async def take(stream: Stream) -> None:
            await receive_bytes(stream, 3 * CHUNK_BYTES)

        def count(n_bytes: int) -> None:
            counted[0] += n_bytes

        await network.transport("bob").serve("bulk", take)
        transport = network.transport("ann")
        streams = [await transport.open("bob", (), "bulk") for _ in range(5)]
        await asyncio.gather(*(send_bytes(stream, bytes(3 * CHUNK_BYTES), count) for stream in streams))
        return counted[0]

    assert asyncio.run(main()) == 5 * 3 * (CHUNK_BYTES + FRAME_HEADER_BYTES)
