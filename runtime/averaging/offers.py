"""What this peer has of the run's state for others to fetch: states of single moments, and what it fetches itself.

All pieces are named by their digest, and by nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from runtime.averaging.claims import Claim
from runtime.pieces import PieceList, views

# A joiner that was killed has so long to come back for the rest.
IDLE_S = 60.0
# From a state further back catching up costs as much as fetching another: a step's results are a byte a parameter.
MOST_BEHIND = 8
# Eight bytes a parameter each: one that is being fetched, and a newer one.
MOST_SNAPSHOTS = 2


@dataclass(frozen=True)
class Snapshot:
    """A state that does not change any more."""

    claim: Claim
    pieces: PieceList
    by_digest: Mapping[bytes, memoryview]


def snapshot_of(claim: Claim, pieces: PieceList, anchor_P: Tensor, momentum_P: Tensor) -> Snapshot:
    """Args: the vectors, float32 (P,) on the CPU, are not written to any more."""
    both = (*zip(pieces.anchor, views(anchor_P), strict=True), *zip(pieces.momentum, views(momentum_P), strict=True))
    return Snapshot(claim, pieces, dict(both))


class Offers:
    """The same state for all who join at about the same time, so that what one has fetched is good for the others.

    Times are loop time in seconds.

    Args:
        present: the claim for the present state, None while there is none; ``take`` copies it.
        replayable: whether all that was committed since an outer step can be had from this peer, and is not much.
    """

    def __init__(
        self,
        present: Callable[[], Claim | None],
        take: Callable[[], Awaitable[Snapshot]],
        replayable: Callable[[int], bool],
    ) -> None:
        self.fetched: dict[bytes, memoryview] = {}
        """Pieces of the state that this peer is fetching."""
        self.present, self._take, self._replayable = present, take, replayable
        self._snapshots: dict[bytes, tuple[Snapshot, float]] = {}
        """By the state's digest, and when anybody last fetched of it."""
        self._offering = asyncio.Lock()

    async def offer(self, least_tokens: int, now: float) -> Snapshot | None:
        """What a joiner is to fetch: a state that others fetch already where that will do, or else the present one."""
        # Whoever asks while it is copied waits for the same copy.
        async with self._offering:
            self.trim(now)
            fitting = [
                snapshot
                for snapshot, _ in self._snapshots.values()
                if snapshot.claim.tokens >= least_tokens and self._replayable(snapshot.claim.outer_step)
            ]
            present = self.present()
            if fitting:
                chosen = max(fitting, key=lambda snapshot: snapshot.claim.position)
            elif present is None:
                return None
            else:
                known = self._snapshots.get(present.state)
                chosen = known[0] if known else await self._take()
            self.add(chosen, now)
            return chosen

    def add(self, snapshot: Snapshot, now: float) -> None:
        state = snapshot.claim.state
        others = sorted((used_at, other) for other, (_, used_at) in self._snapshots.items() if other != state)
        for _, least_used in others[: max(0, len(others) + 1 - MOST_SNAPSHOTS)]:
            del self._snapshots[least_used]
        self._snapshots[state] = snapshot, now

    def trim(self, now: float) -> None:
        """Let go of what nobody fetches any more."""
        self._snapshots = {state: known for state, known in self._snapshots.items() if now <= known[1] + IDLE_S}

    def only(self, lineage: bytes) -> None:
        """This peer has gone over to the state with this lineage."""
        for state, (snapshot, _) in list(self._snapshots.items()):
            if snapshot.claim.lineage != lineage:
                del self._snapshots[state]

    def used_since(self, at: float) -> bool:
        return any(used_at >= at for _, used_at in self._snapshots.values())

    def list_of(self, state: bytes) -> PieceList | None:
        return self._snapshots[state][0].pieces if state in self._snapshots else None

    def piece(self, digest: bytes, now: float) -> memoryview | None:
        for state, (snapshot, _) in self._snapshots.items():
            if digest in snapshot.by_digest:
                self._snapshots[state] = snapshot, now
                return snapshot.by_digest[digest]
        return self.fetched.get(digest)
