"""Following a run from outside: a stream from one of its members, and from another one when that member goes.

Needs neither torch nor hivemind, but py-libp2p, which clashes with hivemind: an observer is a process of its own.
py-libp2p is trio's, so it runs in a thread beside the event loop.
"""

import asyncio
import heapq
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import trio

from peers.errors import PeerError, StreamClosed
from peers.observer_dht import key_of
from peers.observer_link import Dialler, Link, LinkStream
from peers.observer_members import Backoff, Members
from peers.records import read_records
from peers.wire import short

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 1 << 22
# A member sends at least one frame a second.
SILENCE_S = 10.0
# Whoever was followed for so long was worth it: the next failure is the first one again.
STEADY_S = 10.0
# How long a dial has before the next one begins beside it: what does not answer costs no more than this.
STAGGER_S = 0.25
# Who joins and is not known of before the followed member dies is not found again. A look costs members some
# milliseconds, and hundreds may be looking.
LOOK_EVERY_S, LOOK_TIMEOUT_S = 60.0, 10.0
# Each record is held by the five peers nearest to its key. Some may be away, and one may lie.
MOST_ASKED, ENOUGH_HOLDERS = 8, 2
# In a sentence for people.
MOST_SHOWN = 3
# What the event loop has not taken yet; the member waits meanwhile.
MOST_UNREAD = 8


@dataclass(frozen=True)
class Followed:
    """A stream is open to this member."""

    peer: str


@dataclass(frozen=True)
class Frame:
    peer: str
    body: bytes


