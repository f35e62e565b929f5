"""What a member does under a descriptor: sends its shares to the reducers, reduces its own shards, gets the results."""

from runtime.averaging.events import Action, Collect, Fetch, Follow, Reduce, SendContribution, SendResult
from runtime.averaging.messages import Descriptor
from runtime.averaging.pace import LEAST_WAIT_S, Pace
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step, Terms


class Reducer:
    """The member's side of each attempt. Times are loop time in seconds."""

    def __init__(self, terms: Terms, roster: Roster, pace: Pace) -> None:
        self._terms, self._roster, self._pace = terms, roster, pace

    def follow(self, step: Step, descriptor: Descriptor, now: float) -> list[Action]:
        known, step.descriptor, step.followed_at = step.descriptor, descriptor, now
        if descriptor.attempt > step.attempt:
            step.attempt, step.leading, step.attempt_at = descriptor.attempt, None, now
        if known is None or known.plan_id != descriptor.plan_id:
            step.forget_plan()
        actions: list[Action] = [Follow(descriptor)]
        if self._terms.peer not in descriptor.peers:
            return actions
        me = descriptor.peers.index(self._terms.peer)
        for shard, reducer in enumerate(descriptor.reducers):
            if digest := descriptor.settled[shard]:
                if (shard, digest) in step.here:
                    step.held[shard], step.holder[shard] = digest, reducer
                else:
                    step.held.pop(shard, None)
                    actions += self._fetch(step, descriptor, shard, digest)
                continue
            if shard in step.held and step.holder[shard] != reducer:
                del step.held[shard]
            if reducer != me or shard not in step.held:
                step.reduced.discard(shard)
            if step.contributes and (shard, reducer) not in step.sent:
                step.sent.add((shard, reducer))
                if reducer == me:
                    if self._terms.trains:
                        step.arrived.setdefault(shard, set()).add(me)
                    actions.append(Collect(shard))
                elif self._terms.trains:
                    actions.append(SendContribution(descriptor, shard, descriptor.peers[reducer]))
        return actions

    def send_again(self, step: Step, peer: str) -> list[Action]:
        """What a peer that is back may have lost with its connection: the share for it to reduce, and my results."""
        descriptor = step.descriptor
        if descriptor is None or peer not in descriptor.peers or not step.contributes:
            return []
        again: list[Action] = []
        for shard, reducer in enumerate(descriptor.reducers):
            if descriptor.settled[shard]:
                continue
            if descriptor.peers[reducer] == peer and self._terms.trains:
                step.sent.add((shard, reducer))
                again.append(SendContribution(descriptor, shard, peer))
            elif descriptor.peers[reducer] == self._terms.peer and shard in step.held:
                again.append(SendResult(descriptor, shard, (peer,)))
        return again

    def _fetch(self, step: Step, descriptor: Descriptor, shard: int, digest: bytes) -> list[Action]:
        if (shard, digest) in step.fetching:
            return []
        step.fetching.add((shard, digest))
        leader_first = sorted(self._roster.alive, key=lambda peer: (peer != descriptor.leader, peer))
        return [Fetch(descriptor, shard, digest, tuple(leader_first))]

    def on_arrived(self, step: Step, plan_id: bytes, shard: int, sender: str, now: float) -> list[Action]:
        descriptor = step.descriptor
        if descriptor is None or descriptor.plan_id != plan_id or sender not in descriptor.peers:
            return []
        step.arrived.setdefault(shard, set()).add(descriptor.peers.index(sender))
        if now <= step.half_arrived_at.get(shard, now) + LEAST_WAIT_S:
            self._roster.vain.pop(sender, None)
        if 2 * len(step.arrived[shard]) > len(descriptor.trainers):
            step.half_arrived_at.setdefault(shard, now)
        return self.reduce(step, shard, now)

    def deadlines(self, step: Step) -> list[float]:
        return [self._shares_by(step, shard) for shard in step.collecting() if self._enough(step, shard)]

    def _enough(self, step: Step, shard: int) -> bool:
        return len(step.arrived.get(shard, ())) >= self._terms.quorum

    def _shares_by(self, step: Step, shard: int) -> float:
        """When the shares of a shard that are not here are given up."""
        assert step.descriptor is not None
        arrived, half_at = step.arrived.get(shard, set()), step.half_arrived_at.get(shard)
        here = sum(step.descriptor.members[index].weight for index in arrived)
        missing = [step.descriptor.members[index] for index in step.descriptor.trainers if index not in arrived]
        hoped = sum(entry.weight for entry in missing if self._roster.worth_waiting_for(entry))
        return self._pace.shares_by(step.followed_at, half_at, here, hoped)

    def reduce(self, step: Step, shard: int, now: float) -> list[Action]:
        """Reduce a shard once every member's share is here, or the member gone, or its time over."""
        if shard not in step.collecting():
            return []
        assert step.descriptor is not None
        arrived = step.arrived.get(shard, set())
        late = [step.descriptor.members[index] for index in step.descriptor.trainers if index not in arrived]
        waiting = [entry for entry in late if entry.peer in self._roster.alive]
        if (waiting and now < self._shares_by(step, shard)) or not self._enough(step, shard):
            return []
        step.reduced.add(shard)
        for entry in waiting:
            if self._roster.worth_waiting_for(entry):
                self._roster.vain[entry.peer] = entry.weight
        return [Reduce(step.descriptor, shard, tuple(sorted(arrived)))]

    def fetch_missing(self, step: Step) -> list[Action]:
        descriptor = step.descriptor
        if descriptor is None:
            return []
        wanted = step.commit.digests if step.commit else descriptor.settled
        return [
            action
            for shard, digest in enumerate(wanted)
            if digest and shard not in step.held
            for action in self._fetch(step, descriptor, shard, digest)
        ]
