"""Getting the state of members that are ahead: at a peer's start, when it is left behind, and at the end of a fork."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from peers.errors import PeerError, ProtocolViolation
from peers.messages import Role, Status
from runtime.averaging.statesync import Claim, Refuted, State, StateSync

RETRY_S = 1.0


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
    """Finds the state to go on from among the members. One at a time."""

    def __init__(self, sync: StateSync, report: Callable[..., None]) -> None:
        self._sync, self._report = sync, report
        self._shown_at = 0.0

    async def attempt(
        self, donor: str, claimed: Status, own: Claim | None, peers: dict[str, Status]
    ) -> Joined | NotJoined:
        """The donor's state, if the others confirm it.

        Args:
            own: this peer's state, None if it has only fresh weights of the run and nobody's to compare with.
            peers: everyone linked, witnesses of what has been committed.
        """
        self._shown_at = asyncio.get_running_loop().time()
        if own is not None and (own.outer_step, own.lineage) == (claimed.outer_step, claimed.lineage):
            return Joined(donor, None)
        witnesses = sorted(peer for peer, status in peers.items() if status.role == Role.MEMBER or status.tokens)
        try:
            state = await self._sync.download(donor, witnesses, own, self._show_progress)
            if own is None or not own.tokens:
                return Joined(donor, state)
            past = await self._sync.ask(donor, own.outer_step)
            return Joined(donor, state, None if past is None else past.lineage != own.lineage)
        except PeerError as error:
            self._report("join_failed", member=error.peer, reason=error.reason)
            if not isinstance(error, Refuted):
                await asyncio.sleep(RETRY_S)
            return NotJoined(donor, isinstance(error, ProtocolViolation))

    def _show_progress(self, done_bytes: int, all_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        if done_bytes == all_bytes:
            self._report("state_downloaded", bytes=all_bytes)
        elif now >= self._shown_at + 1.0:
            self._shown_at = now
            self._report("state_downloading", bytes=done_bytes, of_bytes=all_bytes)
