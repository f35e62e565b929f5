"""The round: how members agree on one outer step after another, as a pure state machine.

A round is one attempt at an outer step. Members say that they are ready; the leader, first in the hash order of the
attempt, sends a descriptor; members send contributions to reducers and tell the leader what results they hold; when
more than half hold the same complete set the leader commits it, and everyone applies it. A leader that is lost ends
the attempt for everyone who notices, and with their Ready for the next attempt they tell its leader what they followed
and what they accepted, so that a result that may have been committed is committed again and nothing else.
"""

from collections.abc import Mapping
from typing import assert_never

from peers.membership import Changed, Down, Gone, Slept, Up
from peers.messages import Status
from runtime.averaging.commits import Commits
from runtime.averaging.events import (
    Action,
    ContributionArrived,
    ContributionReady,
    Event,
    FetchFailed,
    ForwardCommit,
    MessageFrom,
    Report,
    ResultReady,
    Send,
    StepBegun,
    StopTraining,
    Strike,
    SyncFailed,
    Tick,
)
from runtime.averaging.following import Following
from runtime.averaging.histories import BEHIND_S, Histories
from runtime.averaging.leader import Leader
from runtime.averaging.messages import Commit, CommitRequest, Descriptor, Held, Past, Ready
from runtime.averaging.pace import Pace
from runtime.averaging.reducer import Reducer
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step, Terms


