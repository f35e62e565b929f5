"""Who of the run is there, as one peer sees it: who lives, who is lost, who stands still, who is ahead or on a fork."""

from collections.abc import Collection
from dataclasses import dataclass, field

from peers.messages import Role, Status
from runtime.averaging.messages import MemberEntry

# How long a leader waits for a lost peer to be dialled again; a killed one refuses at once and costs nothing.
REDIAL_S = 1.0
# So long where most of the last group are lost at a stroke: this peer is then more likely the one that was cut off.
REDIAL_MOST_S = 5.0
# A peer in an inner phase whose progress stands still for ten of its inner steps, and not less than this, hangs.
STILL_STEPS, STILL_LEAST_S = 10, 3.0
# Before an inner step of it was seen: the first may read data and compile.
FIRST_INNER_STEP_S = 3.0
KEPT_LINEAGES = 4096


@dataclass
class _Motion:
    progress: int
    at: float
    inner_step_s: float = FIRST_INNER_STEP_S


@dataclass
class Roster:
    """Times are loop time in seconds, peers are ids; this peer itself is in none of the collections."""

    peer: str
    alive: dict[str, Status] = field(default_factory=dict)
    """The linked peers with their last status."""
    lost: dict[str, float] = field(default_factory=dict)
    """Peers whose link has ended without a goodbye, and when."""
    unreachable: set[str] = field(default_factory=set)
    """Those of them whom a new dial did not reach."""
    lineages: dict[int, bytes] = field(default_factory=dict)
    """This peer's own history, by outer step."""
    refuted: dict[str, bytes] = field(default_factory=dict)
    """Peers whose claim to this lineage nobody confirmed."""
    group: frozenset[str] = frozenset()
    """Whose contributions are in the last committed step, this peer included where it is one."""
    since: dict[str, float] = field(default_factory=dict)
    """When each was first seen as a member at the outer step that it is at."""
    tokens: dict[str, int] = field(default_factory=dict)
    """What each contributed last, this peer included."""
    vain: dict[str, int] = field(default_factory=dict)
    """The tokens of a contribution whose shares were waited for in vain."""
    still: set[str] = field(default_factory=set)
    """Members whose training stands still: nobody waits for them."""
    _members: list[tuple[str, Status]] | None = None
    _motions: dict[str, _Motion] = field(default_factory=dict)

    def step_begun(self, outer_step: int, lineage: bytes, group: frozenset[str], now: float) -> None:
        self.lineages = {step: known for step, known in self.lineages.items() if step < outer_step}
        self.lineages[outer_step] = lineage
        self.lineages.pop(outer_step - KEPT_LINEAGES, None)
        self.group = group
        for motion in self._motions.values():
            motion.at = now

    def saw(self, peer: str, status: Status, now: float) -> bool:
        """Take in a status; whether the peer has just become a member that can be spoken to."""
        known, self._members = self.alive.get(peer), None
        self.alive[peer] = status
        self.lost.pop(peer, None)
        self.unreachable.discard(peer)
        if known is None or (known.role, known.outer_step) != (status.role, status.outer_step):
            self.since[peer] = now
        motion = self._motions.setdefault(peer, _Motion(status.progress, now))
        if known is None:
            motion.progress, motion.at = status.progress, now
        elif status.progress != motion.progress:
            if status.outer_step == known.outer_step and status.progress > motion.progress:
                taken_s = (now - motion.at) / (status.progress - motion.progress)
                motion.inner_step_s = 0.5 * (min(motion.inner_step_s, 2 * taken_s) + taken_s)
            motion.progress, motion.at = status.progress, now
        elif status.outer_step != known.outer_step:
            # It has only now what it trains on from.
            motion.at = now
        return status.is_member and (known is None or not known.is_member)

    def down(self, peer: str, left: bool, now: float) -> None:
        self._members = None
        self.alive.pop(peer, None)
        self.since.pop(peer, None)
        self.refuted.pop(peer, None)
        self.vain.pop(peer, None)
        self.still.discard(peer)
        self.unreachable.discard(peer)
        if not left:
            self.lost[peer] = now
        # Names cost a stranger nothing.
        gone = [other for other, at in self.lost.items() if now > at + REDIAL_MOST_S]
        for other in {*gone, *([peer] if left else [])}.difference(self.group):
            self.lost.pop(other, None)
            self.unreachable.discard(other)
            self._motions.pop(other, None)
            self.tokens.pop(other, None)

    def refute(self, *peers: str) -> bool:
        """Nobody confirms what these say of themselves: until they say something else they do not count.

        Returns: whether that is news.
        """
        self._members = None
        before = dict(self.refuted)
        self.refuted |= {peer: self.alive[peer].lineage for peer in peers if peer in self.alive}
        return self.refuted != before

    def slept(self, seconds: float) -> None:
        """Nobody's training stood still because this peer did."""
        for motion in self._motions.values():
            motion.at += seconds

    def lost_until(self, now: float) -> float | None:
        """Until when somebody may still be dialled back; to begin without a peer whose link hiccuped forks the run.

        Whom a new dial did not reach is waited for no more, unless it is this peer that was cut off.
        """
        here = len(self.group & {self.peer, *self.alive})
        cut_off = here < len(self.group & self.lost.keys())
        wait_s = REDIAL_MOST_S if cut_off else REDIAL_S
        waited_for = (at for peer, at in self.lost.items() if cut_off or peer not in self.unreachable)
        until = max(waited_for, default=now - wait_s) + wait_s
        return until if until > now else None

    def members(self) -> list[tuple[str, Status]]:
        """Linked peers with a state of the run that can be believed, sorted."""
        if self._members is None:
            self._members = [
                (peer, status)
                for peer, status in sorted(self.alive.items())
                if status.is_member and self.refuted.get(peer) != status.lineage
            ]
        return self._members

    def worth_waiting_for(self, entry: MemberEntry) -> bool:
        """A late share is, but after one did not come only once a quarter more work is in it."""
        return entry.weight >= 1.25 * self.vain.get(entry.peer, 0)

    def trains(self, peer: str) -> bool:
        """Whether a linked peer contributes, as far as it says."""
        return peer in self.alive and self.alive[peer].role != Role.AUXILIARY

    def on_fork(self, status: Status) -> bool:
        """Whether the status is of another history than this peer's, as far as the two can be compared."""
        known = self.lineages.get(status.outer_step)
        return known is not None and known != status.lineage

    def ahead(self, position: tuple[int, int, bytes]) -> list[str]:
        """Members that this peer, at ``position``, has to go over to, the furthest first."""
        further = [(status.position, peer) for peer, status in self.members() if status.position > position]
        return [peer for _, peer in sorted(further, reverse=True)]

    def still_at(self, peer: str) -> float:
        """When a peer that is in its inner phase and does not move is given up."""
        motion = self._motions[peer]
        return motion.at + max(STILL_LEAST_S, STILL_STEPS * motion.inner_step_s)

    def moving(self, lineage: bytes, ready: Collection[str]) -> list[str]:
        """Members that are in their inner phase of the step, as far as their progress shows."""
        return [
            peer
            for peer, status in self.members()
            if status.lineage == lineage and peer not in ready and peer not in self.still
        ]

    def count_out_still(self, lineage: bytes, ready: Collection[str], now: float) -> list[str]:
        """Those of them that have stood still for too long; nobody waits for them any more."""
        still = [peer for peer in self.moving(lineage, ready) if now >= self.still_at(peer)]
        self.still.update(still)
        return still

    def inner_step_s(self, peer: str) -> float:
        return self._motions[peer].inner_step_s if peer in self._motions else 0.0
