"""What a member does about commits: votes by what it holds, takes one from anyone who has it, applies it or lets go."""

from dataclasses import replace

from runtime.averaging.events import Action, Apply, Event, Follow, ForwardCommit, MessageFrom, Report, Strike
from runtime.averaging.histories import Histories
from runtime.averaging.messages import Accepted, Commit, CommitRequest, Held, Ready
from runtime.averaging.pace import Pace
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step, Terms

# As often as this, a second apart, a result of a commit is fetched in vain before the commit is given up.
MOST_FETCHES = 3


class Commits:
    """The member's side of the end of each outer step. Times are loop time in seconds."""

    def __init__(self, terms: Terms, roster: Roster, pace: Pace, histories: Histories) -> None:
        self._terms, self._roster, self._pace, self._histories = terms, roster, pace, histories

    def held(self, step: Step, shard: int) -> Held | None:
        """What to tell the leader of a result that is here; None if its attempt is over."""
        descriptor = step.descriptor
        if descriptor is None or descriptor.attempt != step.attempt:
            return None
        if len(step.held) == descriptor.n_shards:
            step.accepted = Accepted(descriptor, tuple(step.held[shard] for shard in range(descriptor.n_shards)))
        return Held(step.outer_step, descriptor.attempt, descriptor.revision, shard, step.held[shard])

    def on_commit(self, step: Step, sender: str, commit: Commit, now: float) -> list[Action]:
        descriptor = commit.descriptor
        if descriptor.outer_step != step.outer_step or step.commit is not None:
            return []
        if commit in step.lost:
            if sender not in self._roster.ahead(step.position):
                return []
            # Whoever has applied it is back, and has its results.
            step.lost.discard(commit)
        if descriptor.lineage != step.lineage:
            return self._histories.other_history(step, sender, descriptor.lineage)
        if descriptor.state != step.state:
            if descriptor.leader not in descriptor.peers or step.misfit(replace(descriptor, state=step.state)):
                return [Strike(sender, "commit of a descriptor that does not hold together")]
            return self._histories.other_state(step, sender, descriptor)
        if reason := step.misfit(descriptor):
            return [Strike(sender, f"commit of a {reason}")]
        if len(commit.digests) != descriptor.n_shards:
            return [Strike(sender, "commit does not fit its descriptor")]
        actions: list[Action] = []
        followed = step.descriptor is not None and step.descriptor.plan_id == descriptor.plan_id
        if not followed:
            step.here, step.fetching = set(), set()
        if step.descriptor != descriptor:
            actions.append(Follow(descriptor))
        step.descriptor, step.commit, step.leading = descriptor, commit, None
        step.held = {shard: digest for shard, digest in enumerate(commit.digests) if (shard, digest) in step.here}
        # Results that are still on their way need about as long as the round has taken so far.
        step.fetch_at = now + (0.1 + (now - step.followed_at) if followed else 0.0)
        return actions + self.apply_if_complete(step, now)

    def apply_if_complete(self, step: Step, now: float) -> list[Action]:
        assert step.commit is not None
        if len(step.held) < step.commit.descriptor.n_shards:
            return []
        if step.own is not None and self._terms.peer in step.commit.descriptor.peers:
            self._pace.round(now - step.followed_at)
        step.applying = True
        return [Apply(step.commit)]

    def tell(self, step: Step, event: Event) -> list[Action]:
        """Answers of a peer about to apply a commit: that may take as long as its inner step, or hang with it."""
        match event:
            case MessageFrom(sender, Ready(outer_step=asked, lineage=lineage)) if lineage == step.lineage:
                return [ForwardCommit(sender, asked)] if asked <= step.outer_step else []
            case MessageFrom(sender, CommitRequest(outer_step)):
                return [ForwardCommit(sender, outer_step)]
        return []

    def give_up(self, step: Step, commit: Commit, shard: int, now: float) -> list[Action]:
        """After three fetches in vain: get the state from who applied the commit, or go on without it if nobody did.

        Args: shard is the one that has just been fetched in vain.
        """
        if self._roster.lost_until(now) is not None:
            # Who has the results may be back in a moment.
            return []
        step.failed_fetches[shard] += 1
        if step.failed_fetches[shard] < MOST_FETCHES:
            return []
        step.failed_fetches.clear()
        if self._roster.ahead(step.position):
            return self._histories.resync(step, f"nobody has the results of outer step {step.outer_step + 1} any more")
        step.lost.add(commit)
        step.commit, step.descriptor, step.fetch_at = None, None, None
        step.own = step.own or step.late
        step.forget_plan()
        return [Report("commit_lost", (("outer_step", step.outer_step + 1),))]