class Round:
    """One peer's side of all rounds. ``handle(event, now)`` takes loop time and never raises because of a peer."""

    def __init__(
        self,
        peer: str,
        run_id: str,
        n_elements: int,
        codec: str,
        quorum: int,
        on_partition: str = "fork",
        codec_costs: Mapping[str, float] | None = None,
        trains: bool = True,
    ) -> None:
        self.peer = peer
        self.terms = Terms(peer, run_id, n_elements, codec, quorum, on_partition, codec_costs or {}, trains)
        self.pace, self.roster = Pace(n_elements), Roster(peer)
        self._leader = Leader(self.terms, self.roster, self.pace)
        self._reducer = Reducer(self.terms, self.roster, self.pace)
        self._histories = Histories(self.roster)
        self._commits = Commits(self.terms, self.roster, self.pace, self._histories)
        self._following = Following(peer, self.roster, self._leader, self._reducer, self._commits)
        self._alive = self.roster.alive
        self._early: dict[str, Ready] = {}
        self._step: Step | None = None
        self._now = 0.0

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor followed at present."""
        return self._step.descriptor if self._step else None

    @property
    def leads(self) -> bool:
        """Whether this peer has begun the round that is under way."""
        return self._step is not None and self._step.leading is not None

    @property
    def pending_commit(self) -> Commit | None:
        """The commit of this step, if it is known and not applied yet."""
        return self._step.commit if self._step else None

    @property
    def n_live(self) -> int:
        """Members that live and train, this peer included where it does."""
        members = [peer for peer, _ in self.roster.members() if peer not in self.roster.still]
        return self.terms.trains + sum(self.roster.trains(peer) for peer in members)

    def doing(self) -> dict[str, str]:
        """As ``Step.doing``; nothing before this peer has a state."""
        return self._step.doing(self.roster) if self._step else {}

    @property
    def contributes(self) -> bool:
        """Whether the contribution that the plan counts is here."""
        return self._step is not None and self._step.contributes

    def held(self, shard: int) -> bytes:
        """Digest of the result held for a shard of this step."""
        assert self._step is not None
        return self._step.held[shard]

    def handle(self, event: Event, now: float) -> list[Action]:
        self._now = now
        match event:
            case StepBegun():
                return self._begin_step(event, now)
            case Up(peer, status) | Changed(peer, status):
                return self._on_status(peer, status, now)
            case Down(peer, _, left):
                return self._on_down(peer, left, now)
            case Gone(peer):
                if peer in self.roster.lost:
                    self.roster.unreachable.add(peer)
                return self._lead(self._step, now) if self._step and not self._step.applying else []
            case Slept(seconds):
                self.roster.slept(seconds)
                return []
        step = self._step
        if step is None:
            return []
        if step.applying:
            match event:
                case MessageFrom(sender, Ready() as ready) if ready.outer_step == step.outer_step + 1:
                    self._early[sender] = ready
            return self._commits.tell(step, event)
        match event:
            case ContributionReady():
                return self._on_contribution(step, event, now)
            case MessageFrom(sender, message):
                return self._on_message(step, sender, message, now)
            case ContributionArrived(plan_id, shard, sender):
                return self._reducer.on_arrived(step, plan_id, shard, sender, now)
            case ResultReady():
                return self._following.on_result(step, event, now)
            case FetchFailed(_, shard, digest):
                return self._on_fetch_failed(step, shard, digest, now)
            case SyncFailed(peer, refuted):
                return self._on_sync_failed(step, peer, refuted, now)
            case Tick():
                return self._on_tick(step, now)
        assert_never(event)

    def next_deadline(self) -> float | None:
        """Loop time at which ``Tick`` is due, None if it never is."""
        step, now = self._step, self._now
        if step is None or step.applying:
            return None
        deadlines = [step.fetch_at] if step.fetch_at is not None else []
        if step.commit is None:
            if (ask_at := self._histories.ask_at(step)) is not None:
                deadlines.append(ask_at)
            if step.first_ready_at is not None and step.own is None and not step.stop_sent:
                deadlines.append(self._leader.stop_at(step, now))
            if step.own is not None:
                deadlines += self._own_deadlines(step, now)
            deadlines += self._reducer.deadlines(step)
        return min(deadlines, default=None)

    def _own_deadlines(self, step: Step, now: float) -> list[float]:
        """Of a peer that is ready: when to lead, to give up a leader, and to count out who hangs."""
        deadlines = [self.roster.still_at(peer) for peer in self.roster.moving(step.lineage, step.readies)]
        ends_at = None
        if step.can_form(step.expected(self.roster, now), self.roster):
            ends_at = self._attempt_ends(step, now)
        for at in (ends_at, self._leader.begin_at(step, now), self._leader.replace_at(step, now)):
            if at is not None:
                deadlines.append(at)
        return deadlines

    # Beginning: who is there, who is ready, who leads.

    def _begin_step(self, event: StepBegun, now: float) -> list[Action]:
        if event.loaded:
            self.roster.lineages.clear()
        self.roster.step_begun(event.outer_step, event.lineage, event.group, now)
        self._step = step = Step(
            self.terms, event.outer_step, event.lineage, event.state, event.tokens, begun_at=now, attempt_at=now
        )
        actions: list[Action] = []
        early, self._early = self._early, {}
        for sender, ready in sorted(early.items()):
            if sender in self._alive and ready.outer_step == step.outer_step:
                actions += self._on_ready(step, sender, ready, now)
        for peer, status in self.roster.members():
            actions += self._histories.compare(step, peer, status)
        # It came late to the step: its commit has been sent to everyone already.
        self._histories.notice_behind(step, now - BEHIND_S)
        return actions

    def _on_status(self, peer: str, status: Status, now: float) -> list[Action]:
        new_member = self.roster.saw(peer, status, now)
        step = self._step
        if step is None or step.applying:
            return []
        actions = self._histories.compare(step, peer, status)
        if peer in self.roster.still and now < self.roster.still_at(peer):
            self.roster.still.discard(peer)
            actions.append(Report("member_moves", (("member", peer),)))
        self._histories.notice_behind(step, now)
        if new_member and step.own is not None and step.commit is None:
            actions.append(Send(peer, step.own_ready()))
            actions += self._reducer.send_again(step, peer)
        return actions

    def _on_contribution(self, step: Step, event: ContributionReady, now: float) -> list[Action]:
        if event.outer_step != step.outer_step or step.own is not None:
            return []
        if step.commit is not None:
            # It is too late, unless the commit is given up.
            step.late = event
            return []
        if self.terms.trains:
            self.pace.phase(now - step.begun_at)
        step.own = event
        if step.descriptor is not None and step.contributes:
            # A leader was quicker than this peer's own word that it is ready.
            return [*self._following.follow(step, step.descriptor, now), *self._say_ready(step, now)]
        return self._say_ready(step, now)

    def _say_ready(self, step: Step, now: float) -> list[Action]:
        step.attempt_at = now
        ready = step.own_ready()
        self._note_ready(step, self.peer, ready, now)
        return [Send(None, ready), *self._lead(step, now)]

    def _note_ready(self, step: Step, peer: str, ready: Ready, now: float) -> None:
        if ready.trains:
            if step.first_ready_at is None and not self.terms.trains:
                # An auxiliary peer knows phases from the others only.
                self.pace.phase(now - step.begun_at)
            step.ready_since.setdefault(peer, now)
            self.roster.tokens[peer] = ready.weight
        step.readies[peer] = ready

    def _on_ready(self, step: Step, sender: str, ready: Ready, now: float) -> list[Action]:
        if ready.outer_step < step.outer_step:
            return [ForwardCommit(sender, ready.outer_step)]
        if ready.outer_step == step.outer_step + 1:
            self._early[sender] = ready
        if ready.outer_step > step.outer_step:
            return []
        if ready.lineage != step.lineage:
            return []
        step.states[sender] = ready.state
        if step.commit is not None:
            return [ForwardCommit(sender, step.outer_step)]
        if ready.state != step.state:
            return self._lead(step, now)
        if reason := step.objection_to_ready(ready):
            return [Strike(sender, reason)]
        known = step.readies.get(sender)
        if known is None or known.attempt <= ready.attempt:
            self._note_ready(step, sender, ready, now)
        if ready.attempt > step.attempt:
            # Somebody lost the leader: staying together matters more than being right about who is gone.
            return self._next_attempt(step, ready.attempt, now)
        return self._lead(step, now)

    def _next_attempt(self, step: Step, attempt: int, now: float) -> list[Action]:
        step.attempt, step.leading, step.told, step.attempt_at, step.moved = attempt, None, {}, now, set()
        return self._say_ready(step, now) if step.own is not None else self._lead(step, now)

    def _lead(self, step: Step, now: float) -> list[Action]:
        if descriptor := self._leader.begin(step, now):
            return self._following.announce(step, descriptor, now)
        if step.own is None or step.told_waiting or step.outvoted:
            return []
        if step.can_form(step.expected(self.roster, now), self.roster):
            return []
        step.told_waiting = True
        here, group = len(self._alive) + 1, len(self.roster.group)
        majority = self.terms.on_partition == "stop"
        needs = f"more than half of the {group} of the last" if majority else f"{self.terms.quorum} contributions"
        waiting = (("outer_step", step.outer_step + 1), ("members", here), ("needs", needs))
        return [Report("waiting", waiting)]

    # What goes wrong: peers that die, leaders that are lost, rounds that were missed.

    def _on_down(self, peer: str, left: bool, now: float) -> list[Action]:
        step = self._step
        led = step is not None and step.leader(self.roster, now) == peer
        self.roster.down(peer, left, now)
        self._early.pop(peer, None)
        self._histories.down(peer)
        if step is None or step.applying:
            return []
        self._histories.notice_behind(step, now)
        step.readies.pop(peer, None)
        step.states.pop(peer, None)
        step.ready_since.pop(peer, None)
        if step.commit is not None:
            step.fetch_at = now
            return self._on_tick(step, now)
        if step.descriptor is not None:
            step.sent = {(shard, to) for shard, to in step.sent if step.descriptor.peers[to] != peer}
        if step.own is not None and (led or step.lost_majority(self._alive)):
            return self._next_attempt(step, step.attempt + 1, now)
        if replaced := self._following.replace(step, now):
            return replaced
        actions = [action for shard in step.collecting() for action in self._reducer.reduce(step, shard, now)]
        return actions + self._lead(step, now)

    def _attempt_ends(self, step: Step, now: float) -> float | None:
        """When a leader that has not begun, or a round that has not ended, is given up; None while nobody is ready."""
        attempt_s = self.pace.attempt_s(step.attempt, step.begun)
        if step.begun:
            return max(step.followed_at, step.attempt_at) + attempt_s
        if step.first_ready_at is None:
            return None
        return max(self._leader.begin_by(step, now), step.attempt_at) + attempt_s

    def _on_fetch_failed(self, step: Step, shard: int, digest: bytes, now: float) -> list[Action]:
        step.fetching.discard((shard, digest))
        step.fetch_at = now + 1.0
        commit = step.commit
        if commit is None or commit.digests[shard : shard + 1] != (digest,):
            return []
        actions = self._commits.give_up(step, commit, shard, now)
        return actions + (self._next_attempt(step, step.attempt + 1, now) if commit in step.lost else [])

    def _on_sync_failed(self, step: Step, peer: str, refuted: bool, now: float) -> list[Action]:
        if refuted:
            self.roster.refute(peer)
        step.resyncing, step.behind_since, step.asks = False, None, 0
        self._histories.notice_behind(step, now)
        return self._lead(step, now)

    def _on_message(self, step: Step, sender: str, message: object, now: float) -> list[Action]:
        match message:
            case Ready():
                return self._on_ready(step, sender, message, now)
            case Descriptor():
                return self._following.on_descriptor(step, sender, message, now)
            case Held():
                return self._following.on_held(step, sender, message, now)
            case Commit():
                return self._commits.on_commit(step, sender, message, now)
            case CommitRequest(outer_step):
                return [ForwardCommit(sender, outer_step)]
            case Past(outer_step, lineage):
                here = outer_step == step.outer_step and step.commit is None
                return self._histories.other_history(step, sender, lineage) if here else []
        raise TypeError(f"no such message: {message!r}")

    def _on_tick(self, step: Step, now: float) -> list[Action]:
        actions: list[Action] = []
        if asked := self._histories.ask(step, now):
            return asked
        if step.fetch_at is not None and now >= step.fetch_at:
            step.fetch_at = None
            actions += self._reducer.fetch_missing(step)
        if step.commit is not None:
            return actions
        waited_for = step.own is None and step.first_ready_at is not None and not step.stop_sent
        if waited_for and now >= self._leader.stop_at(step, now):
            step.stop_sent = True
            actions.append(StopTraining())
        if step.own is not None:
            still = self.roster.count_out_still(step.lineage, step.readies, now)
            actions += [Report("member_still", (("member", peer),)) for peer in still]
            electable = step.can_form(step.expected(self.roster, now), self.roster)
            ends_at = self._attempt_ends(step, now)
            if electable and ends_at is not None and now >= ends_at:
                return actions + self._next_attempt(step, step.attempt + 1, now)
        for shard in step.collecting():
            actions += self._reducer.reduce(step, shard, now)
        return actions + (self._following.replace(step, now) or self._lead(step, now))

    def validate(self) -> None:
        """Every invariant of one peer's view; the ones between peers are checked where all can be seen."""
        step = self._step
        if step is None:
            return
        assert self.peer not in self._alive
        assert step.leading is None or step.leading.leader == self.peer
        assert step.leading is None or step.leading.attempt == step.attempt
        assert step.descriptor is None or step.descriptor.attempt <= step.attempt or step.commit is not None
        assert step.applying is False or step.commit is not None
        if step.accepted is not None:
            assert len(step.accepted.digests) == step.accepted.descriptor.n_shards
