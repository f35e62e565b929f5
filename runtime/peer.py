"""One peer on the network: its key, its log, and its links to the others, until its user wants it to leave."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from peers.addresses import MARK, if_free
from peers.caps import CappedTransport
from peers.dialback import DIALBACK_PROTOCOL, Dialback, Reach
from peers.direct import DirectTransport
from peers.discovery import DhtDiscovery
from peers.errors import NetworkError, PeerError
from peers.identity import Identity
from peers.messages import PROTOCOL_VERSION, Role, Status
from peers.p2pd import P2pdTransport
from peers.rate import RATE_PROTOCOL, RateServer
from peers.reaching import Reaching
from peers.records import is_own
from peers.relay import RelayedTransport
from peers.service import Mesh
from peers.transport import Transport
from runtime.averaging.statesync import STATE_PROTOCOL
from runtime.averaging.transfer import PIECE_PROTOCOL, PUSH_PROTOCOL
from runtime.disk import Allotment
from runtime.finding import Finder
from runtime.folder import Folder, unwritable
from runtime.invite import MOST_INVITING, Invite, format_invite, nearest_last
from runtime.log import EVENTS_FILE, SCHEMA, Event, EventLog
from runtime.manifest import Manifest
from runtime.metrics import Metrics, serve
from runtime.monitor.feed import WATCH_PROTOCOL, Feed, past_of
from runtime.monitor.history import HISTORY_FILE, History
from runtime.tasks import end, ungrouped
from runtime.user import User

T = TypeVar("T")

BULK = (PUSH_PROTOCOL, PIECE_PROTOCOL, STATE_PROTOCOL)
# What nobody passes on; with the run's past, it keeps to the volunteer's limits.
LARGE = (*BULK, RATE_PROTOCOL)
LOOK_BACK_S = 5.0
HINT_AFTER_S = 10.0
# Addresses, invite, manifest: more than they take.
SMALL_FILES_BYTES = 1 << 16


class Peer:
    """The parts of one peer that live as long as it takes part."""

    def __init__(self, user: User, p2pd: P2pdTransport, discovery: DhtDiscovery, metrics: Metrics | None) -> None:
        config = user.config
        self.identity = Identity.load(config.key)
        self.metrics = metrics
        self.user, self.config, self.folder, self.view = user, config, Folder(config.folder), user.view
        self._relayed = RelayedTransport(self.identity, p2pd, LARGE)
        self._direct = DirectTransport(self.identity, self._relayed, BULK)
        self.transport: Transport = CappedTransport(self._direct, (*LARGE, WATCH_PROTOCOL), lambda: user.limits.caps)
        self.run_id = ""
        self._stack: AsyncExitStack
        self.log: EventLog
        self.mesh: Mesh
        self._history: History
        self._feed: Feed | None = None
        self._p2pd, self._discovery = p2pd, discovery
        self.disk = Allotment(config.folder, lambda: user.limits.disk_bytes)
        self.checkpoint_bytes = 0
        """The most that one takes, once the run is known: logs leave room for it."""
        self._reach: Reaching
        self._first_answers: asyncio.Task[None]
        self._reach_told = (True, True)
        self._meets = False
        self._beside = list[asyncio.Task[None]]()
        """What ends one of them with an error ends the peer."""

    @classmethod
    async def go_online(cls, stack: AsyncExitStack, user: User, bootstrap: tuple[str, ...]) -> "Peer":
        """Listen and find the DHT; ``stack`` undoes it. Dead bootstrap addresses are no error: they may come back."""
        config, metrics = user.config, None
        if config.metrics_port:
            metrics = Metrics()
            stack.callback(serve(metrics, config.metrics_port))
        folder = Folder(config.folder)
        kind = "ip6" if ":" in config.host else "ip4"
        listen = [f"/{kind}/{config.host}/tcp/{config.port or if_free(config.host, folder.port)}"]
        try:
            p2pd = await P2pdTransport.create(config.key, listen=listen, bootstrap=bootstrap)
        except NetworkError:
            if not bootstrap:
                raise
            # Discovery goes on trying them.
            p2pd = await P2pdTransport.create(config.key, listen=listen)
        stack.push_async_callback(p2pd.close)
        port = next((int(address.split("/tcp/")[1].split("/")[0]) for address in await p2pd.addresses()), 0)
        folder.keep_port(port)
        discovery = await DhtDiscovery.create(p2pd, bootstrap, belongs=is_own)
        stack.push_async_callback(discovery.close)
        peer = cls(user, p2pd, discovery, metrics)
        peer._begin(stack, discovery.keep_looking())
        # Beside p2pd's own port, so that whoever opens one in a router knows the other.
        await peer._direct.listen(config.host, port + 1 if 0 < port < 65535 else 0)
        stack.push_async_callback(peer._direct.close)
        await p2pd.serve(DIALBACK_PROTOCOL, Dialback(peer._direct.answers).serve)
        await peer.transport.serve(RATE_PROTOCOL, RateServer().serve)
        peer._reach = Reaching(p2pd, peer._direct, peer._relayed)
        peer._first_answers = peer._begin(stack, peer._reach.ask(await p2pd.connected_peers()))
        return peer

    def _begin(self, stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work`` beside everything else, until ``stack`` is undone."""
        task = asyncio.create_task(work)
        self._beside.append(task)
        stack.push_async_callback(end, task)
        return task

    def enter(self, stack: AsyncExitStack, run_id: str) -> None:
        """Be one of the run's peers, without a state of it as yet."""
        self._stack, self.run_id = stack, run_id
        self.user.peer, self.user.has_entered = self.identity.peer, True
        if self.metrics is not None:
            self.metrics.enter(run_id, self.identity.peer)
        try:
            self.log = EventLog(self.folder.path / EVENTS_FILE, self.identity.peer, self._may_log)
        except OSError as error:
            raise unwritable(self.folder.path, error) from None
        stack.callback(self.log.close)
        self._history = History(self.folder.path / HISTORY_FILE, self._may_log)
        self._direct.linked = lambda member, kind: self.log.report("link", member=member, kind=kind)
        self.log.listener = self._on_event
        nothing = Status(Role.JOINING, 0, bytes(32), 0)
        # Dialled by this peer: theirs to it may still be held back after what failed while it was away.
        known = self.folder.addresses
        self.mesh = Mesh(
            self.identity,
            run_id,
            self.transport,
            self._discovery,
            nothing,
            random.Random(),
            self._strike,
            known=known,
        )
        self.mesh.met = self._direct.know
        self.mesh.other_version = lambda member, version: self.log.report(
            "other_version", member=member, protocol=version
        )
        self._relayed.members = self.mesh.members

    def _may_log(self, n_bytes: int) -> bool:
        return self.disk.take(n_bytes, leaving=self.checkpoint_bytes + SMALL_FILES_BYTES)

    def meet_others(self, stack: AsyncExitStack) -> None:
        """From now on this peer is in the run's table, and linked with all the others."""
        self._meets = True
        for work in (self._meet(), self._keep_reachable()):
            self._begin(stack, work)

    async def _meet(self) -> None:
        # Where this peer cannot be dialled nobody is to try: each would wait for seconds.
        await self._first_answers
        await self.mesh.run()

    async def _keep_reachable(self) -> None:
        """Find out, and find out again, whether others can dial this peer."""
        await self._first_answers
        self._reach.changed, self._reach.strike = self._on_reach, self._strike
        self._on_reach(self._reach.found)
        await self._reach.run(self.mesh.members)

    def _on_reach(self, reach: Reach | None) -> None:
        if reach is not None and (reach.dialable, reach.direct) != self._reach_told:
            self._reach_told = (reach.dialable, reach.direct)
            self.log.report("reach", dialable=reach.dialable, direct=reach.direct, seen_at=reach.host)
        self.mesh.tell_addresses()

    def _strike(self, peer: str, reason: str) -> None:
        self.log.report("strike", member=peer, reason=reason)

    def _on_event(self, event: Event) -> None:
        kind = event["event"]
        self.view.show(event)
        self._history.add(event)
        if self.metrics is not None:
            self.metrics.add(event)
        if self._feed is not None:
            self._feed.tell(event)
        if kind == "joined" and self._history.outer_step < event["outer_step"]:
            self._begin(self._stack, self._learn_past(event["outer_step"]))
        if kind == "member_down" and not event["reason"].startswith("left"):
            self._direct.drop(event["member"])
        if kind in ("member_up", "joined") and (addresses := self.mesh.known_addresses()):
            # What finds the DHT again; a direct address changes with every start.
            self.folder.keep_addresses([address for address in addresses if MARK not in address])

    async def _learn_past(self, outer_step: int) -> None:
        """What the run did before this peer came, from the first member that tells."""
        for member in [peer for peer, status in self.mesh.members().items() if status.is_member]:
            try:
                self._history.merge(await past_of(member, self.transport, self.run_id), outer_step)
                return
            except (PeerError, TimeoutError):
                continue

    @property
    def n_watchers(self) -> int:
        return self._feed.n_watchers if self._feed is not None else 0

    async def open_feed(
        self, stack: AsyncExitStack, manifest: Manifest, doing: Callable[[], dict[str, dict[str, object]]]
    ) -> None:
        """From now on this peer takes part, and the run can be watched from here."""
        self.log.report("started", schema=SCHEMA, protocol=PROTOCOL_VERSION)
        self._feed = Feed(self.identity.peer, self.run_id, manifest.sealed, self._history, doing)
        await self.transport.serve(WATCH_PROTOCOL, self._feed.serve)
        self._begin(stack, self._feed.keep_telling())

    async def until_leaving(self, work: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, None]) -> T | None:
        """The result of ``work``, or None if the user wants the peer to leave before it ends.

        Args: beside is done meanwhile.
        Raises: NetworkError if the network underneath has failed; and whatever is raised beside.
        """
        task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self.user.stop.wait())
        failed = asyncio.ensure_future(self._p2pd.wait_failed())
        meanwhile = [asyncio.ensure_future(one) for one in beside]
        try:
            while not (task.done() or leaving.done() or failed.done()):
                going = [one for one in (*meanwhile, *self._beside) if not one.done()]
                await asyncio.wait([task, leaving, failed, *going], return_when=asyncio.FIRST_COMPLETED)
                for one in (*meanwhile, *self._beside):
                    if one.done():
                        one.result()
            if task.done():
                with ungrouped():
                    return task.result()
            if failed.done():
                raise NetworkError(failed.result())
            return None
        finally:
            for one in (task, leaving, failed, *meanwhile):
                await end(one)

    async def print_invite(self, others: Sequence[str] = ()) -> None:
        """To this peer, and to some that others have invited with: a newcomer needs one that lives."""
        # First those that are always there; and a machine with many addresses leaves room for the others.
        own, half = nearest_last(await self._p2pd.addresses()), MOST_INVITING // 2
        addresses = dict.fromkeys((*self.config.bootstrap_addresses, *own[:half], *others, *own[half:]))
        invite = Invite(self.run_id, tuple(addresses)[:MOST_INVITING])
        self.folder.keep_invite(invite)
        text = format_invite(invite)
        # After a pause it is as a rule the same.
        if text != self.user.printed_invite:
            self.user.printed_invite = text
            # It is in the folder too: nobody needs to read it here.
            with suppress(OSError):
                print(f"invite: {text}", flush=True)

    async def find_manifest(self, addresses: Sequence[str]) -> Manifest:
        """Ask the peers at ``addresses``, and those in the run's table, until one has the right one.

        Raises: ConfigError if whoever is there is in another run, or speaks another protocol version.
        """

        def hint() -> None:
            self.view.say(
                "nobody of this run answers: waiting until one of its peers is back (is the invite the newest one, and"
                " this machine online? atoll doctor looks)"
            )

        def failed(member: str, reason: str) -> None:
            self.log.report("manifest_failed", member=member, reason=reason)

        hinting = asyncio.get_running_loop().call_later(HINT_AFTER_S, hint)
        try:
            return await Finder(self._relayed, self._discovery, self.run_id, addresses, failed).manifest()
        finally:
            hinting.cancel()

    async def finds_members(self) -> bool:
        """Whether the run goes on without this peer: what it has on disk is then to be measured against theirs."""
        if not self.folder.addresses:
            return False
        with self.view.waiting("looking for those who were here before"):
            return bool(await self.until_leaving(self._sees_member()))

    async def _sees_member(self) -> bool:
        """Within a few seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK_BACK_S
        while loop.time() < until:
            if any(status.is_member for status in self.mesh.members().values()):
                return True
            await asyncio.sleep(0.1)
        return False

    async def leave(self, over: bool = False) -> int | None:
        """Say goodbye: because the run is over, or because the user wants it.

        Returns: the exit code of the process, None if the peer only pauses.
        """
        reason = "the run is over" if over else self.user.stop_reason
        if reason.startswith("paused"):
            # When and why somebody uses their own machine is theirs alone, and whoever watches is told what is logged.
            reason = "paused"
        self.log.report("left", reason=reason)
        # What comes from now on is the others' answer to the goodbye, and no news.
        self.mesh.listener = lambda event: None
        if self._meets:
            await self.mesh.leave(reason)
        return 0 if over else self.user.exit_code
