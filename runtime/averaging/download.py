"""Fetching a state from many at once: members that offer it, and others that are fetching it too.

Which piece next: the one that fewest of those who are still fetching have, since they pass on what they have; of equals
each peer begins elsewhere. Each piece is checked as it comes. Whoever sends a wrong one is blamed and not asked again,
and a piece that broke off is fetched from another; what is here is never fetched again, nor after a restart.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from peers.errors import PeerError, ProtocolViolation, StreamClosed
from runtime.averaging.payload import Payload
from runtime.pieces import PieceList, views

# From one source at a time: the next is asked for while one is on its way.
STREAMS = 3
# How often others who are fetching are asked what they have.
ASK_S = 0.5
LEAST_LOOK_S, MOST_LOOK_S = 3.0, 30.0
# Who did not have a piece, or was cut off, is left alone for so long.
REST_S = 1.0
# A piece that takes so long, or three times as long as others, hangs.
LEAST_HANG_S = 1.0


def look_s(took_s: float) -> float:
    """How long one looks for who has the rest, when what is here took so long; then another state is fetched."""
    return min(max(took_s, LEAST_LOOK_S), MOST_LOOK_S)


class Partial(Protocol):
    """Where pieces outlive the process: a folder."""

    def recall(self, digest: bytes) -> bytes | None:
        """What was kept under this name; whoever asks checks it."""

    def keep(self, digest: bytes, piece: bytes) -> None: ...

    def only(self, digests: Collection[bytes]) -> None:
        """Let go of all others."""

    def clear(self) -> None: ...


class Forgetful:
    """Keeps nothing."""

    def recall(self, digest: bytes) -> None: ...

    def keep(self, digest: bytes, piece: bytes) -> None: ...

    def only(self, digests: Collection[bytes]) -> None: ...

    def clear(self) -> None: ...


class Sources(Protocol):
    def members(self) -> Sequence[str]:
        """Those who offer all of it, as far as they are still there."""

    def joiners(self) -> Sequence[str]:
        """Those who may be fetching it too."""

    async def haves(self, joiner: str) -> frozenset[int]:
        """Which pieces one of them has, by their place in ``PieceList.distinct``. Raises: PeerError, TimeoutError."""

    def fetch(self, source: str, digest: bytes, into: Payload) -> Awaitable[None]:
        """Raises: PeerError, TimeoutError."""


class Download:
    """One state, into two vectors.

    Args:
        salt: another for each peer, so that they begin with other pieces.
        have: filled with what is here, by digest, as others may fetch it from this peer.
        progress: called with bytes done and bytes in all.
    """

    def __init__(
        self,
        pieces: PieceList,
        n_elements: int,
        salt: str,
        sources: Sources,
        partial: Partial,
        have: dict[bytes, memoryview],
        strike: Callable[[str, str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._pieces, self._sources, self._partial, self._have = pieces, sources, partial, have
        self._strike, self._progress = strike, progress
        self.vectors = torch.empty(n_elements), torch.empty(n_elements)
        self._places: dict[bytes, list[memoryview]] = {}
        for digests, vector_P in zip((pieces.anchor, pieces.momentum), self.vectors, strict=True):
            for digest, view in zip(digests, views(vector_P), strict=True):
                self._places.setdefault(digest, []).append(view)
        order = {digest: hashlib.sha256(salt.encode() + digest).digest() for digest in pieces.distinct}
        self._missing = dict.fromkeys(sorted(order, key=order.__getitem__))
        self._index = {digest: index for index, digest in enumerate(pieces.distinct)}
        self._done_bytes = 0
        self._under_way: dict[bytes, dict[str, float]] = {}
        """By piece, since when each source is at it."""
        self._payloads: set[Payload] = set()
        """What is under way."""
        self._piece_s = 0.0
        """How long one takes, lately."""
        self._haves: dict[str, frozenset[int]] = {}
        self._n_haves: Counter[int] = Counter()
        """How many of those who are fetching it have a piece."""
        self._bad: set[str] = set()
        self._rests_until: dict[str, float] = {}
        self._changed = asyncio.Event()

    async def run(self) -> tuple[Tensor, Tensor]:
        """Anchor and momentum, float32 (P,).

        Raises: StreamClosed if nobody is left who has what is missing.
        """
        await self._recall()
        loop = asyncio.get_running_loop()
        began_at = moved_at = loop.time()
        here = self._bytes_here()
        workers: dict[tuple[str, int], asyncio.Task[None]] = {}
        asking: asyncio.Task[None] | None = None
        try:
            while self._missing:
                if self._bytes_here() != here:
                    moved_at, here = loop.time(), self._bytes_here()
                elif loop.time() > moved_at + (MOST_LOOK_S if self._payloads else look_s(moved_at - began_at)):
                    raise StreamClosed("", f"nobody has the {len(self._missing)} pieces of the state that are missing")
                if asking is None or asking.done():
                    asking = asyncio.create_task(self._ask())
                self._begin(workers)
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_S):
                        await self._changed.wait()
        finally:
            tasks = [*workers.values(), *([asking] if asking else [])]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        self._partial.clear()
        return self.vectors

    def _bytes_here(self) -> int:
        return self._done_bytes + sum(payload.n_ready for payload in self._payloads)

    async def _recall(self) -> None:
        self._partial.only(self._missing)
        for digest in list(self._missing):
            # Gigabytes are read and hashed: others are to be answered meanwhile.
            await asyncio.sleep(0)
            piece = self._partial.recall(digest)
            if piece is not None and hashlib.sha256(piece).digest() == digest:
                self._take(digest, piece)

    def _begin(self, workers: dict[tuple[str, int], asyncio.Task[None]]) -> None:
        now = asyncio.get_running_loop().time()
        for source in dict.fromkeys((*self._sources.members(), *self._haves)):
            if source in self._bad or now < self._rests_until.get(source, now):
                continue
            for stream in range(STREAMS):
                worker = workers.get((source, stream))
                if worker is not None and worker.done():
                    # An error that is no peer's is not to be lost.
                    worker.result()
                if (worker is None or worker.done()) and self._next(source):
                    workers[source, stream] = asyncio.create_task(self._work(source))

    async def _ask(self) -> None:
        async def haves(joiner: str) -> frozenset[int] | None:
            try:
                return await self._sources.haves(joiner)
            except (PeerError, TimeoutError):
                return None

        joiners = self._sources.joiners()
        answers = zip(joiners, await asyncio.gather(*map(haves, joiners)), strict=True)
        self._haves = {joiner: have for joiner, have in answers if have is not None}
        self._n_haves = Counter(index for have in self._haves.values() for index in have)
        self._changed.set()
        await asyncio.sleep(ASK_S)

    def _next(self, source: str) -> bytes | None:
        """What to fetch from a source now."""
        have, now = self._haves.get(source), asyncio.get_running_loop().time()
        best, best_cost = None, (2, 0)
        for digest in self._missing:
            if have is not None and self._index[digest] not in have:
                continue
            at_it = self._under_way.get(digest, {})
            # What hangs is fetched from another as well.
            if at_it and (source in at_it or len(at_it) > 3 or now < max(at_it.values()) + self._long_s()):
                continue
            cost = (len(at_it), self._n_haves[self._index[digest]])
            if best is None or cost < best_cost:
                best, best_cost = digest, cost
            if cost == (0, 0):
                # Nothing can be better, and a large state has thousands of pieces.
                break
        return best

    def _long_s(self) -> float:
        return max(LEAST_HANG_S, 3 * self._piece_s)

    async def _work(self, source: str) -> None:
        while source not in self._bad and (digest := self._next(source)):
            began = self._under_way.setdefault(digest, {})[source] = asyncio.get_running_loop().time()
            payload = Payload(len(self._places[digest][0]))
            self._payloads.add(payload)
            try:
                await self._sources.fetch(source, digest, payload)
                if digest in self._missing:
                    self._check(source, digest, bytes(payload.view))
                took_s = asyncio.get_running_loop().time() - began
                self._piece_s = 0.8 * self._piece_s + 0.2 * took_s if self._piece_s else took_s
            except ProtocolViolation as error:
                self._bad.add(source)
                self._strike(error.peer, error.reason)
            except (PeerError, TimeoutError):
                # It is gone, or has this no more: another is asked.
                self._rests_until[source] = asyncio.get_running_loop().time() + REST_S
                break
            finally:
                del self._under_way[digest][source]
                self._payloads.discard(payload)
                self._changed.set()

    def _check(self, source: str, digest: bytes, piece: bytes) -> None:
        if hashlib.sha256(piece).digest() != digest:
            raise ProtocolViolation(source, "sent a piece of the state that is not the one it was asked for")
        self._partial.keep(digest, piece)
        self._take(digest, piece)

    def _take(self, digest: bytes, piece: bytes) -> None:
        for view in self._places[digest]:
            view[:] = piece
        self._have[digest] = self._places[digest][0]
        del self._missing[digest]
        self._done_bytes += sum(len(view) for view in self._places[digest])
        self._progress(self._done_bytes, 8 * len(self.vectors[0]))
