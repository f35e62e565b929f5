"""Others that are ahead of this peer, and other histories of the run: who goes over to whom, and who is told.

Of two histories the one with more committed tokens stands (``Status.position``), and each peer finds out by itself on
which side it is.
"""

from peers.messages import Status
from runtime.averaging.events import Action, Report, Resync, Send
from runtime.averaging.messages import CommitRequest, Descriptor, Past
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step

# A heartbeat tells that others are ahead up to a second late; a commit on its way needs less than another.
BEHIND_S = 1.5
# Asking for one commit so often without an answer means that nobody keeps it any more.
MOST_ASKS = 3


class Histories:
    """Times are loop time in seconds."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._forks: dict[str, bytes] = {}

    def down(self, peer: str) -> None:
        self._forks.pop(peer, None)

    def notice_behind(self, step: Step, now: float) -> None:
        if not self._roster.ahead(step.position):
            step.behind_since = None
        elif step.behind_since is None:
            step.behind_since = now

    def compare(self, step: Step, peer: str, status: Status) -> list[Action]:
        """Find a fork by what a member says of itself: the lighter side is told, or goes over."""
        if peer not in dict(self._roster.members()) or status.outer_step not in self._roster.lineages:
            return []
        if not self._roster.on_fork(status):
            if self._forks.pop(peer, None) is None:
                return []
            healed = (("member", peer), ("outer_step", status.outer_step), ("lineage", status.lineage.hex()))
            return [Report("fork_healed", healed)]
        news = self._forks.get(peer) != status.lineage
        actions = self._found_fork(step, peer, status.lineage)
        if status.position > step.position:
            return actions + self.resync(step, "this peer is on the lighter side of a fork")
        if news:
            actions.append(Send(peer, Past(status.outer_step, self._roster.lineages[status.outer_step])))
        return actions

    def _found_fork(self, step: Step, peer: str, lineage: bytes) -> list[Action]:
        known, self._forks[peer] = peer in self._forks, lineage
        if known:
            return []
        status = self._roster.alive[peer]
        found = (
            ("member", peer),
            ("outer_step", status.outer_step),
            ("lineage", status.lineage.hex()),
            ("tokens", status.tokens),
            ("own_tokens", step.tokens),
        )
        return [Report("fork_found", found)]

    def other_history(self, step: Step, sender: str, lineage: bytes) -> list[Action]:
        """A member is past this step with another lineage before it, or without keeping its commit (empty)."""
        if sender not in self._roster.alive or self._roster.alive[sender].position <= step.position:
            return []
        if lineage in (b"", step.lineage):
            step.without_commit.add(sender)
            # A newcomer never had it; others may.
            if not step.without_commit.issuperset(self._roster.ahead(step.position)):
                return []
            return self.resync(step, f"the commit of outer step {step.outer_step} is not kept any more")
        found = self._found_fork(step, sender, lineage)
        return found + self.resync(step, "this peer is on the lighter side of a fork")

    def other_state(self, step: Step, sender: str, descriptor: Descriptor) -> list[Action]:
        """A step of this history was committed from another state than this peer's: a bit has flipped somewhere.

        The state that more peers have stands. Whoever lies about a commit is found out when its state is fetched.
        """
        if step.resyncing:
            return []
        found = Report("diverged", (("member", sender), ("outer_step", step.outer_step)))
        ours = [peer for peer, state in step.states.items() if state == step.state]
        # A descriptor may name anybody; who has said otherwise itself is not of that state.
        theirs = set(descriptor.peers).difference(ours, [step.terms.peer])
        if 1 + len(ours) > len(theirs):
            return [found] if self._roster.refute(*theirs) else []
        return [found, *self.resync(step, "this peer's state is not the one that was committed")]

    def ask_at(self, step: Step) -> float | None:
        return None if step.behind_since is None or step.resyncing else step.behind_since + BEHIND_S

    def ask(self, step: Step, now: float) -> list[Action]:
        """Ask those ahead for the commit of this step, when it is late."""
        ask_at = self.ask_at(step)
        if ask_at is None or now < ask_at or step.commit is not None:
            return []
        if step.asks >= MOST_ASKS:
            return self.resync(step, f"nobody has the commit of outer step {step.outer_step}")
        step.asks, step.behind_since = step.asks + 1, now
        return [Send(peer, CommitRequest(step.outer_step)) for peer in self._roster.ahead(step.position)[:3]]

    def resync(self, step: Step, reason: str) -> list[Action]:
        if step.resyncing:
            return []
        step.resyncing = True
        return [Resync(reason)]
