"""What a leader decides and when: whom it waits for, when it begins, and which reducer it replaces."""

from statistics import median_high

from runtime.averaging import plan
from runtime.averaging.codecs.choice import chosen
from runtime.averaging.messages import Descriptor
from runtime.averaging.pace import Pace
from runtime.averaging.roster import Roster
from runtime.averaging.step import Step, Terms

# A shard that is behind all others by this much goes to another reducer, at least.
SLOW_REDUCER_LEAST_S = 0.5


class Leader:
    """The leader's side of each attempt that falls to this peer. Times are loop time in seconds."""

    def __init__(self, terms: Terms, roster: Roster, pace: Pace) -> None:
        self._terms, self._roster, self._pace = terms, roster, pace

    def may_begin(self, step: Step, now: float) -> bool:
        return (
            not step.begun
            and step.leading is None
            and step.behind_since is None
            and not step.resyncing
            and step.commit is None
            and step.first_ready_at is not None
            and step.can_form(step.ready_now(self._roster.alive), self._roster)
            and step.elected(self._roster, now) == self._terms.peer
        )

    def begin_at(self, step: Step, now: float) -> float | None:
        """When to look again whether this attempt begins, None if a message or a loss has to come first."""
        if not self.may_begin(step, now):
            return None
        if (lost_until := self._roster.lost_until(now)) is not None:
            return lost_until
        if step.undecidable == step.ready_now(self._roster.alive).keys() or self._unheard(step, now):
            return None
        return self.begin_by(step, now)

    def begin(self, step: Step, now: float) -> Descriptor | None:
        """The descriptor of this attempt, once those who are waited for are ready or have had their time."""
        if not self.may_begin(step, now) or self._roster.lost_until(now) is not None or self._unheard(step, now):
            return None
        ready = step.ready_now(self._roster.alive)
        if not ready.keys() >= set(step.expected(self._roster, now)) and now < self.begin_by(step, now):
            return None
        terms = self._terms
        majority = terms.on_partition == "stop"
        descriptor = plan.next_descriptor(
            ready,
            terms.run_id,
            step.outer_step,
            step.attempt,
            terms.peer,
            terms.n_elements,
            chosen(terms.codec, terms.codec_costs, plan.slowest_link(ready.values()), len(ready)),
            terms.quorum,
            self._roster.group if majority else (),
        )
        if plan.decidable(descriptor):
            return descriptor
        step.undecidable = frozenset(ready)
        return None

    def begin_by(self, step: Step, now: float) -> float:
        """When the leader stops waiting for who is not ready."""
        assert step.first_ready_at is not None
        missing = [peer for peer in step.expected(self._roster, now) if peer not in step.readies]
        inner_step_s = max((self._roster.inner_step_s(peer) for peer in missing), default=0.0)
        until = self._pace.begin_by(step.first_ready_at, self.stop_at(step, now), inner_step_s)
        # From the second attempt on the others need only say that they are with it.
        return until if step.attempt == 0 else max(until, step.attempt_at + 0.5)

    def stop_at(self, step: Step, now: float) -> float:
        """When those who are still training stop, as everyone finds out alike from the Readys.

        At once when all who are missing would need half a phase more than the first: what they have counts in any case.
        """
        assert step.first_ready_at is not None
        ready = [(step.readies[peer].weight, since) for peer, since in step.ready_since.items()]
        expected = step.expected(self._roster, now)
        missing = [peer for peer in expected if peer not in step.readies]
        # Not the most: that is of a peer which carries over what missed the last step.
        known = [self._roster.tokens[peer] for peer in {*expected, *step.readies} if peer in self._roster.tokens]
        usual, usual_s = median_high(known), self._pace.phase_s
        if usual_s is not None:
            until = step.first_ready_at + 0.5 * usual_s
            missing = [peer for peer in missing if self._done_at(step, peer, usual, usual_s) <= until]
        elif step.outer_step > 0 and self._terms.peer in missing:
            # This peer has come in the middle of the others' phase.
            missing = []
        if not missing:
            return max(since for _, since in ready)
        return self._pace.stop_at(step.begun_at, ready, sum(self._roster.tokens.get(peer, usual) for peer in missing))

    def _done_at(self, step: Step, peer: str, usual: int, usual_s: float) -> float:
        """When a peer has trained as much as the others, if it is as fast as in its last contribution."""
        pace = max(1.0, usual / max(1, self._roster.tokens.get(peer, usual)))
        return self._roster.since.get(peer, step.begun_at) + usual_s * pace

    def replace_at(self, step: Step, now: float) -> float | None:
        """When a reducer that lives becomes too slow, None while none is behind all others."""
        slow = self._slow(step)
        if slow is None or step.others_spread_at is None:
            return None
        return step.others_spread_at + max(SLOW_REDUCER_LEAST_S, step.others_spread_at - step.followed_at)

    def replace(self, step: Step, now: float) -> Descriptor | None:
        """The next revision where a reducer is dead, or behind all others for too long; None if nothing changes."""
        if step.leading is None:
            return None
        here = {*self._roster.alive, self._terms.peer}
        slow = self._slow(step)
        if slow is None:
            step.others_spread_at = None
        elif step.others_spread_at is None:
            step.others_spread_at = now
        elif now >= (self.replace_at(step, now) or now):
            reducer = step.leading.peers[step.leading.reducers[slow]]
            step.moved.add(slow)
            if len(here.intersection(step.leading.peers)) > 2:
                here.discard(reducer)
        return plan.reassigned_descriptor(step.leading, here, step.told)

    def _slow(self, step: Step) -> int | None:
        """The one shard that is held by few while all others are held by more than half of the voters."""
        leading = step.leading
        if leading is None or leading.n_shards < 2:
            return None
        few = [
            shard
            for shard in range(leading.n_shards)
            if 2 * sum(shard in held for held in step.told.values()) <= len(leading.voters)
        ]
        reducers = {leading.reducers[shard] for shard in few}
        if len(reducers) != 1 or few[0] in step.moved or leading.settled[few[0]]:
            return None
        return few[0]

    def _unheard(self, step: Step, now: float) -> set[str]:
        """Voters of earlier attempts who live and have not said what they accepted: a commit may rest on it."""
        ready = step.ready_now(self._roster.alive)
        seen = {one.following for one in ready.values() if one.following} | {step.descriptor} - {None}
        voters = {descriptor.peers[index] for descriptor in seen if descriptor for index in descriptor.voters}
        return voters.intersection(step.expected(self._roster, now)) - ready.keys() - {self._terms.peer}
