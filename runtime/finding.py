"""The manifest of a run from whoever has it, before one is a peer of the run oneself.

Nothing of this peer is in the run's table yet, and no member is linked with it: who speaks another protocol version
finds that out here and has disturbed nobody.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from peers.daemon import end_tasks
from peers.errors import ProtocolViolation, StreamClosed, Unreachable
from peers.membership import Known
from peers.records import members_key, read_records
from peers.relay import Connected
from peers.transport import Discovery, Stream
from runtime.errors import ConfigError
from runtime.manifest import MANIFEST_PROTOCOL, MAX_MANIFEST_BYTES, Manifest, open_manifest

ANSWER_S = 5.0
LOOK_S = 0.1
# Of the peers in the table, at a time.
MOST_ASKED = 8


async def give_manifest(stream: Stream, sealed: bytes) -> None:
    """Tell who asks, b"" where this peer has none, so that nobody asks it again.

    Raises: PeerError.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            await stream.send(sealed)
            # It closes the stream when it has read that.
            await stream.receive(1)


class Finder:
    """Args: invited are the invite's addresses; failed is called with a peer and why it did not give the manifest."""

    def __init__(
        self,
        transport: Connected,
        discovery: Discovery,
        run_id: str,
        invited: Sequence[str],
        failed: Callable[[str, str], None] = lambda peer, reason: None,
    ) -> None:
        self._transport, self._discovery, self._run_id = transport, discovery, run_id
        self._invited = sorted({address.rpartition("/p2p/")[2] for address in invited})
        self._failed = failed
        self._strangers: set[str] = set()
        self._guides: set[str] = set()
        """Bootstrap peers: they lead to the members, and are none."""

    @property
    def invited(self) -> tuple[str, ...]:
        return tuple(self._invited)

    async def members(self) -> list[Known]:
        """Those whom the run's table names, whether they are there or not. Within 3 s."""
        return read_records(await self._discovery.get(members_key(self._run_id)), self._run_id, time.time())

    async def manifest(self) -> Manifest:
        """Ask until one has the right one.

        Raises: ConfigError if whoever is there is in another run, or speaks another protocol version.
        """
        while True:
            connected = await self._transport.connected_peers()
            there = [peer for peer in self._invited if peer in connected and peer not in self._guides]
            if found := await self._ask_all([Known(peer, ()) for peer in there if peer not in self._strangers]):
                return found
            others = [known for known in await self.members() if known.peer not in (*there, self._transport.peer)]
            if found := await self._ask_all(random.sample(others, min(len(others), MOST_ASKED))):
                return found
            if there and self._strangers.issuperset(there) and not others:
                raise ConfigError("the peer of this invite is in another run by now: ask for a newer invite")
            await asyncio.sleep(LOOK_S)

    async def _ask_all(self, peers: Sequence[Known]) -> Manifest | None:
        """The first that comes. Raises: ConfigError."""
        asking = [asyncio.create_task(self._ask(known)) for known in peers]
        try:
            for answer in asyncio.as_completed(asking):
                if found := await answer:
                    return found
        finally:
            await end_tasks(asking)
        return None

    async def _ask(self, known: Known) -> Manifest | None:
        try:
            stream = await self._transport.open(known.peer, known.addresses, MANIFEST_PROTOCOL)
            try:
                async with asyncio.timeout(ANSWER_S):
                    sealed = await stream.receive(MAX_MANIFEST_BYTES)
            finally:
                stream.close()
            if not sealed:
                self._guides.add(known.peer)
                return None
            return open_manifest(sealed, self._run_id, known.peer)
        except ProtocolViolation:
            self._strangers.add(known.peer)
        except (StreamClosed, TimeoutError) as error:
            self._failed(known.peer, str(error))
        except Unreachable:
            # The table has peers for hours after they have gone.
            pass
        return None
