"""A peer sends as fast as its own link carries, and knows the queue before it from the queue before another's."""

import asyncio
import random

import pytest
from virtual_clock import run_virtual

from peers.memory import MemoryNetwork
from peers.transport import Stream
from runtime.averaging.own_link import LEAST_GO_BYTES, LOOK_BYTES, OWN_QUEUE_S, OwnLink
from runtime.averaging.pacing import STAMP, Rank, Stage, Uplink, receive_payload, send_payload
from runtime.averaging.payload import Payload

TICK_S = 0.01


def carry(link: OwnLink, seconds: float, bytes_per_s: float, queued_s: dict[str, float], began: float) -> None:
    """Frames come to these peers, so much late, while the link is kept busy."""
    for tick in range(round(seconds / TICK_S)):
        now = began + tick * TICK_S
        link.busy_s(now)
        for peer, queue_s in queued_s.items():
            n_bytes = round(bytes_per_s * TICK_S / len(queued_s))
            link.sent(n_bytes, now)
            link.arrived(n_bytes, peer, queue_s, now)


def test_nothing_is_held_back_before_a_queue_was_seen() -> None:
    link = OwnLink()
    carry(link, 2.0, 6e6, {"ann": 0.0, "bob": OWN_QUEUE_S / 2}, 0.0)
    assert link.busy_s(2.0) <= 0


def test_a_queue_on_the_way_to_everyone_is_the_own_links_and_what_it_carried_is_its_rate() -> None:
    link = OwnLink()
    carry(link, 2.0, 6e6, {"ann": 2 * OWN_QUEUE_S, "bob": 5 * OWN_QUEUE_S}, 0.0)
    assert link.bytes_per_s == pytest.approx(6e6, rel=0.1)


def test_a_queue_before_one_other_is_not_the_own_links() -> None:
    link = OwnLink()
    carry(link, 2.0, 6e6, {"ann": 0.0, "bob": 5 * OWN_QUEUE_S}, 0.0)
    assert link.busy_s(2.0) <= 0


def test_a_trickle_to_a_slow_one_says_nothing_of_the_own_link() -> None:
    link = OwnLink()
    carry(link, 2.0, 6e6, {"ann": 2 * OWN_QUEUE_S, "bob": 2 * OWN_QUEUE_S}, 0.0)
    carry(link, 10.0, 6e5, {"bob": 5 * OWN_QUEUE_S}, 2.0)
    assert link.bytes_per_s > 5e6


def test_a_link_that_has_become_faster_is_found_out_and_a_pause_is_no_measure() -> None:
    link = OwnLink()
    carry(link, 2.0, 6e6, {"ann": 2 * OWN_QUEUE_S, "bob": 2 * OWN_QUEUE_S}, 0.0)
    for tick in range(10_000):
        # For a third of each second it has nothing to send.
        now = 2.0 + tick * 0.001
        while tick % 1000 < 667 and link.busy_s(now) <= 0:
            link.sent(LEAST_GO_BYTES, now)
            link.arrived(LEAST_GO_BYTES, ("ann", "bob")[tick % 2], 0.0, now)
    assert link.bytes_per_s > 1.2e7


def test_on_a_slow_link_a_go_is_still_a_frame() -> None:
    link = OwnLink()
    carry(link, 10.0, 1e5, {"ann": 1.0, "bob": 1.0}, 0.0)
    assert link.go_bytes == LEAST_GO_BYTES


def test_a_receiver_that_makes_its_clock_up_does_not_stop_the_measuring() -> None:
    async def main() -> OwnLink:
        network, uplink = MemoryNetwork(random.Random(0), 0.001, 0.002), Uplink()

        async def lie(stream: Stream) -> None:
            for stamp in (-1e308, *[1e308] * 1000):
                await stream.receive(LOOK_BYTES)
                await stream.send(STAMP.pack(stamp))

        await network.transport("liar").serve("bulk", lie)
        stream = await network.transport("ann").open("liar", (), "bulk")
        await send_payload(stream, Payload.of(memoryview(bytes(2 * LOOK_BYTES))), uplink)
        carry(uplink.own, 2.0, 6e6, {"bob": 2 * OWN_QUEUE_S, "cat": 2 * OWN_QUEUE_S}, network.loop.time())
        return uplink.own

    assert run_virtual(main()).bytes_per_s == pytest.approx(6e6, rel=0.1)


def test_links_are_full_while_everyone_sends_to_everyone() -> None:
    """Shares and results of four peers on 50 Mbit/s each: the third round takes little more than it must."""
    n_bytes, rate = 1 << 20, 6.25e6

    async def main() -> float:
        network, uplinks = MemoryNetwork(random.Random(0), 0.001, 0.002), [Uplink() for _ in range(4)]
        transports = [network.transport(str(peer)) for peer in range(4)]
        network.bytes_per_s = {str(peer): rate for peer in range(4)}

        async def take(stream: Stream) -> None:
            await receive_payload(stream, Payload(n_bytes))

        for transport in transports:
            await transport.serve("bulk", take)

        async def send(peer: int, turn: int, stage: Stage) -> None:
            to = str((peer + turn) % 4)
            payload = Payload.of(memoryview(bytes(n_bytes)))
            stream = await transports[peer].open(to, (), "bulk")
            await send_payload(stream, payload, uplinks[peer], Rank(stage, turn=turn), in_turns=True)

        for _ in range(3):
            began = network.loop.time()
            async with asyncio.TaskGroup() as tasks:
                for peer in range(4):
                    for turn in (1, 2, 3):
                        for stage in (Stage.SHARE, Stage.RESULT):
                            tasks.create_task(send(peer, turn, stage))
        return network.loop.time() - began

    assert run_virtual(main()) < 1.1 * 6 * n_bytes / rate
