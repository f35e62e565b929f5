"""What a peer can do to others on the streams that carry bulk, and what it gets for it: a strike that says why."""

import asyncio
import hashlib
import random
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lone_round import plan_of
from round_table import N_ELEMENTS
from virtual_clock import run_virtual

from peers.errors import PeerError
from peers.memory import MemoryNetwork, MemoryTransport
from peers.transport import Stream
from runtime.averaging import events
from runtime.averaging.codecs.base import encode_vector
from runtime.averaging.codecs.registry import CODECS
from runtime.averaging.exchange import Exchange
from runtime.averaging.messages import MemberEntry
from runtime.averaging.pacing import STALL_S, STAMP
from runtime.averaging.reduce import header
from runtime.averaging.results import Results
from runtime.averaging.transfer import (
    ANSWER_S,
    HEADER,
    MOST_STREAMS_PER_PEER,
    PIECE_PROTOCOL,
    PUSH_PROTOCOL,
    Kind,
    Push,
)

ME, HOSTILE, HONEST = PEERS = ["peer-a", "peer-b", "peer-c"]
PLAN = plan_of(ME, PEERS)
SHARD = PLAN.reducers.index(0)
THEIRS = PLAN.reducers.index(1)
INT8 = CODECS["int8"]


def elements(shard: int) -> int:
    return PLAN.bounds[shard + 1] - PLAN.bounds[shard]


def share(shard: int = SHARD) -> bytes:
    return bytes(encode_vector(INT8, torch.ones(elements(shard))))


