"""Saying where this peer can be dialled, and hearing where others can: signed records, in the DHT and from peers."""

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import suppress

from peers.errors import NetworkError
from peers.identity import Identity
from peers.membership import MOST_KNOWN, Known, Membership
from peers.messages import MAX_RECORDS, RECORD, Addresses, Introduction, MemberRecord
from peers.records import MEMBER_CONTEXT, RECORD_TTL_S, members_key, read_record, read_records
from peers.transport import Discovery, Transport
from peers.wire import seal

ANNOUNCE_EVERY_S = 60.0
LOOK_EVERY_S = 5.0


class Announcing:
    """The records of one run's peers, this one's included, as far as any that hold were seen.

    Args:
        machine: knows who is linked.
        heard: called with where another can be dialled, if that may be news.
        moved: called when it has changed where this one can be.
    """

    def __init__(
        self,
        identity: Identity,
        run_id: str,
        transport: Transport,
        discovery: Discovery,
        machine: Membership,
        rng: random.Random,
        unix_time: Callable[[], float],
        heard: Callable[[Known], None],
        moved: Callable[[], None],
    ) -> None:
        self.addresses: Addresses = ()
        """Where this peer can be dialled."""
        self._identity, self._run_id = identity, run_id
        self._transport, self._discovery, self._machine = transport, discovery, machine
        self._rng, self._unix_time = rng, unix_time
        self._heard, self._moved = heard, moved
        self._records: dict[str, bytes] = {}
        """The newest of each peer."""
        self._found: dict[str, bytes] = {}
        """What the DHT had at the last look."""
        self._now = asyncio.Event()

    def look_again(self) -> None:
        """Where this peer can be dialled has changed: say so to everyone, now."""
        self._now.set()

    async def announce(self, left: bool = False) -> None:
        """Put this peer's record into the DHT, or take it back."""
        value, expires_at = self._seal(left)
        await self._discovery.store(members_key(self._run_id), self._identity.peer, value, expires_at)

    def _seal(self, left: bool = False) -> tuple[bytes, float]:
        expires_at = self._unix_time() + RECORD_TTL_S
        record = MemberRecord(self._run_id, self.addresses, expires_at, left)
        value = seal(self._identity, MEMBER_CONTEXT, RECORD.encode(record))
        self._records[self._identity.peer] = value
        return value, expires_at

    async def keep_announced(self) -> None:
        while True:
            await self.announce()
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_EVERY_S * self._rng.uniform(0.8, 1.2)):
                    await self._now.wait()
            self._now.clear()
            # p2pd learns late how others see it, and so may this peer that it can be dialled, or cannot.
            try:
                addresses = await self._transport.addresses()
            except NetworkError:
                # Too many streams at once, say. If p2pd is gone whoever runs it knows.
                continue
            if addresses != self.addresses:
                self.addresses = addresses
                self._seal()
                self._moved()

    async def keep_looking(self) -> None:
        while True:
            found = await self._discovery.get(members_key(self._run_id))
            # A record is signed anew each time that it is announced: an old one has been read.
            news = {peer: value for peer, value in found.items() if self._found.get(peer) != value}
            self._found = found
            for known in read_records(news, self._run_id, self._unix_time()):
                self._take(news[known.peer])
            # Until somebody is found this is all that there is to do.
            await asyncio.sleep((LOOK_EVERY_S if self._machine.members() else 0.5) * self._rng.uniform(0.8, 1.2))

    def introduction(self) -> Introduction:
        """This peer and some of those that it is linked with, for one that it has just met."""
        linked = [peer for peer in self._machine.members() if peer in self._records]
        chosen = self._rng.sample(linked, min(len(linked), MAX_RECORDS - 1))
        return Introduction(
            tuple(self._records[peer] for peer in (self._identity.peer, *chosen) if peer in self._records)
        )

    def introduced(self, records: Iterable[bytes], sender: str) -> None:
        """Take what another has in an introduction."""
        known = frozenset(self._records.values())
        for record in records:
            if record not in known:
                self._take(record, sender)

    def _take(self, record: bytes, sender: str = "") -> None:
        """Take a record that may be news; an older one than is known is not, whoever introduces with it.

        Unless it is ``sender``'s own: its word now, by a clock that may have been set back.
        """
        now_unix = self._unix_time()
        read = read_record(record, self._run_id, now_unix)
        if read is None:
            return
        known, expires_at = read
        held = read_record(self._records.get(known.peer, b""), self._run_id, now_unix)
        if held is not None and held[1] > expires_at and known.peer != sender:
            return
        self._records[known.peer] = record
        if len(self._records) > MOST_KNOWN:
            # Nobody is introduced whom this peer is not linked with.
            mine, is_up = self._identity.peer, self._machine.is_up
            others = (peer for peer in self._records if peer != mine and not is_up(peer))
            del self._records[next(others, known.peer)]
        self._heard(known)
