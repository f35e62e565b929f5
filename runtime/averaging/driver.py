"""Drives the round: feeds it what the network and the trainer do, and does what it says.

All decisions are in ``round.py``; here are the effects, and those on this peer's state in ``applying.py``. One
coroutine handles one event at a time.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from peers import membership
from peers.caps import NO_CAPS, Caps
from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.messages import Role, Status
from peers.service import Mesh, MeshEvent, Received
from peers.transport import Transport
from runtime.averaging import events
from runtime.averaging.applying import Applying
from runtime.averaging.arithmetic import in_thread
from runtime.averaging.download import Forgetful, Partial
from runtime.averaging.exchange import Exchange
from runtime.averaging.figures import OwnFigures
from runtime.averaging.joining import Joined, Joining, NotJoined
from runtime.averaging.messages import MOST_LOSS, Commit, Descriptor
from runtime.averaging.own_state import OwnState
from runtime.averaging.phases import InnerPhases, InnerWork, Trainer
from runtime.averaging.post import Post
from runtime.averaging.results import Results
from runtime.averaging.round import Round
from runtime.state import State
from runtime.tasks import Background

# The last to apply the last outer step fetches its results from those that applied it first.
LINGER_S = 10.0
# A deadline that is seen later than this is of a process that stood still or was long at work. What others have said
# meanwhile is told first, and whatever woke it has so long to come.
LATE_S, SETTLE_S = 0.5, 0.1


@dataclass(frozen=True)
class _Moved:
    """Of shares and results, as they were in a generation of them: void when they have been dropped since."""

    event: events.Event
    generation: int


@dataclass(frozen=True)
class _Still:
    """No inner step is being taken any more: the commit can be applied."""

    commit: Commit


class Averager:
    """One peer in a run, from the first outer step it has the state of to the last one.

    Args:
        lineage: of the state that ``trainer`` has; ``tokens`` it has committed, ``group`` those in its last step.
        lost_P: as in ``State``.
        established: as in ``OwnState``.
        codec: of ``codecs.registry``, or "auto" with the ``codec_costs`` by which this peer chooses when it leads.
        last_outer_step: the run is over when this many outer steps are committed.
        caps: what ``transport`` keeps to now.
        partial: keeps what has come of a state whose download is interrupted.
        report: called with an event's name and fields, for the log.
        on_partition: "fork" or "stop", as in ``Terms``.
        committed: as in ``Applying``.
        abandoned: called with a copy of the state of a fork that is left; where it is kept, for the log.
    """

    def __init__(
        self,
        identity: Identity,
        run_id: str,
        mesh: Mesh,
        transport: Transport,
        trainer: Trainer,
        *,
        lineage: bytes,
        tokens: int = 0,
        group: tuple[str, ...] = (),
        lost_P: Tensor | None = None,
        established: bool,
        codec: str,
        codec_costs: Mapping[str, float] | None = None,
        quorum: int,
        on_partition: str = "fork",
        last_outer_step: int,
        caps: Callable[[], Caps] = lambda: NO_CAPS,
        partial: Partial | None = None,
        report: Callable[..., None],
        committed: Callable[[], Awaitable[None]],
        abandoned: Callable[[State], str],
    ) -> None:
        self.machine = Round(
            identity.peer, run_id, trainer.n_elements, codec, quorum, on_partition, codec_costs, trainer.trains
        )
        self._identity, self._mesh, self._transport, self._trainer = identity, mesh, transport, trainer
        self._own = OwnState(trainer, lineage, tokens, group, lost_P, established)
        self._last_outer_step, self._report = last_outer_step, report
        self._results = Results(identity.peer, quorum)
        self._inbox: asyncio.Queue[events.Event | Joined | NotJoined | _Moved | _Still] = asyncio.Queue()
        self._background = Background()
        self._exchange = Exchange(
            transport, self._results, self._on_moved, self._background.spawn, self.strike, report, self._silent
        )
        self._transfers = self._exchange.transfers
        self._joining = Joining(
            transport,
            trainer.n_elements,
            self._own,
            self._results,
            self._transfers,
            partial or Forgetful(),
            mesh.members,
            self.machine.roster,
            self._inbox.put_nowait,
            self.strike,
            report,
        )
        self._post = Post(identity, mesh, self._own.claims, self._results)
        self._progress = trainer.progress
        self._phases = InnerPhases(trainer, self._on_work)
        self._figures = OwnFigures(trainer.device, self._transfers, caps, lambda: self.round_bytes)
        self._applying = Applying(
            self.machine,
            self._own,
            self._results,
            self._exchange,
            self._joining,
            self._phases,
            self._figures,
            self._post,
            last_outer_step,
            self._announce,
            report,
            committed,
            abandoned,
        )

    @property
    def finished(self) -> bool:
        return self._applying.finished

    @property
    def established(self) -> bool:
        return self._own.established

    @property
    def lineage(self) -> bytes:
        return self._own.lineage

    def state(self, memory: Sequence[Tensor | None] = (None, None, None)) -> State:
        """As ``OwnState.copy``."""
        return self._own.copy(memory)

    @property
    def round_bytes(self) -> tuple[int, int]:
        """Bytes of rounds, payload and control, sent and received so far."""
        return (
            self._mesh.bytes_sent + self._transfers.bytes_sent,
            self._mesh.bytes_received + self._transfers.bytes_received,
        )

    @property
    def spent_s(self) -> tuple[float, float]:
        """Seconds in which this peer trained, and in which it did not, since it began to."""
        return self._figures.spent_s(asyncio.get_running_loop().time())

    def doing(self) -> dict[str, dict[str, object]]:
        """By peer, this one included, what it is at and how far: for who watches."""
        statuses = {self._identity.peer: self._status(), **self._mesh.members()}
        return {
            peer: {"doing": doing, "outer_step": statuses[peer].outer_step, "progress": statuses[peer].progress}
            for peer, doing in self.machine.doing().items()
            if peer in statuses
        }

    def _on_moved(self, event: events.Event) -> None:
        self._inbox.put_nowait(_Moved(event, self._results.generation))

    def strike(self, peer: str, reason: str) -> None:
        self._figures.strikes += 1
        self._report("strike", member=peer, reason=reason)

    def _silent(self, peer: str, reason: str) -> None:
        """A strike unless the peer itself is gone: its links say that sooner or later."""
        if peer in self._mesh.members():
            self.strike(peer, reason)

    async def run(self) -> None:
        """Take part until the run's last outer step is committed here and everyone else had time to have it too."""
        loop = asyncio.get_running_loop()
        await self._transfers.serve()
        await self._joining.serve()
        self._mesh.listener = self._on_mesh
        # Before anybody waits for it.
        await in_thread(self._own.claim)
        async with asyncio.TaskGroup() as tasks:
            self._background.begin(tasks)
            for always in (self._phases.run(), self._keep_status()):
                self._background.spawn(always, self._identity.peer)
            try:
                if self.established:
                    await self._feed(self._applying.begin())
                for peer, member in self._mesh.members().items():
                    await self._feed(membership.Up(peer, member))
                while not (self.finished and self.established):
                    await self._next_event(None)
                until = loop.time() + LINGER_S
                while (loop.time() < until or self._gives()) and self._others_behind():
                    await self._next_event(max(until, loop.time() + 1.0))
            finally:
                self._background.end()

    def _gives(self) -> bool:
        """Whether anybody is fetching something from this peer."""
        return self._joining.serving or self._transfers.sending > 0

    async def _next_event(self, until: float | None) -> None:
        loop = asyncio.get_running_loop()
        deadlines = [deadline for deadline in (self.machine.next_deadline(), until) if deadline is not None]
        deadline = min(deadlines, default=None)
        if deadline is None or loop.time() < deadline:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await self._inbox.get()
            except TimeoutError:
                pass
            else:
                await self._take(event)
                return
        assert deadline is not None
        if loop.time() > deadline + LATE_S:
            await asyncio.sleep(SETTLE_S)
            for _ in range(self._inbox.qsize()):
                await self._take(self._inbox.get_nowait())
        # A timer may fire a clock tick early; the machine is to see its deadline as passed.
        await self._feed(events.Tick(), deadline)
        if not self._inbox.empty():
            await self._take(self._inbox.get_nowait())

    async def _take(self, event: events.Event | Joined | NotJoined | _Moved | _Still) -> None:
        if isinstance(event, _Moved):
            if event.generation != self._results.generation:
                return
            event = event.event
        if isinstance(event, events.ContributionReady) and self._results.own_P is None and self._trainer.trains:
            # Of a state that is no more.
            return
        if isinstance(event, _Still):
            if event.commit is not self.machine.pending_commit:
                # A member's state was quicker.
                return
            event = await self._applying.apply(event.commit)
        if isinstance(event, Joined):
            event = await self._applying.go_over(event) or NotJoined(event.donor, refuted=False)
        if isinstance(event, NotJoined):
            self._joining.active = False
            self._announce()
            event = events.SyncFailed(event.donor, event.refuted)
        if isinstance(event, membership.Down):
            self._exchange.lost(event.peer)
            self._background.lost(event.peer)
        await self._feed(event)

    async def _feed(self, event: events.Event, not_before: float | None = None) -> None:
        """Handle one event, and at once what follows from it here."""
        pending: deque[events.Event] = deque([event])
        while pending:
            now = max(asyncio.get_running_loop().time(), not_before or 0.0)
            for action in self.machine.handle(pending.popleft(), now):
                pending += await self._perform(action)
        if not self.established:
            self._go_over()

    async def _perform(self, action: events.Action) -> list[events.Event]:
        match action:
            case events.Send(to, message):
                self._post.send(to, message)
            case events.ForwardCommit(to, outer_step):
                self._post.forward_commit(to, outer_step, self.machine.pending_commit)
            case events.StopTraining():
                self._phases.stop()
            case events.Follow(descriptor):
                self._follow(descriptor)
            case events.SendContribution(descriptor, shard, to):
                self._exchange.send_contribution(descriptor, shard, to)
            case events.Collect(shard):
                self._exchange.collect(shard)
            case events.SendResult(descriptor, shard, to):
                result = self._results.result(shard, self.machine.held(shard))
                self._exchange.send_result(descriptor, shard, result, to)
            case events.Reduce(descriptor, shard, contributors):
                self._exchange.miss(shard, contributors, self._mesh.members())
                digest = self._results.reduce(shard, contributors)
                return [events.ResultReady(descriptor.plan_id, shard, self._identity.peer, digest)]
            case events.Fetch():
                self._background.spawn(self._exchange.fetch(action), self._identity.peer)
            case events.Apply(commit):
                self._phases.stop()
                if self._phases.are_still:
                    return [await self._applying.apply(commit)]
                # Who asks for the commit is answered meanwhile, also if the training thread hangs.
                self._background.spawn(self._wait_until_still(commit), self._identity.peer)
            case events.Resync(reason):
                self._report("behind", reason=reason)
                self._go_over()
            case events.Strike(peer, reason):
                self.strike(peer, reason)
            case events.Report(event, fields):
                self._report(event, **dict(fields))
        return []

    async def _wait_until_still(self, commit: Commit) -> None:
        await self._phases.pause()
        self._inbox.put_nowait(_Still(commit))

    # Training: in the trainer's own time, between two outer steps.

    async def _on_work(self, work: InnerWork) -> None:
        if self._trainer.trains:
            self._results.own_P = await in_thread(
                lambda: self._own.feedback.contribution(self._trainer.pseudo_gradient())
            )
        self._figures.ready(asyncio.get_running_loop().time())
        loss = work.loss if self._trainer.trains and abs(work.loss) <= MOST_LOSS else None
        link = (*self._figures.link(), self._transport.dialable)
        told = self._figures.told(work.tokens, self._transport.dialable)
        self._inbox.put_nowait(events.ContributionReady(self._trainer.outer_step, work.tokens, loss, *link, told))

    def _status(self) -> Status:
        member = Role.MEMBER if self._trainer.trains else Role.AUXILIARY
        role = member if self.established and not self._joining.active else Role.JOINING
        present = self._own.present
        if self._trainer.outer_step == present.outer_step:
            # Else it is that of a step which is being taken.
            self._progress = self._trainer.progress
        return Status(role, present.outer_step, present.lineage, self._progress, present.tokens)

    def _announce(self) -> None:
        self._mesh.set_status(self._status(), announce=True)

    async def _keep_status(self) -> None:
        while True:
            self._mesh.set_status(self._status())
            if not self._joining.sees_member() and not self.established:
                self._go_over()
            await asyncio.sleep(0.5)

    # The network: messages in and out, shares and results.

    def _on_mesh(self, event: MeshEvent) -> None:
        match event:
            case Received(sender, body):
                try:
                    message = self._post.open(body, sender)
                except ProtocolViolation as error:
                    self.strike(error.peer, error.reason)
                    return
                self._inbox.put_nowait(events.MessageFrom(sender, message))
            case membership.Up(peer):
                self._report("member_up", member=peer)
                self._inbox.put_nowait(event)
            case membership.Down(peer, reason):
                self._report("member_down", member=peer, reason=reason)
                self._inbox.put_nowait(event)
            case _:
                self._inbox.put_nowait(event)

    def _follow(self, descriptor: Descriptor) -> None:
        self._report(
            "round_began",
            outer_step=descriptor.outer_step + 1,
            attempt=descriptor.attempt,
            leader=descriptor.leader,
            members=list(descriptor.peers),
            reducers=[descriptor.peers[reducer] for reducer in descriptor.reducers],
            codec=descriptor.codec,
        )
        if not self._results.follows(descriptor.plan_id):
            self._figures.followed(asyncio.get_running_loop().time())
        self._exchange.follow(descriptor)

    # Joining: have the state that the members have, or get it.

    def _go_over(self) -> None:
        """To the furthest member: from nothing, or from a state that is behind or on a lighter fork."""
        attempt = self._joining.next_attempt()
        if attempt is not None:
            self._announce()
            self._background.spawn(attempt, self._identity.peer)

    def _others_behind(self) -> bool:
        return any(status.outer_step < self._last_outer_step for status in self._mesh.members().values())
