"""What one peer knows about the outer step that is being taken, and what follows from it without deciding anything."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from peers.election import leadership_order
from peers.messages import Role
from runtime.averaging.codecs.base import BLOCK
from runtime.averaging.codecs.choice import allowed
from runtime.averaging.events import ContributionReady
from runtime.averaging.messages import MOST_LOSS, MOST_TOKENS, Accepted, Commit, Descriptor, Ready
from runtime.averaging.roster import Roster

# Attempts double in length: nobody who can hear the others is so far ahead of them.
MOST_AHEAD = 64


@dataclass(frozen=True)
class Terms:
    """What does not change from step to step: who this is, in which run, and what everyone there has agreed on."""

    peer: str
    run_id: str
    n_elements: int
    codec: str
    """The run file's: a codec, or "auto"."""
    quorum: int
    on_partition: str = "fork"
    """fork: whoever has a quorum goes on; stop: only who has more than half of the last committed group."""
    codec_costs: Mapping[str, float] = field(default_factory=dict)
    """With "auto", what the codecs cost this peer; see ``codecs.choice``."""
    trains: bool = True


@dataclass
class Step:
    """Times are loop time in seconds; shards and members are named by their index in ``descriptor``.

    ``alive`` in its methods are the linked peers.
    """

    terms: Terms
    outer_step: int
    lineage: bytes
    state: bytes
    tokens: int
    begun_at: float
    attempt_at: float
    attempt: int = 0
    own: ContributionReady | None = None
    readies: dict[str, Ready] = field(default_factory=dict)
    ready_since: dict[str, float] = field(default_factory=dict)
    """When the first of each came, of those who train."""
    stop_sent: bool = False
    states: dict[str, bytes] = field(default_factory=dict)
    """What each says that the state of this lineage is."""

    descriptor: Descriptor | None = None
    """The one that is followed; the sets below are about its plan."""
    followed_at: float = 0.0
    sent: set[tuple[int, int]] = field(default_factory=set)
    """(shard, reducer) to which this peer's share went."""
    arrived: dict[int, set[int]] = field(default_factory=dict)
    """Members whose share of a shard is here."""
    half_arrived_at: dict[int, float] = field(default_factory=dict)
    """When more than half of a shard's shares were here."""
    reduced: set[int] = field(default_factory=set)
    """Shards that this peer has reduced, as long as they are its own."""
    here: set[tuple[int, bytes]] = field(default_factory=set)
    """(shard, digest) of every result whose bytes are here."""
    held: dict[int, bytes] = field(default_factory=dict)
    """The one result of a shard that counts."""
    holder: dict[int, int] = field(default_factory=dict)
    """The reducer that the held result was made under."""
    fetching: set[tuple[int, bytes]] = field(default_factory=set)
    accepted: Accepted | None = None

    leading: Descriptor | None = None
    """The descriptor that this peer leads under, and what its voters have told that they hold."""
    told: dict[str, dict[int, bytes]] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    """Shards that were taken from a living reducer for being slow: once an attempt is enough."""
    others_spread_at: float | None = None
    """When all shards but those of one reducer were held by more than half of the voters."""

    commit: Commit | None = None
    """Known and not applied: results are missing, or (``applying``) being applied."""
    applying: bool = False
    fetch_at: float | None = None
    failed_fetches: Counter[int] = field(default_factory=Counter)
    """By shard, how often a result of the commit was fetched in vain."""
    lost: set[Commit] = field(default_factory=set)
    """Commits of which nobody alive has the results."""
    late: ContributionReady | None = None
    """This peer's, made while a commit waited for its results: for another attempt, if there is one."""
    without_commit: set[str] = field(default_factory=set)
    """Those that say that they do not keep this step's commit."""
    behind_since: float | None = None
    asks: int = 0
    resyncing: bool = False
    """Another history is being fetched to go on from: this one is not led any further."""
    told_waiting: bool = False
    undecidable: frozenset[str] | None = None
    """Those that were ready when they were too few to decide: others have to come."""

    @property
    def position(self) -> tuple[int, int, bytes]:
        """As of a ``Status``."""
        return self.tokens, self.outer_step, self.lineage

    @property
    def first_ready_at(self) -> float | None:
        return min(self.ready_since.values(), default=None)

    def forget_plan(self) -> None:
        self.sent, self.arrived, self.half_arrived_at, self.reduced, self.here = set(), {}, {}, set(), set()
        self.held, self.holder, self.fetching, self.accepted = {}, {}, set(), None

    def own_ready(self) -> Ready:
        """What this peer tells everyone, from the second attempt on with what it knows of those before."""
        assert self.own is not None
        last = self.descriptor if self.attempt > 0 else None
        return Ready(
            outer_step=self.outer_step,
            attempt=self.attempt,
            lineage=self.lineage,
            state=self.state,
            weight=self.own.weight,
            loss=self.own.loss,
            following=last,
            accepted=self.accepted if last else None,
            held=tuple(self.held.get(shard, b"") for shard in range(last.n_shards)) if last else (),
            up=self.own.up,
            down=self.own.down,
            dialable=self.own.dialable,
            trains=self.terms.trains,
            figures=self.own.figures,
        )

    def ready_now(self, alive: Collection[str]) -> dict[str, Ready]:
        """Those that are ready for this attempt, this peer included."""
        return {
            peer: ready
            for peer, ready in sorted(self.readies.items())
            if ready.attempt == self.attempt and (peer == self.terms.peer or peer in alive)
        }

    def doing(self, roster: Roster) -> dict[str, str]:
        """What each linked peer and this one is at, as far as this one knows: for who watches."""
        group = self.descriptor.peers if self.descriptor else ()

        def of(peer: str, role: int, outer_step: int) -> str:
            if role == Role.JOINING:
                return "joining"
            if peer in roster.still:
                return "still"
            if peer in self.readies or role == Role.AUXILIARY:
                return "averaging" if peer in group else "ready" if role == Role.MEMBER else "auxiliary"
            return "behind" if outer_step < self.outer_step else "training"

        own = Role.MEMBER if self.terms.trains else Role.AUXILIARY
        others = {peer: of(peer, status.role, status.outer_step) for peer, status in roster.alive.items()}
        return {self.terms.peer: of(self.terms.peer, own, self.outer_step), **others}

    def expected(self, roster: Roster, now: float) -> list[str]:
        """Members of this lineage, as far as known, that may still become ready for the step. Includes this peer."""
        expected = [self.terms.peer]
        for peer, status in roster.members():
            # A heartbeat is half a second old: who was at an earlier step may be at this one by now.
            here = status.outer_step < self.outer_step or status.lineage == self.lineage
            moves = now < roster.still_at(peer) and not roster.on_fork(status)
            other_state = self.states.get(peer, self.state) != self.state
            if peer in self.readies or (here and moves and not other_state):
                expected.append(peer)
        return sorted(expected)

    @property
    def outvoted(self) -> bool:
        """Whether most peers of this lineage, as far as heard, have one other state: a bit of this one has flipped."""
        others = Counter(state for state in self.states.values() if state != self.state)
        return 2 * max(others.values(), default=0) > 1 + len(self.states)

    def can_form(self, peers: Collection[str], roster: Roster) -> bool:
        """Whether a group of these peers may commit this step."""
        if self.outvoted:
            return False
        # Who said goodbye counts as well: it may be back before the step is over, on the other side of a cut.
        majority = 2 * len(roster.group.intersection(peers)) > len(roster.group) or not roster.group
        n_trainers = sum(self._trains(peer, roster) for peer in peers)
        return n_trainers >= self.terms.quorum and (majority or self.terms.on_partition == "fork")

    def _trains(self, peer: str, roster: Roster) -> bool:
        if peer == self.terms.peer:
            return self.terms.trains
        return self.readies[peer].trains if peer in self.readies else roster.trains(peer)

    def elected(self, roster: Roster, now: float) -> str:
        """Who leads this attempt by the hash order."""
        return leadership_order(self.terms.run_id, self.outer_step, self.attempt, self.expected(roster, now))[0]

    @property
    def begun(self) -> bool:
        """Whether a descriptor of this attempt is followed."""
        return self.descriptor is not None and self.descriptor.attempt == self.attempt

    def leader(self, roster: Roster, now: float) -> str:
        """Who leads this attempt in fact, if anyone has begun it."""
        if self.descriptor is not None and self.begun:
            return self.descriptor.leader
        return self.elected(roster, now)

    def lost_majority(self, alive: Collection[str]) -> bool:
        """Whether what is followed cannot be committed any more by those who are left."""
        descriptor = self.descriptor
        if descriptor is None or descriptor.attempt != self.attempt:
            return False
        voters = [descriptor.peers[index] for index in descriptor.voters]
        return 2 * sum(voter == self.terms.peer or voter in alive for voter in voters) <= descriptor.electors

    @property
    def contributes(self) -> bool:
        """Whether what the plan counts of this peer is here: one that came back may have no contribution, or another.

        True of an auxiliary peer as well, of which it counts none.
        """
        descriptor = self.descriptor
        if descriptor is None or self.own is None or self.terms.peer not in descriptor.peers:
            return False
        entry = descriptor.members[descriptor.peers.index(self.terms.peer)]
        return (entry.weight, entry.trains) == (self.own.weight, self.terms.trains)

    def collecting(self) -> list[int]:
        """Shards that this peer has to reduce and has not."""
        descriptor = self.descriptor
        if descriptor is None or not self.contributes or self.commit is not None:
            return []
        me = descriptor.peers.index(self.terms.peer)
        return [
            shard
            for shard, reducer in enumerate(descriptor.reducers)
            if reducer == me and shard not in self.reduced and not descriptor.settled[shard]
        ]

    def misfit(self, descriptor: Descriptor) -> str | None:
        """Why a descriptor cannot be one of this step, whoever made it."""
        try:
            descriptor.check(self.terms.n_elements, BLOCK)
        except ValueError as error:
            return f"descriptor that does not hold together: {error}"
        if (descriptor.run_id, descriptor.outer_step) != (self.terms.run_id, self.outer_step):
            return "descriptor of another run or outer step"
        if len(descriptor.trainers) < self.terms.quorum:
            return f"descriptor with {len(descriptor.trainers)} contributions where the quorum is {self.terms.quorum}"
        if descriptor.codec not in allowed(self.terms.codec):
            return f"descriptor with the codec {descriptor.codec!r}, which this run has not"
        if (descriptor.lineage, descriptor.state) != (self.lineage, self.state):
            return "descriptor of another lineage"
        return None

    def objection_to(self, descriptor: Descriptor) -> str | None:
        """Why a leader's descriptor is not followed."""
        if reason := self.misfit(descriptor):
            return reason
        if descriptor.attempt > self.attempt + MOST_AHEAD:
            return f"descriptor of attempt {descriptor.attempt} while others are at {self.attempt}"
        return None

    def objection_to_ready(self, ready: Ready) -> str | None:
        """Why a Ready cannot be right: what it says of earlier attempts becomes the plan of the next."""
        if ready.attempt > self.attempt + MOST_AHEAD:
            return f"ready for attempt {ready.attempt} while others are at {self.attempt}"
        if ready.weight > MOST_TOKENS or abs(ready.loss or 0.0) > MOST_LOSS:
            return f"ready with {ready.weight} tokens and a loss of {ready.loss}"
        for descriptor in (ready.following, ready.accepted.descriptor if ready.accepted else None):
            if descriptor is not None and (reason := self.misfit(descriptor)):
                return f"ready after a {reason}"
        if ready.accepted and len(ready.accepted.digests) != ready.accepted.descriptor.n_shards:
            return "ready with a number of accepted results that does not fit their descriptor"
        if any(len(digest) not in (0, 32) for digest in ready.held):
            return "ready with a held digest of a wrong length"
        return None