@dataclass(frozen=True)
class LostMember:
    """The stream to this member has ended; another one is tried."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Nobody:
    """None of the known members answers; they are tried again after ``retry_s``."""

    reason: str
    retry_s: float


Seen = Followed | Frame | LostMember | Nobody


async def follow(
    run_id: str, addresses: Sequence[str], protocol: str, greeting: Callable[[], bytes]
) -> AsyncGenerator[Seen, None]:
    """What members of the run send on a stream of ``protocol``, for ever, from one member at a time.

    ``greeting`` makes the first frame of each stream; it is called in another thread, and what it raises ends this.
    Leaving the iterator closes every connection and ends that thread; ``contextlib.aclosing`` leaves it in time.

    Args: addresses has multiaddrs, each with ``/p2p/<peer id>``, of peers of the run, which need not all live.
    """
    observer = _Observer(run_id, addresses, protocol, greeting)
    thread = threading.Thread(target=observer.run, name="observer", daemon=True)
    thread.start()
    try:
        while (seen := await observer.next()) is not None:
            yield seen
    finally:
        observer.stop()
        await observer.ended.wait()
        thread.join()
    if observer.bug is not None:
        raise observer.bug


class _Observer:
    """The two sides of the thread: ``next``, ``stop`` and ``ended`` are the event loop's, everything else is trio's."""

    def __init__(self, run_id: str, addresses: Sequence[str], protocol: str, greeting: Callable[[], bytes]) -> None:
        self.ended = asyncio.Event()
        self.bug: BaseException | None = None
        self._run_id, self._protocol, self._greeting = run_id, protocol, greeting
        self._loop = asyncio.get_running_loop()
        self._seen: asyncio.Queue[Seen | None] = asyncio.Queue()
        self._stopped = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._members = Members(addresses)
        self._backoff = Backoff()
        self._rng = random.Random()
        self._failures: dict[str, str] = {}
        """Of this pass, by peer."""
        self._links: dict[str, Link] = {}

    async def next(self) -> Seen | None:
        """What was seen next; None after the end of the thread."""
        seen = await self._seen.get()
        if self._token is not None:
            self._tell(self._room.release)
        return seen

    def stop(self) -> None:
        """End the thread soon; may come at any time, and more than once."""
        # The thread reads the flag after it has set its token: whichever comes first, one of them sees the other.
        self._stopped = True
        if self._token is not None:
            self._tell(lambda: self._scope.cancel())

    def _tell(self, call: Callable[[], object]) -> None:
        try:
            if self._token is not None:
                self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return

    def run(self) -> None:
        """The thread, from beginning to end."""
        try:
            trio.run(self._main)
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            self.bug = error
        finally:
            self._put(None)

    def _put(self, seen: Seen | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._seen.put_nowait, seen)
            if seen is None:
                self._loop.call_soon_threadsafe(self.ended.set)
        except RuntimeError:
            # The loop was closed, and with it everything that would read this.
            self._stopped = True

    async def _show(self, seen: Seen) -> None:
        """Hand over to the event loop, at its pace."""
        await self._room.acquire()
        self._put(seen)
        if self._stopped:
            self._scope.cancel()

    async def _main(self) -> None:
        self._room = trio.Semaphore(MOST_UNREAD)
        self._dialler = Dialler()
        with trio.CancelScope() as self._scope:
            self._token = trio.lowlevel.current_trio_token()
            if self._stopped:
                return
            async with trio.open_nursery() as self._nursery:
                while True:
                    retry_s = await self._follow_one()
                    await trio.sleep(retry_s)

    async def _follow_one(self) -> float:
        """Follow a member for as long as it is there.

        Returns: seconds to wait before the next.
        """
        stream = await self._reach_one()
        if stream is None:
            retry_s = self._backoff.next_s(self._rng.random())
            await self._show(Nobody(self._why_nobody(), retry_s))
            self._begin_pass()
            return retry_s
        reason, sent_for_s = await self._receive(stream)
        if sent_for_s > STEADY_S:
            self._backoff.reset()
            self._begin_pass()
            self._members.ask(stream.peer)
        self._failures[stream.peer] = reason
        return 0.0

    def _begin_pass(self) -> None:
        self._members.begin_pass()
        self._failures.clear()

    def _why_nobody(self) -> str:
        """The latest failures by peer, and how many there are."""
        shown = [f"{short([peer])} {reason}" for peer, reason in list(self._failures.items())[-MOST_SHOWN:]]
        others = len(self._members) - len(shown)
        return "; ".join(shown) + (f"; {others} more" if others > 0 else "")

    async def _reach_one(self) -> LinkStream | None:
        """A stream to a member that this pass has not asked; None when it has asked everybody."""
        looked = False
        while True:
            if peers := self._members.to_ask():
                if stream := await self._first_to_answer(peers):
                    return stream
            elif looked or not self._live_links():
                self._keep_only("")
                return None
            else:
                # Whoever is there and does not serve this protocol may know members.
                looked = True
                await self._look()

    async def _first_to_answer(self, peers: Sequence[str]) -> LinkStream | None:
        """Ask ``peers``, each at every address, in their order and soon beside each other, until one has a stream."""
        won: LinkStream | None = None
        async with trio.open_nursery() as nursery:

            async def ask(peer: str, address: str, failed: trio.Event) -> None:
                nonlocal won
                try:
                    link = await self._link_to(peer, address)
                    stream = await link.open(self._protocol)
                except PeerError as error:
                    self._failures[peer] = error.reason
                    failed.set()
                    return
                if won is not None:
                    await stream.reset()
                    return
                won = stream
                nursery.cancel_scope.cancel()

            for peer in peers:
                self._members.ask(peer)
                for address in self._members.addresses(peer):
                    failed = trio.Event()
                    nursery.start_soon(ask, peer, address, failed)
                    with trio.move_on_after(STAGGER_S):
                        await failed.wait()
        return won

    def _live_links(self) -> dict[str, Link]:
        self._links = {peer: link for peer, link in self._links.items() if not link.closed}
        return self._links

    async def _link_to(self, peer: str, address: str) -> Link:
        """The connection to ``peer``, made at ``address`` if there is none.

        Raises: Unreachable.
        """
        if link := self._live_links().get(peer):
            return link
        link = await self._dialler.connect(self._nursery, peer, address)
        if known := self._live_links().get(peer):
            link.close()
            return known
        self._links[peer] = link
        return link

    def _keep_only(self, peer: str) -> None:
        for other, link in self._live_links().items():
            if other != peer:
                link.close()

    async def _receive(self, stream: LinkStream) -> tuple[str, float]:
        """Show what the member sends, and its end; why it sends no more, and after how many seconds of frames."""
        try:
            await stream.send(self._greeting())
        except StreamClosed as error:
            return error.reason, 0.0
        await self._show(Followed(stream.peer))
        self._keep_only(stream.peer)
        reason = ""
        began = latest = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking, stream.peer)
            try:
                while True:
                    body = await stream.receive(MAX_FRAME_BYTES, SILENCE_S)
                    latest = trio.current_time()
                    await self._show(Frame(stream.peer, body))
            except PeerError as error:
                reason = error.reason
                nursery.cancel_scope.cancel()
        if latest - began < STEADY_S:
            # It had no room, say, but knows others.
            await self._look()
        # A member that is silent or speaks nonsense is dialled anew, if at all.
        self._keep_only("")
        await self._show(LostMember(stream.peer, reason))
        return reason, latest - began

    async def _keep_looking(self, followed: str) -> None:
        while True:
            await self._look()
            self._keep_only(followed)
            await trio.sleep(LOOK_EVERY_S * self._rng.uniform(0.8, 1.2))

    async def _look(self) -> None:
        """Learn of members from hivemind's table, beginning with whoever is connected. Bounded by 10 s."""
        key = key_of(f"atoll/{self._run_id}/members")
        nearest = [(0, peer, peer) for peer in sorted(self._live_links())]
        asked: set[str] = set()
        holders = 0
        with trio.move_on_after(LOOK_TIMEOUT_S):
            while nearest and len(asked) < MOST_ASKED and holders < ENOUGH_HOLDERS:
                _, peer, by = heapq.heappop(nearest)
                if peer in asked:
                    continue
                asked.add(peer)
                try:
                    link = await self._find_link(peer, by)
                    found = await link.find(key)
                except PeerError as error:
                    logger.debug("observer_look_failed", extra={"peer": error.peer, "reason": error.reason})
                    continue
                values = {subkey: value for subkey, (value, _) in found.entries.items()}
                # Read one by one: what one peer has made up is not to replace what another has from its signer.
                known = read_records(values, self._run_id, time.time())
                self._members.learn((member, found.entries[member.peer][1]) for member in known)
                holders += bool(known)
                for distance, near in found.nearest:
                    heapq.heappush(nearest, (distance, near, peer))

    async def _find_link(self, peer: str, named_by: str) -> Link:
        """A connection to a peer of the table, which need not be a member, at an address that ``named_by`` knows.

        Raises: PeerError.
        """
        links = self._live_links()
        if peer in links:
            return links[peer]
        addresses = self._members.addresses(peer)
        if not addresses and named_by in links:
            addresses = await links[named_by].find_addresses(peer)
        problem = StreamClosed(peer, "nobody knows where it is")
        for address in addresses:
            try:
                return await self._link_to(peer, address)
            except PeerError as error:
                problem = StreamClosed(peer, error.reason)
        raise problem
