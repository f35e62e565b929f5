"""Shares and results in and out: what the round wants sent or fetched, and what comes, between buffers and streams.

All of it overlaps, chunk by chunk: a share is encoded as it is sent; a reducer adds what has come of all members and
sends the mean on while the rest is still under way; a result is decoded as it comes.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from peers.errors import PeerError, ProtocolViolation
from peers.transport import Transport
from runtime.averaging import events
from runtime.averaging.messages import Descriptor
from runtime.averaging.pacing import Rank, Stage
from runtime.averaging.payload import Dropped, Payload
from runtime.averaging.results import Result, Results
from runtime.averaging.transfer import Kind, Transfers

# Beyond this nobody has been cut off that often within a round.
MOST_AGAIN = 3


class Exchange:
    """Carries the bulk of one peer's rounds.

    Args:
        happened: called with what is to be told to the round.
        spawn: runs a coroutine beside the rounds until it ends or a peer is lost.
        report: called with an event's name and fields, for the log.
        silent: as ``Transfers`` has it.
    """

    def __init__(
        self,
        transport: Transport,
        results: Results,
        happened: Callable[[events.Event], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
        strike: Callable[[str, str], None],
        report: Callable[..., None],
        silent: Callable[[str, str], None],
    ) -> None:
        self.transfers = Transfers(transport, self._room, self._on_grown, results.piece, strike, silent)
        self._peer, self._results = transport.peer, results
        self._happened, self._spawn, self._report = happened, spawn, report
        self._strike, self._silent = strike, silent
        self._descriptor: Descriptor | None = None
        self._incoming: dict[tuple[str, Kind, int], Payload] = {}
        self._again: Counter[tuple[str, Kind, int]] = Counter()
        self._pushed: dict[tuple[str, int], Result] = {}
        """By peer and shard, the result that was or is being sent."""
        self._failed: Counter[tuple[str, int]] = Counter()
        """By peer and shard, how often that came to nothing."""
        self._cut_off: set[str] = set()
        """Those whose link has ended since the plan is followed: what they had to send may have died with them."""
        self._owing: dict[str, int] = {}
        """Those of whose share nothing had come when its shard was reduced."""
        self._followed_at = 0.0

    def follow(self, descriptor: Descriptor) -> None:
        """Take what belongs to this descriptor's plan from now on."""
        if not self._results.follows(descriptor.plan_id):
            self._incoming, self._pushed, self._again, self._failed = {}, {}, Counter(), Counter()
            self._blame()
            self._cut_off = set()
            self._followed_at = asyncio.get_running_loop().time()
        self._descriptor = descriptor
        self._results.follow(descriptor)
        self.transfers.follow(descriptor.plan_id)

    def send_contribution(self, descriptor: Descriptor, shard: int, to: str) -> None:
        self._spawn(self._push(to, Kind.CONTRIBUTION, descriptor, shard, self._results.own_share(shard)), to)

    def miss(self, shard: int, contributors: tuple[int, ...], linked: Collection[str]) -> None:
        """A shard is reduced without some: who has begun to send by the next plan is slow, whoever has not is mute.

        Whose link has ended could not send, and the process that is back may not have what it had: that is no offence.
        """
        silent = self._results.silent(shard, contributors)
        self._owing |= {peer: shard for peer in silent if peer in linked and peer not in self._cut_off}

    def _blame(self) -> None:
        for peer, shard in self._owing.items():
            if self.transfers.pushed_at.get(peer, -math.inf) < self._followed_at:
                self._silent(peer, f"nothing came of its share of shard {shard}")
        self._owing = {}

    def collect(self, shard: int) -> None:
        """Reduce a shard as its shares come."""
        self._results.collect(shard)
        self._advance(shard)

    def send_result(self, descriptor: Descriptor, shard: int, result: Result, to: tuple[str, ...]) -> None:
        """To those to whom it is not being sent already, as it was made."""
        for peer in to:
            if self._pushed.get((peer, shard)) is not result:
                self._pushed[peer, shard] = result
                self._spawn(self._push(peer, Kind.RESULT, descriptor, shard, result), peer)

    def lost(self, peer: str) -> None:
        """The peer is gone: if it comes back it may need again what was sent to it."""
        self.transfers.lost(peer)
        self._cut_off.add(peer)
        self._owing.pop(peer, None)
        self._pushed = {known: result for known, result in self._pushed.items() if known[0] != peer}

    async def _push(self, to: str, kind: Kind, descriptor: Descriptor, shard: int, payload: Payload) -> None:
        try:
            # All shares first, to one neighbour after the other, a little at a time, then results in the same way.
            stage = Stage.SHARE if kind is Kind.CONTRIBUTION else Stage.RESULT
            rank = Rank(stage, turn=descriptor.turn(self._peer, to))
            # Whoever reduces nothing has a slow link: the sooner one shard's first chunk is whole, the sooner results
            # come over the other half of it.
            in_turns = descriptor.peers.index(self._peer) in descriptor.reducers
            await self.transfers.push(to, kind, descriptor.plan_id, shard, payload, rank, in_turns)
        except Dropped:
            return
        except ProtocolViolation as error:
            self._strike(to, error.reason)
        except PeerError as error:
            # If the peer is gone, its control streams say so; if not, the round's deadlines do.
            self._report("transfer_failed", member=to, shard=shard, reason=error.reason)
            self._failed[to, shard] += 1
            if (
                kind is Kind.RESULT
                and self._failed[to, shard] <= MOST_AGAIN
                and self._pushed.get((to, shard)) is payload
            ):
                del self._pushed[to, shard]

    async def fetch(self, wanted: events.Fetch) -> None:
        """Get a result from the first of its sources that has it, and tell how that went."""
        plan_id, shard = wanted.descriptor.plan_id, wanted.shard
        for source in wanted.sources:
            if not self._results.follows(plan_id):
                break
            result = self._results.result_from(shard)
            try:
                await self.transfers.fetch(source, wanted.digest, result)
                if result.digest != wanted.digest:
                    raise ProtocolViolation(source, f"sends another result of shard {shard} than it was asked for")
            except ProtocolViolation as error:
                self._strike(source, error.reason)
                result.drop()
                continue
            except (PeerError, TimeoutError):
                result.drop()
                continue
            except Dropped:
                break
            # The plan may have changed meanwhile.
            if not self._results.follows(plan_id):
                break
            self._results.hold(shard, result, None)
            self._happened(events.ResultReady(plan_id, shard, None, wanted.digest))
            return
        self._happened(events.FetchFailed(plan_id, shard, wanted.digest))

    def _room(self, sender: str, kind: Kind, plan_id: bytes, shard: int) -> Payload | None:
        if not self._results.follows(plan_id):
            return None
        if not self._results.lacks(sender, kind, shard):
            # Whoever was cut off sends once more what it does not know to have come.
            self._again[sender, kind, shard] += 1
            if self._again[sender, kind, shard] > MOST_AGAIN:
                raise ProtocolViolation(sender, f"sends shard {shard} again and again")
            return None
        if known := self._incoming.get((sender, kind, shard)):
            # The sender begins again: what it broke off is not completed any more.
            known.drop()
        if kind is Kind.CONTRIBUTION:
            payload: Payload = self._results.share_from(sender, shard)
        else:
            payload = self._results.result_from(shard)
        self._incoming[sender, kind, shard] = payload
        return payload

    def _on_grown(self, sender: str, kind: Kind, plan_id: bytes, shard: int, payload: Payload) -> None:
        if not self._results.follows(plan_id):
            payload.drop()
        elif isinstance(payload, Result):
            if payload.complete:
                digest = self._results.hold(shard, payload, sender)
                self._happened(events.ResultReady(plan_id, shard, sender, digest))
        else:
            self._advance(shard)
            if payload.complete:
                self._happened(events.ContributionArrived(plan_id, shard, sender))

    def _advance(self, shard: int) -> None:
        """Reduce what has come, and once there is some of the result send it on as more of it is made."""
        result, descriptor = self._results.advance(shard), self._descriptor
        if result is not None and descriptor is not None:
            # Who was cut off and is back is sent the whole when it is made.
            there = tuple(one for one in descriptor.peers if one != self._peer and one not in self._cut_off)
            self.send_result(descriptor, shard, result, there)
