"""What happens under a descriptor, as its leader and as a member: shares out, results in and told of, the commit.

How a descriptor comes to be is in ``leader``, who is reduced for in ``reducer``, what a commit does in ``commits``.
"""

from runtime.averaging import plan
from runtime.averaging.commits import Commits
from runtime.averaging.events import Action, ResultReady, Send, SendResult, Strike
from runtime.averaging.leader import Leader
from runtime.averaging.messages import Commit, Descriptor, Held
from runtime.averaging.reducer import Reducer
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step


class Following:
    """One peer's part in the round that is under way. Times are loop time in seconds."""

    def __init__(self, peer: str, roster: Roster, leader: Leader, reducer: Reducer, commits: Commits) -> None:
        self._peer, self._roster = peer, roster
        self._leader, self._reducer, self._commits = leader, reducer, commits

    def announce(self, step: Step, descriptor: Descriptor, now: float) -> list[Action]:
        step.leading, step.told, step.others_spread_at = descriptor, {}, None
        # Also to those who are not in it: they are to know that this attempt has its leader.
        others: list[Action] = [Send(peer, descriptor) for peer in sorted(self._roster.alive)]
        return others + self.follow(step, descriptor, now)

    def on_descriptor(self, step: Step, sender: str, descriptor: Descriptor, now: float) -> list[Action]:
        if descriptor.outer_step != step.outer_step or descriptor.attempt < step.attempt or step.commit is not None:
            return []
        if (descriptor.lineage, descriptor.state) != (step.lineage, step.state):
            return []
        known = step.descriptor
        if known is not None:
            rival = known.attempt == descriptor.attempt and known.leader != descriptor.leader
            if rival or descriptor.order <= known.order:
                return []
        if reason := step.objection_to(descriptor):
            return [Strike(sender, reason)]
        return self.follow(step, descriptor, now)

    def follow(self, step: Step, descriptor: Descriptor, now: float) -> list[Action]:
        actions = self._reducer.follow(step, descriptor, now)
        if self._peer in descriptor.peers:
            for shard in range(descriptor.n_shards):
                actions += (
                    self._tell(step, shard, now) if shard in step.held else self._reducer.reduce(step, shard, now)
                )
        return actions

    def on_result(self, step: Step, event: ResultReady, now: float) -> list[Action]:
        descriptor, shard = step.descriptor, event.shard
        if descriptor is None or descriptor.plan_id != event.plan_id:
            return []
        step.here.add((shard, event.digest))
        if shard in step.held:
            return []
        reducer = descriptor.reducers[shard]
        wanted = step.commit.digests[shard] if step.commit else descriptor.settled[shard]
        if event.sender is None:
            step.fetching.discard((shard, event.digest))
        if event.digest != wanted if wanted else event.sender not in (None, descriptor.peers[reducer]):
            return []
        step.held[shard], step.holder[shard] = event.digest, reducer
        if step.commit is not None:
            return self._commits.apply_if_complete(step, now)
        actions = self._tell(step, shard, now)
        if event.sender == self._peer:
            others = tuple(peer for peer in descriptor.peers if peer != self._peer and peer in self._roster.alive)
            actions.insert(0, SendResult(descriptor, shard, others))
        return actions

    def _tell(self, step: Step, shard: int, now: float) -> list[Action]:
        held = self._commits.held(step, shard)
        if held is None or step.descriptor is None:
            return []
        if step.descriptor.leader == self._peer:
            return self.on_held(step, self._peer, held, now)
        return [Send(step.descriptor.leader, held)]

    def on_held(self, step: Step, sender: str, held: Held, now: float) -> list[Action]:
        leading = step.leading
        if leading is None or (held.outer_step, held.attempt, held.revision) != (step.outer_step, *leading.order):
            return []
        if sender not in leading.peers or held.shard >= leading.n_shards:
            return [Strike(sender, "holds a shard that it cannot hold")]
        step.told.setdefault(sender, {})[held.shard] = held.digest
        digests = plan.decided_digests(leading, step.told)
        if digests is None:
            return self.replace(step, now)
        commit = Commit(leading, digests)
        return [Send(None, commit), *self._commits.on_commit(step, self._peer, commit, now)]

    def replace(self, step: Step, now: float) -> list[Action]:
        descriptor = self._leader.replace(step, now)
        return self.announce(step, descriptor, now) if descriptor else []
