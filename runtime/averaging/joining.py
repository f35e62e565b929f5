"""Getting the state of members that are ahead: at a peer's start, when it is left behind, and at the end of a fork."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from peers.errors import PeerError, ProtocolViolation
from peers.messages import Status
from peers.transport import Transport
from runtime.averaging.claims import Claim
from runtime.averaging.download import Partial
from runtime.averaging.offers import MOST_BEHIND, Offers
from runtime.averaging.own_state import OwnState
from runtime.averaging.results import Results
from runtime.averaging.roster import Roster
from runtime.averaging.statesync import StateSync
from runtime.averaging.transfer import Transfers
from runtime.state import State

RETRY_S = 1.0
# A peer that came back to members who have all gone since waits so long for another.
ALONE_S = 5.0


@dataclass(frozen=True)
class Joined:
    """A member's state is here, or (``state`` None) this peer's own was found to be the run's.

    ``forked`` says whether this peer's own state is not in the past of that state, None if nobody knows.
    """

    donor: str
    state: State | None
    forked: bool | None = False


@dataclass(frozen=True)
class NotJoined:
    """The donor is gone, or nobody confirms what it says."""

    donor: str
    refuted: bool


class Joining:
    """Finds the state to go on from among the members, one at a time.

    ``active`` while an attempt is under way, until whoever was told its outcome has dealt with it.

    Args:
        results: of the last committed steps, by which others catch up.
        transfers: of the rounds, by whose link states go as well.
        partial: keeps what has come of a state whose download is interrupted.
        members: the linked peers of the run with their last status.
        ended: called with the outcome of an attempt.
    """

    def __init__(
        self,
        transport: Transport,
        n_elements: int,
        own: OwnState,
        results: Results,
        transfers: Transfers,
        partial: Partial,
        members: Callable[[], dict[str, Status]],
        roster: Roster,
        ended: Callable[[Joined | NotJoined], None],
        strike: Callable[[str, str], None],
        report: Callable[..., None],
    ) -> None:
        self.active = False
        self.offers = Offers(own.standing, own.snapshot, self._replayable)
        self._sync = StateSync(
            transport, n_elements, self.offers, own.claims, transfers.uplink, partial, strike, transfers.came
        )
        self._own, self._results, self._members, self._roster = own, results, members, roster
        self._peer, self._ended, self._report = transport.peer, ended, report
        self._member_seen_at = asyncio.get_running_loop().time()
        self._shown = 0.0, 0
        """When progress was last told, and how many bytes were here then."""

    @property
    def bytes_sent(self) -> int:
        """Of states, to others."""
        return self._sync.bytes_sent

    @property
    def serving(self) -> bool:
        """Whether somebody is fetching this peer's state."""
        return self._sync.serving

    async def serve(self) -> None:
        await self._sync.serve()

    def _replayable(self, outer_step: int) -> bool:
        near = self._own.outer_step - outer_step <= MOST_BEHIND
        return near and self._results.keeps_since(outer_step, self._own.outer_step)

    def sees_member(self) -> bool:
        """Whether anyone with a state of the run is linked; it remembers when that was so last."""
        seen = any(status.is_member for status in self._members().values())
        if seen:
            self._member_seen_at = asyncio.get_running_loop().time()
        return seen

    def next_attempt(self) -> Coroutine[Any, Any, None] | None:
        """What gets the state of the furthest member, None if there is nothing to get or an attempt is under way."""
        if self.active:
            return None
        own = self._own.claim() if self._own.established or self._own.tokens else None
        ahead = self._roster.ahead(own.position if own else (-1, 0, b""))
        members = self._members()
        if ahead and ahead[0] in members:
            self.active = True
            return self._attempt(ahead[0], members[ahead[0]], own, members)
        if self._own.established or (own and (self.sees_member() or self._may_go_on_alone(own))):
            # Nobody is ahead: those who are here go on from this peer's state, or it from its own.
            self.active = True
            self._ended(Joined(self._peer, None))
        return None

    def _may_go_on_alone(self, own: Claim) -> bool:
        """Whether every member is gone that this peer came back to, and nobody who came back has a heavier state."""
        alone_s = asyncio.get_running_loop().time() - self._member_seen_at
        return alone_s > ALONE_S and all(status.position <= own.position for status in self._members().values())

    async def _attempt(self, donor: str, claimed: Status, own: Claim | None, peers: dict[str, Status]) -> None:
        if own is not None and not self._own.established and await self._is_past(own, donor, claimed, peers):
            self._ended(Joined(donor, None))
        else:
            self._ended(await self._fetch(donor, claimed, own or self._own.claim(), peers))

    async def _is_past(self, own: Claim, donor: str, claimed: Status, peers: dict[str, Status]) -> bool:
        """Whether a state from this peer's disk is one that the others had not long ago: commits are less than a state.

        If they are not kept any more, the next attempt is that of an established peer.
        """
        near = 0 < claimed.outer_step - own.outer_step <= MOST_BEHIND
        return near and own in await self._sync.past((donor, *_alike(peers, claimed)), own.outer_step)

    async def _fetch(
        self, donor: str, claimed: Status, own: Claim | None, peers: dict[str, Status]
    ) -> Joined | NotJoined:
        """The donor's state, if the others confirm it.

        Args:
            own: this peer's state, None if it has only fresh weights of the run and nobody's to compare with.
            peers: everyone linked, witnesses of what has been committed.
        """
        self._shown = asyncio.get_running_loop().time(), 0
        if own is not None and (own.outer_step, own.lineage) == (claimed.outer_step, claimed.lineage):
            return Joined(donor, None)
        witnesses = sorted(peer for peer, status in peers.items() if status.is_member or status.tokens)
        try:
            state = await self._sync.download(donor, witnesses, own, lambda: list(self._members()), self._show_progress)
            if own is None or not own.tokens:
                return Joined(donor, state)
            known = await self._sync.past((donor, *_alike(peers, claimed)), own.outer_step)
            return Joined(donor, state, own.lineage not in {claim.lineage for claim in known} if known else None)
        except PeerError as error:
            self._report("join_failed", member=error.peer, reason=error.reason)
            await asyncio.sleep(RETRY_S)
            return NotJoined(donor, isinstance(error, ProtocolViolation))

    def _show_progress(self, done_bytes: int, all_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        if done_bytes == all_bytes:
            self._report("state_downloaded", bytes=all_bytes, received_bytes=self._sync.received_bytes)
            return
        at, before_bytes = self._shown
        if now >= at + 1.0:
            self._shown = now, done_bytes
            rate = max(1, round((done_bytes - before_bytes) / (now - at)))
            left_s = round((all_bytes - done_bytes) / rate, 1)
            self._report(
                "state_downloading", bytes=done_bytes, of_bytes=all_bytes, bytes_per_s=rate, seconds_left=left_s
            )


def _alike(peers: dict[str, Status], claimed: Status) -> list[str]:
    """Those of the donor's history, and as far: it may have come later than they, and not know what was before."""
    return sorted(
        peer
        for peer, status in peers.items()
        if (status.outer_step, status.lineage) == (claimed.outer_step, claimed.lineage)
    )
