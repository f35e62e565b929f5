"""Bulk leaves room for control: what is under way on a link is what it carries in the time that control may wait."""

import asyncio
import math
import random
from contextlib import nullcontext, suppress
from typing import cast

import pytest
from virtual_clock import run_virtual

from peers.errors import ProtocolViolation, StreamClosed
from peers.memory import MemoryNetwork
from peers.transport import FRAME_HEADER_BYTES, Stream
from runtime.averaging.pacing import (
    FORGET_S,
    LEAST_FRAME_BYTES,
    LEAST_WINDOW_BYTES,
    MOST_WINDOW_BYTES,
    QUEUE_S,
    STALL_S,
    STAMP,
    Rank,
    Stage,
    Stalled,
    Uplink,
    Window,
    receive_payload,
    send_payload,
)
from runtime.averaging.payload import Dropped, Payload


def given(n_bytes: int) -> Payload:
    return Payload.of(memoryview(bytes(n_bytes)))


def pass_through(window: Window, passage_s: float, now: float) -> None:
    """All that may be under way is, and has come there after so long."""
    frames = []
    while room := window.room:
        window.sent(room, now)
        frames.append(room)
    for n_bytes in frames:
        window.acknowledged(n_bytes, passage_s, now)


def test_a_window_doubles_a_round_trip_while_the_path_is_quick() -> None:
    window = Window()
    for _ in range(3):
        pass_through(window, QUEUE_S / 10, 0.0)
    assert window.n_bytes == pytest.approx(8 * LEAST_FRAME_BYTES, rel=0.3)


def test_a_long_path_is_no_queue_nor_is_a_clock_that_differs() -> None:
    window = Window()
    for _ in range(3):
        pass_through(window, -3600.0 + 0.4, 0.0)
    assert window.n_bytes == pytest.approx(8 * LEAST_FRAME_BYTES, rel=0.3)


def test_a_window_follows_the_queue_down_once_for_all_that_is_under_way_and_never_below_the_least() -> None:
    window = Window()
    pass_through(window, 0.0, 0.0)
    window.n_bytes = MOST_WINDOW_BYTES
    pass_through(window, 3 * QUEUE_S, 1.0)
    assert window.n_bytes == MOST_WINDOW_BYTES / 2
    for second in range(20):
        pass_through(window, 10 * QUEUE_S, 2.0 + second)
    assert window.n_bytes == LEAST_WINDOW_BYTES


def test_two_windows_on_one_link_end_up_alike() -> None:
    """A link that carries so much in a round trip of 10 ms, and delays what is more."""
    one, other, per_round = Window(), Window(), 1 << 17
    one.n_bytes = 1 << 20
    for tick in range(4000):
        sizes = []
        for window in (one, other):
            sizes.append(0)
            while room := window.room:
                window.sent(room, 0.0)
                sizes[-1] += room
        queue_s = 0.01 * max(0.0, sum(sizes) / per_round - 1)
        for window, size in zip((one, other), sizes, strict=True):
            window.acknowledged(size, queue_s if tick else 0.0, 0.01 * tick + 10.0)
    assert 0.5 < one.n_bytes / other.n_bytes < 2.0


def test_a_path_is_looked_at_anew_when_it_has_changed() -> None:
    window = Window()
    pass_through(window, 0.0, 0.0)
    grown = window.n_bytes
    pass_through(window, 5.0, FORGET_S + 1.0)
    assert window.n_bytes > grown, "all that passes now takes so long: it is the path, and no queue"


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
        sending = asyncio.create_task(send_payload(await transport.open("bob", (), "bulk"), given(n_bytes), Uplink()))
        waits = []
        while not sending.done():
            await asyncio.sleep(0.05)
            waits.append(network.passage_s("ann", "bob", 0))
        assert len(await got.get()) == n_bytes
        return max(waits)

    assert asyncio.run(main()) < 3 * QUEUE_S


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
            sending = asyncio.create_task(send_payload(stream, payload, Uplink()))
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
        streams, uplink = [await transport.open("bob", (), "bulk") for _ in range(5)], Uplink()
        await asyncio.gather(
            *(send_payload(stream, given(3 * LEAST_FRAME_BYTES), uplink, count=count) for stream in streams)
        )
        return counted[0]

    assert asyncio.run(main()) == 5 * 3 * (LEAST_FRAME_BYTES + FRAME_HEADER_BYTES)


