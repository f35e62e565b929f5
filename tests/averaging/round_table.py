"""Several Round machines at one table: what one says is handed to the others, in an order that a seed decides.

What the driver does with bytes is done here with names: a share is who sent it, a result is a digest of who is in it.
"""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from peers.membership import Changed, Down, Up
from peers.messages import Role, Status
from runtime.averaging import events
from runtime.averaging.lineage import first_lineage, next_lineage
from runtime.averaging.messages import Commit
from runtime.averaging.round import Round

RUN_ID = "5" * 40
ROOT = first_lineage(RUN_ID, bytes(32))
N_ELEMENTS = 5 * 4096 + 77

Fatal = Callable[[events.Action], bool]


def sha(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def weight_of(peer: str) -> int:
    return 100 + ord(peer[-1])


def begun(outer_step: int = 0, lineage: bytes = ROOT) -> events.StepBegun:
    return events.StepBegun(outer_step, lineage, sha(lineage))


@dataclass(frozen=True)
class Fetching:
    wanted: events.Fetch


@dataclass
class Seat:
    machine: Round
    lineage: bytes = ROOT
    outer_step: int = 0
    following: bytes | None = None
    shares: dict[tuple[bytes, int], set[str]] = field(default_factory=dict)
    early: list[events.Event] = field(default_factory=list)
    results: set[bytes] = field(default_factory=set)
    kept: dict[int, Commit] = field(default_factory=dict)
    applied: list[Commit] = field(default_factory=list)
    trains: bool = True


class Table:
    """All machines, linked with each other, at outer step 0. Faults: ``fatal`` actions, ``kill``, ``lost`` messages,
    ``mute`` peers that answer no fetch.
    """

    def __init__(self, peers: Sequence[str], quorum: int = 1, seed: int = 0, heartbeats: bool = True) -> None:
        self.now, self.rng, self.heartbeats = 100.0, random.Random(seed), heartbeats
        self.seats = {peer: Seat(Round(peer, RUN_ID, N_ELEMENTS, "int8", quorum)) for peer in peers}
        self.dead: set[str] = set()
        self.mute: set[str] = set()
        self.channels: dict[tuple[str, str], deque[events.Event | Fetching]] = {}
        self.actions: list[tuple[str, events.Action]] = []
        self.committed: set[Commit] = set()
        self.lineages: dict[int, bytes] = {0: ROOT}
        never: Fatal = lambda action: False  # noqa: E731
        self.never = never
        self.fatal: dict[str, Fatal] = {}
        self.fatal_after: dict[str, Fatal] = {}
        self.lost: Callable[[str, str, object], bool] = lambda sender, to, event: False
        for peer in peers:
            self.feed(peer, begun())
            for other in peers:
                if other != peer:
                    self.feed(peer, Up(other, Status(Role.MEMBER, 0, ROOT, 0)))

    @property
    def alive(self) -> list[str]:
        return [peer for peer in self.seats if peer not in self.dead]

    def done(self, kind: type, peer: str | None = None) -> list[events.Action]:
        """All actions of one kind so far, of one peer or of all."""
        return [action for who, action in self.actions if isinstance(action, kind) and peer in (None, who)]

    def ready(self, *peers: str) -> None:
        for peer in peers or self.alive:
            self.feed(peer, events.ContributionReady(self.seats[peer].outer_step, weight_of(peer), 2.0))

    def kill(self, peer: str, lose: bool = True) -> None:
        """The peer's process is gone, and with ``lose`` what it had sent and nobody had read."""
        self.dead.add(peer)
        for (sender, to), channel in self.channels.items():
            if to == peer or (lose and sender == peer):
                channel.clear()
        for other in self.alive:
            self.post(peer, other, Down(peer, "dead"))

    def post(self, sender: str, to: str, event: events.Event | Fetching) -> None:
        if to not in self.dead and not self.lost(sender, to, event):
            self.channels.setdefault((sender, to), deque()).append(event)

    def settle(self) -> None:
        """Hand out everything that is on its way."""
        while waiting := sorted(key for key, channel in self.channels.items() if channel):
            sender, to = self.rng.choice(waiting)
            event = self.channels[sender, to].popleft()
            if to not in self.dead:
                self._arrive(to, event)

    def tick(self) -> None:
        """Jump to the next deadline of anyone. A tick there does something, or the deadline moves on."""
        due = [(at, peer) for peer in self.alive if (at := self.seats[peer].machine.next_deadline()) is not None]
        assert due, "nobody waits for anything"
        deadline, peer = min(due)
        self.now = max(self.now, deadline)
        before = len(self.actions)
        self.feed(peer, events.Tick())
        after = self.seats[peer].machine.next_deadline()
        idle = len(self.actions) == before and after is not None and after <= self.now
        assert not idle, f"{peer} spins at {self.now}"

    def run(self, outer_step: int, most_s: float = 400.0) -> None:
        """Until everyone alive is at ``outer_step``."""
        until = self.now + most_s
        self.settle()
        while any(self.seats[peer].outer_step < outer_step for peer in self.alive):
            assert self.now < until, f"no commit in {most_s} s: {[seat.machine._step for seat in self.seats.values()]}"
            self.tick()
            self.settle()

    def feed(self, peer: str, event: events.Event) -> None:
        pending = deque([event])
        while pending and peer not in self.dead:
            machine = self.seats[peer].machine
            actions = machine.handle(pending.popleft(), self.now)
            machine.validate()
            for action in actions:
                if self.fatal.get(peer, self.never)(action):
                    return self.kill(peer)
                self.actions.append((peer, action))
                pending += self._perform(peer, self.seats[peer], action)
                if self.fatal_after.get(peer, self.never)(action):
                    return self.kill(peer, lose=False)
        return None

    def _arrive(self, to: str, event: events.Event | Fetching) -> None:
        seat = self.seats[to]
        if isinstance(event, Fetching):
            wanted = event.wanted
            if seat.following != wanted.descriptor.plan_id:
                return
            plan_id, shard = wanted.descriptor.plan_id, wanted.shard
            sources = [peer for peer in wanted.sources if peer not in self.dead | self.mute]
            if any(wanted.digest in self.seats[peer].results for peer in sources):
                seat.results.add(wanted.digest)
                self.feed(to, events.ResultReady(plan_id, shard, None, wanted.digest))
            else:
                self.feed(to, events.FetchFailed(plan_id, shard, wanted.digest))
            return
        if isinstance(event, events.ContributionArrived | events.ResultReady) and event.plan_id != seat.following:
            seat.early.append(event)
            return
        if isinstance(event, events.ContributionArrived):
            seat.shares.setdefault((event.plan_id, event.shard), set()).add(event.sender)
        if isinstance(event, events.ResultReady):
            seat.results.add(event.digest)
        self.feed(to, event)

    def _perform(self, peer: str, seat: Seat, action: events.Action) -> list[events.Event]:
        match action:
            case events.Send(to, message):
                if isinstance(message, Commit):
                    assert message.descriptor.leader == peer
                    self.committed.add(message)
                for other in self.seats if to is None else [to]:
                    if other != peer:
                        self.post(peer, other, events.MessageFrom(peer, message))
            case events.ForwardCommit(to, outer_step):
                pending = seat.machine.pending_commit
                here = pending is not None and pending.descriptor.outer_step == outer_step
                commit = pending if here else seat.kept.get(outer_step)
                if commit is not None:
                    self.post(peer, to, events.MessageFrom(peer, commit))
            case events.Follow(descriptor):
                seat.following = descriptor.plan_id
                early, seat.early = seat.early, []
                for event in early:
                    self.post(peer, peer, event)
            case events.SendContribution(descriptor, shard, to):
                assert to != peer
                self.post(peer, to, events.ContributionArrived(descriptor.plan_id, shard, peer))
            case events.Reduce(descriptor, shard, contributors):
                here_too = {*seat.shares.get((descriptor.plan_id, shard), set()), peer}
                assert {descriptor.peers[index] for index in contributors} <= here_too
                digest = sha(descriptor.plan_id, shard, contributors)
                seat.results.add(digest)
                return [events.ResultReady(descriptor.plan_id, shard, peer, digest)]
            case events.SendResult(descriptor, shard, others):
                for other in others:
                    held = seat.machine.held(shard)
                    self.post(peer, other, events.ResultReady(descriptor.plan_id, shard, peer, held))
            case events.Fetch():
                self.post(peer, peer, Fetching(action))
            case events.StopTraining():
                if seat.trains:
                    self.post(peer, peer, events.ContributionReady(seat.outer_step, weight_of(peer), None))
            case events.Apply(commit):
                return [self._apply(peer, seat, commit)]
        return []

    def _apply(self, peer: str, seat: Seat, commit: Commit) -> events.Event:
        descriptor = commit.descriptor
        assert commit in self.committed, "applied what nobody committed"
        assert (descriptor.outer_step, descriptor.lineage) == (seat.outer_step, seat.lineage), "applied out of turn"
        assert set(commit.digests) <= seat.results, "applied a result that is not here"
        seat.applied.append(commit)
        seat.kept[seat.outer_step] = commit
        seat.outer_step += 1
        seat.lineage = next_lineage(
            seat.lineage, descriptor.outer_step, descriptor.state, descriptor.plan_id, commit.digests
        )
        agreed = self.lineages.setdefault(seat.outer_step, seat.lineage)
        assert agreed == seat.lineage, f"{peer} applied another step {seat.outer_step}"
        if self.heartbeats:
            for other in self.seats:
                if other != peer:
                    self.post(peer, other, Changed(peer, Status(Role.MEMBER, seat.outer_step, seat.lineage, 0)))
        return begun(seat.outer_step, seat.lineage)