class Scene:
    """A peer that follows the plan, one that follows no rules, and one that does."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(random.Random(0), 0.001, 0.002)
        self.strikes: list[tuple[str, str]] = []
        self.heard: list[events.Event] = []
        self.results = Results(ME, 1)
        self.results.own_P = torch.ones(N_ELEMENTS)
        self._tasks: list[asyncio.Task[None]] = []
        self.exchange = Exchange(
            self.network.transport(ME),
            self.results,
            self.heard.append,
            self._spawn,
            lambda peer, reason: self.strikes.append((peer, reason)),
            lambda event, **fields: None,
            lambda peer, reason: self.strikes.append((peer, reason)),
        )
        self.hostile, self.honest = (self._mute(peer) for peer in (HOSTILE, HONEST))

    async def begin(self, plan: Any = PLAN) -> None:
        await self.exchange.transfers.serve()
        self.exchange.follow(plan)
        self.exchange.collect(SHARD)

    def _mute(self, peer: str) -> MemoryTransport:
        transport = self.network.transport(peer)

        async def ignore(stream: Stream) -> None:
            await asyncio.sleep(1e6)

        transport.handlers[PUSH_PROTOCOL] = ignore
        return transport

    def _spawn(self, work: Coroutine[Any, Any, None], peer: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def push(self, *frames: bytes, by: str = HOSTILE, stays: bool = False, **changes: Any) -> Stream:
        push = replace(Push(Kind.CONTRIBUTION, PLAN.plan_id, SHARD, len(share())), **changes)
        transport = self.hostile if by == HOSTILE else self.honest
        stream = await transport.open(ME, (), PUSH_PROTOCOL)
        await stream.send(HEADER.encode(push))
        for frame in frames:
            await stream.send(frame)
        if not stays:
            await asyncio.sleep(0.1)
            stream.close()
        return stream

    def why(self, peer: str = HOSTILE) -> list[str]:
        return [reason for who, reason in self.strikes if who == peer]


def nan_scale(data: bytes) -> bytes:
    broken = bytearray(data)
    np.frombuffer(broken, np.float32, 1)[0] = np.nan
    return bytes(broken)


Attack = Callable[[Scene], Awaitable[object]]
ATTACKS: dict[str, tuple[Attack, str]] = {
    "announces more": (lambda scene: scene.push(n_bytes=1 << 60), f"bytes where {len(share())} were due"),
    "announces less": (lambda scene: scene.push(n_bytes=1), f"announces 1 bytes where {len(share())} were due"),
    "sends more than announced": (lambda scene: scene.push(share() + b"!"), "limit is"),
    "sends nothing in a frame": (lambda scene: scene.push(b""), "an empty frame"),
    "a scale that is no number": (lambda scene: scene.push(nan_scale(share())), "a scale is not a number"),
    "a shard that is not there": (lambda scene: scene.push(share(), shard=3), "no such shard"),
    "a kind that is not there": (lambda scene: scene.push(share(), kind=7), "unknown kind of transfer 7"),
    "a result of nobody": (
        lambda scene: scene.push(
            bytes(32) + share(THEIRS), kind=Kind.RESULT, shard=THEIRS, n_bytes=32 + len(share(THEIRS))
        ),
        "contributors that are not among 3 members",
    ),
    "a result with a scale that is no number": (
        lambda scene: scene.push(
            header((0, 1, 2)) + nan_scale(share(THEIRS)),
            kind=Kind.RESULT,
            shard=THEIRS,
            n_bytes=32 + len(share(THEIRS)),
        ),
        "a scale is not a number",
    ),
}


@pytest.mark.parametrize(("attack", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_what_no_correct_peer_sends_is_a_strike_and_harms_no_shard(attack: Attack, reason: str) -> None:
    async def main() -> Scene:
        scene = Scene()
        await scene.begin()
        await attack(scene)
        assert [why for why in scene.why() if reason in why], scene.strikes
        # Then both send what is due, and the shard is made of all three.
        await scene.push(share(), stays=True)
        await scene.push(share(), by=HONEST, stays=True)
        await asyncio.sleep(0.5)
        return scene

    scene = run_virtual(main())
    assert scene.results.result(SHARD, scene.results.reduce(SHARD, (0, 1, 2))).contributors == (0, 1, 2)
    assert not scene.why(HONEST)


def test_the_same_share_again_changes_nothing_and_is_in_the_end_a_strike() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.begin()
        await scene.push(share())
        for _ in range(3):
            await scene.push(share())
        assert not scene.strikes, "an honest peer that was cut off may not know that it has come"
        await scene.push(share())
        assert scene.why() == [f"sends shard {SHARD} again and again"]
        arrived = [event for event in scene.heard if isinstance(event, events.ContributionArrived)]
        assert len(arrived) == 1

    run_virtual(main())


def test_who_announces_a_share_and_sends_nothing_is_told_of_and_its_place_is_free_again() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.begin()
        await scene.push(share()[:100], stays=True)
        await asyncio.sleep(STALL_S - 1.0)
        assert not scene.strikes
        await asyncio.sleep(2.0)
        assert scene.why() == [f"100 bytes came in {STALL_S:.0f} s of its share of shard {SHARD}"]
        assert scene.results.lacks(HOSTILE, Kind.CONTRIBUTION, SHARD)

    run_virtual(main())


@pytest.mark.parametrize(
    ("linked", "was_lost"),
    [((HOSTILE, HONEST), False), ((HOSTILE, HONEST), True), ((HONEST,), True)],
    ids=["linked", "its link is back", "its link has ended"],
)
def test_who_sends_nothing_of_its_share_is_struck_where_it_could_have(linked: tuple[str, ...], was_lost: bool) -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.begin()
        await scene.push(share(), by=HONEST)
        if was_lost:
            scene.exchange.lost(HOSTILE)
        scene.exchange.miss(SHARD, (PLAN.peers.index(ME), PLAN.peers.index(HONEST)), linked)
        scene.exchange.follow(replace(PLAN, lineage=bytes(31) + b"x"))
        assert scene.why() == ([] if was_lost else [f"nothing came of its share of shard {SHARD}"])

    run_virtual(scenario())


def test_who_trains_nothing_has_no_share() -> None:
    members = tuple(MemberEntry(entry.peer, 0, None, entry.peer != HOSTILE) for entry in PLAN.members)
    plan = replace(PLAN, members=members)

    async def main() -> None:
        scene = Scene()
        await scene.begin(plan)
        await scene.push(share(), plan_id=plan.plan_id)
        assert scene.why() == ["sends a share and trains nothing"]

    run_virtual(main())


def test_streams_beyond_their_number_are_refused_and_cost_no_memory() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.begin()
        for _ in range(MOST_STREAMS_PER_PEER + 1):
            try:
                await scene.push(stays=True, plan_id=bytes(32))
            except PeerError:
                break
        await asyncio.sleep(0.1)
        assert scene.why() == [f"more than {MOST_STREAMS_PER_PEER} streams at once"]
        await scene.push(share(), by=HONEST, stays=True)
        await asyncio.sleep(0.5)
        assert any(isinstance(event, events.ContributionArrived) for event in scene.heard)

    run_virtual(main())


def test_whoever_gives_another_result_than_it_was_asked_for_is_struck_and_the_next_is_asked() -> None:
    good, bad = (
        header((0, 1, 2)) + bytes(encode_vector(INT8, torch.full((elements(THEIRS),), of))) for of in (1.0, 2.0)
    )

    def giving(data: bytes) -> Callable[[Stream], Coroutine[Any, Any, None]]:
        async def give(stream: Stream) -> None:
            await stream.receive(32)
            await stream.send(struct.pack("!Q", len(data)))
            await stream.send(data)
            await asyncio.sleep(1.0)

        return give

    async def main() -> None:
        scene = Scene()
        await scene.begin()
        scene.hostile.handlers[PIECE_PROTOCOL], scene.honest.handlers[PIECE_PROTOCOL] = giving(bad), giving(good)
        digest = hashlib.sha256(b"atoll shard result" + good).digest()
        await scene.exchange.fetch(events.Fetch(PLAN, THEIRS, digest, (HOSTILE, HONEST)))
        assert scene.why() == [f"sends another result of shard {THEIRS} than it was asked for"]
        assert events.ResultReady(PLAN.plan_id, THEIRS, None, digest) in scene.heard

    run_virtual(main())


@pytest.mark.parametrize("protocol", [PUSH_PROTOCOL, PIECE_PROTOCOL])
def test_streams_on_which_nothing_is_said_are_not_kept(protocol: str) -> None:
    async def main() -> None:
        scene = Scene()
        await scene.begin()
        for _ in range(MOST_STREAMS_PER_PEER):
            await scene.hostile.open(ME, (), protocol)
        await asyncio.sleep(ANSWER_S + 1.0)
        await scene.push(share(), stays=True)
        await asyncio.sleep(0.5)
        assert scene.why() == []
        assert any(isinstance(event, events.ContributionArrived) for event in scene.heard)

    run_virtual(main())


def test_whoever_acknowledges_at_no_time_is_struck() -> None:
    """By that time the sender judges the path."""

    async def main() -> None:
        scene = Scene()
        await scene.begin()

        async def acknowledge(stream: Stream) -> None:
            await stream.send(STAMP.pack(float("nan")))
            await asyncio.sleep(1e6)

        scene.hostile.handlers[PUSH_PROTOCOL] = acknowledge
        scene.exchange.send_contribution(PLAN, THEIRS, HOSTILE)
        await asyncio.sleep(5.0)
        assert scene.why() == ["an acknowledgement of nothing"]

    run_virtual(main())