def test_what_comes_first_in_a_round_goes_first_and_who_is_held_up_holds_up_nobody() -> None:
    async def main() -> list[str]:
        network, done = MemoryNetwork(random.Random(0), 0.001, 0.002), list[str]()
        network.bytes_per_s["ann"] = 1e6
        network.bytes_per_s["slow"] = 2e4

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(1 << 18))

        for peer in ("first", "second", "slow"):
            await network.transport(peer).serve("bulk", take)
        transport, uplink = network.transport("ann"), Uplink()

        async def send(peer: str, rank: int) -> None:
            await send_payload(await transport.open(peer, (), "bulk"), given(1 << 18), uplink, Rank(turn=rank))
            done.append(peer)

        await asyncio.gather(send("second", 2), send("slow", 0), send("first", 1))
        return done

    assert run_virtual(main()) == ["first", "second", "slow"]


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.BACKGROUND])
def test_what_waits_long_for_its_turn_is_not_given_up_by_who_waits_for_it(stage: Stage) -> None:
    """On a slow link all shares of a large model take far longer than nothing may come of one of them."""

    async def main() -> list[str]:
        network, done = MemoryNetwork(random.Random(0), 0.001, 0.002), list[str]()
        network.bytes_per_s["ann"] = bytes_per_s = 2.5e6
        n_bytes = int(0.5 * STALL_S * bytes_per_s)

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(n_bytes))
            done.append(stream.peer)

        transport, uplink = network.transport("ann"), Uplink()

        async def send(peer: str, rank: Rank) -> None:
            await network.transport(peer).serve("bulk", take)
            stream, payload = await transport.open(peer, (), "bulk"), given(n_bytes)
            with uplink.of_a_round() if rank.stage is Stage.SHARE else nullcontext():
                await send_payload(stream, payload, uplink, rank)

        first = [send(peer, Rank(Stage.SHARE, turn=turn)) for turn, peer in enumerate(("one", "two", "three"))]
        await asyncio.gather(*first, send("last", Rank(stage, turn=3)))
        return done

    assert len(run_virtual(main())) == 4


def test_whoever_lets_a_byte_through_now_and_then_is_given_up_as_who_lets_none() -> None:
    async def main() -> float:
        network, loop = MemoryNetwork(random.Random(0), 0.001, 0.002), asyncio.get_running_loop()

        async def drip(stream: Stream) -> None:
            while True:
                await stream.send(b"x")
                await asyncio.sleep(0.4 * STALL_S)

        await network.transport("ann").serve("bulk", drip)
        stream = await network.transport("bob").open("ann", (), "bulk")
        with pytest.raises(Stalled, match="3 bytes came in 20 s"):
            await receive_payload(stream, Payload(1 << 20))
        return loop.time()

    assert run_virtual(main()) < STALL_S + 1.0


def test_who_has_the_turn_and_a_peer_that_has_stopped_reading_holds_up_nobody() -> None:
    class Reading:
        """A stream to a peer that acknowledges at once, so many bytes; what comes then waits for ever."""

        def __init__(self, peer: str, n_bytes: float) -> None:
            self.peer, self._left, self._acknowledgements = peer, n_bytes, asyncio.Queue[bytes]()

        async def send(self, frame: memoryview) -> None:
            self._left -= len(frame)
            if self._left < 0:
                await asyncio.Event().wait()
            self._acknowledgements.put_nowait(STAMP.pack(asyncio.get_running_loop().time()))

        async def receive(self, most_bytes: int) -> bytes:
            return await self._acknowledgements.get()

    async def main() -> float:
        uplink, loop = Uplink(), asyncio.get_running_loop()
        # As on a fast link: windows hold more than buffers do, and it is the own link that is waited for.
        uplink.own.bytes_per_s = 1e6
        for peer in ("frozen", "reading"):
            uplink.window(peer).n_bytes = MOST_WINDOW_BYTES
        frozen, reading = (
            asyncio.create_task(send_payload(cast(Stream, stream), given(1 << 20), uplink, Rank(turn=turn), True))
            for turn, stream in enumerate((Reading("frozen", 2e5), Reading("reading", math.inf)))
        )
        await reading
        took_s = loop.time()
        frozen.cancel()
        return took_s

    assert run_virtual(main()) < 2.0


def test_what_was_lost_with_its_stream_does_not_keep_a_window_large() -> None:
    window = Window()
    pass_through(window, 0.0, 0.0)
    window.n_bytes = MOST_WINDOW_BYTES
    window.sent(4 << 20, 1.0)
    window.acknowledged(1 << 16, 3 * QUEUE_S, 1.0)
    window.lost((4 << 20) - (1 << 16))
    assert window.n_bytes == MOST_WINDOW_BYTES / 2
    window.sent(1 << 16, 2.0)
    window.acknowledged(1 << 16, 3 * QUEUE_S, 2.0)
    assert window.n_bytes == MOST_WINDOW_BYTES / 4


def test_what_is_no_part_of_a_round_holds_none_up_and_gets_there_all_the_same() -> None:
    """A state goes to a joiner beside rounds: they hardly notice, and if they never end it gets there as well."""

    async def main(with_joiner: bool) -> tuple[float, bool]:
        network = MemoryNetwork(random.Random(0), 0.001, 0.002)
        network.bytes_per_s["ann"] = 1e6

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(1 << 20))

        for peer in ("member", "joiner"):
            await network.transport(peer).serve("bulk", take)
        transport, uplink = network.transport("ann"), Uplink()

        async def send(peer: str, stage: Stage) -> None:
            await send_payload(await transport.open(peer, (), "bulk"), given(1 << 20), uplink, Rank(stage))

        joining = [asyncio.create_task(send("joiner", Stage.BACKGROUND))] if with_joiner else []
        # The rounds begin when it is in full swing.
        await asyncio.sleep(0.5)
        began = network.loop.time()
        for _ in range(20):
            with uplink.of_a_round():
                await send("member", Stage.SHARE)
        took_s = network.loop.time() - began
        there = [task.done() for task in joining]
        await asyncio.gather(*joining)
        return took_s, all(there)

    alone_s, _ = run_virtual(main(False))
    beside_s, is_there = run_virtual(main(True))
    assert beside_s <= 1.1 * alone_s
    assert is_there


def test_a_clock_that_a_receiver_makes_up_harms_its_own_transfer_only() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(0), 0.001, 0.002)
        stamps = iter([b"\0" * 7, STAMP.pack(float("nan")), STAMP.pack(1e300)])

        async def lie(stream: Stream) -> None:
            await stream.receive(1 << 20)
            await stream.send(next(stamps))
            await asyncio.sleep(1.0)

        await network.transport("liar").serve("bulk", lie)
        transport, uplink = network.transport("ann"), Uplink()
        for _ in range(2):
            with pytest.raises(ProtocolViolation):
                await send_payload(await transport.open("liar", (), "bulk"), given(100), uplink)
        await send_payload(await transport.open("liar", (), "bulk"), given(100), uplink)
        assert uplink.window("liar").under_way == 0

    run_virtual(main())


def test_those_who_are_woken_at_once_do_not_wake_themselves_for_ever() -> None:
    async def main() -> list[str]:
        uplink, order = Uplink(), list[str]()
        for peer in "abc":
            uplink.window(peer).sent(LEAST_FRAME_BYTES, 0.0)

        async def wait(peer: str, rank: int) -> None:
            await uplink.turn(uplink.window(peer), Rank(turn=rank))
            order.append(peer)
            uplink.window(peer).sent(uplink.window(peer).room, 0.0)
            uplink.look()

        async with asyncio.timeout(1.0), asyncio.TaskGroup() as tasks:
            for rank, peer in enumerate("cba"):
                tasks.create_task(wait(peer, rank))
            await asyncio.sleep(0.1)
            for peer in "abc":
                uplink.window(peer).acknowledged(LEAST_FRAME_BYTES, 0.0, 0.0)
                uplink.look()
        return order

    assert run_virtual(main()) == ["c", "b", "a"]


def test_what_is_still_sent_to_a_peer_that_is_gone_keeps_to_its_window_and_ends() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(0), 0.001, 0.002)

        async def ignore(stream: Stream) -> None:
            await asyncio.sleep(1e6)

        await network.transport("gone").serve("bulk", ignore)
        transport, uplink = network.transport("ann"), Uplink()
        sending = asyncio.create_task(send_payload(await transport.open("gone", (), "bulk"), given(1 << 20), uplink))
        await asyncio.sleep(1.0)
        uplink.forget("gone")
        await asyncio.sleep(1.0)
        with pytest.raises(Stalled):
            await sending

    run_virtual(main())
