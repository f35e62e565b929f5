"""The invariants of the design, checked in every simulated peer after every event and at every applied step."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from plain import plain_result, result_digest
from torch import Tensor

from runtime.averaging import events
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.driver import Averager
from runtime.averaging.messages import Commit, Descriptor


@dataclass(frozen=True)
class Contribution:
    tokens: int
    pseudo_gradient_P: Tensor


@dataclass
class Ledger:
    """All that any peer of a swarm has ever contributed, held, committed and applied."""

    quorum: int
    forks_allowed: bool = False
    """Whether something has happened since which two histories may both go on."""
    parents: dict[bytes, bytes | None] = field(default_factory=dict)
    """Lineage -> the one before it; the first has none."""
    states: dict[bytes, bytes] = field(default_factory=dict)
    """Lineage -> digest of anchor and momentum."""
    tokens: dict[bytes, int] = field(default_factory=dict)
    steps: dict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """Outer step -> the lineages that it was committed with."""
    trained: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Tokens that a peer has trained in its inner steps, whatever became of them."""
    _counted: dict[bytes, dict[str, float]] = field(default_factory=dict)
    _contributions: dict[tuple[str, bytes], list[Contribution]] = field(default_factory=lambda: defaultdict(list))
    _accepted: dict[tuple[Descriptor, tuple[bytes, ...]], set[str]] = field(default_factory=lambda: defaultdict(set))
    _valid: set[bytes] = field(default_factory=set)
    corrupted: set[str] = field(default_factory=set)
    """Peers in whose state a bit was flipped, until they have another: what they say of it is not the history's."""

    def root(self, lineage: bytes, state: bytes) -> None:
        self.parents.setdefault(lineage, None)
        self.states.setdefault(lineage, state)
        self.tokens.setdefault(lineage, 0)
        self._counted.setdefault(lineage, {})

    def watch(self, averager: Averager) -> None:
        """Check this peer from now on."""
        machine, peer = averager.machine, averager.machine.peer
        handle, apply = machine.handle, averager._applying._apply
        mean, contributors = averager._results.mean, list[tuple[int, ...]]()
        leaders: dict[tuple[bytes, int, int], str] = {}

        def checked_handle(event: events.Event, now: float) -> list[events.Action]:
            if isinstance(event, events.ContributionReady) and averager._results.own_P is not None:
                mine = Contribution(event.weight, averager._results.own_P.clone())
                self._contributions[peer, averager.lineage].append(mine)
            if isinstance(event, events.StepBegun):
                if event.loaded:
                    self.corrupted.discard(peer)
                if peer not in self.corrupted:
                    self._begun(event)
            actions = handle(event, now)
            machine.validate()
            if (followed := machine.descriptor) is not None and machine.pending_commit is None:
                leader = leaders.setdefault((followed.lineage, followed.outer_step, followed.attempt), followed.leader)
                assert leader == followed.leader, "agreement: followed two leaders in one attempt"
            if machine._step is not None and (accepted := machine._step.accepted) is not None:
                self._accepted[accepted.descriptor, accepted.digests].add(peer)
            return actions

        def noted_mean(commit: Commit) -> tuple[Tensor, list[tuple[int, ...]]]:
            mean_P, contributors[:] = mean(commit)
            return mean_P, contributors

        async def checked_apply(commit: Commit) -> events.StepBegun:
            before, outer_step = averager.lineage, averager._trainer.outer_step
            assert commit.descriptor.outer_step == outer_step, "a step was applied out of turn"
            assert commit.descriptor.lineage == before, "a step was applied to another history"
            begun = await apply(commit)
            self._check_commit(commit, contributors)
            if peer not in self.corrupted:
                self._applied(before, begun, commit.descriptor, contributors)
            return begun

        machine.handle = checked_handle  # type: ignore[method-assign]
        averager._applying._apply = checked_apply  # type: ignore[method-assign]
        averager._results.mean = noted_mean  # type: ignore[method-assign]

    def _begun(self, event: events.StepBegun) -> None:
        assert event.lineage in self.parents, "no usurper: a history that begins with nobody's weights"
        assert self.states[event.lineage] == event.state, "agreement: one lineage, two states"
        assert self.tokens[event.lineage] == event.tokens, "one lineage, two counts of tokens"

    def _check_commit(self, commit: Commit, contributors: list[tuple[int, ...]]) -> None:
        descriptor = commit.descriptor
        holders = self._accepted[descriptor, commit.digests].intersection(
            descriptor.peers[index] for index in descriptor.voters
        )
        assert 2 * len(holders) > descriptor.electors, (
            f"no step over: applied what {len(holders)} of {descriptor.electors} held"
        )
        for shard, indices in enumerate(contributors):
            assert len(indices) >= self.quorum, "validity: fewer contributions than the quorum"
            assert len(set(indices)) == len(indices), "validity: a contribution twice in a shard"
            assert set(indices) <= set(descriptor.trainers), "validity: a contribution of who does not train"
            if commit.digests[shard] not in self._valid:
                assert self._is_mean(commit, shard, indices), "validity: a shard is not the mean of its contributions"
                self._valid.add(commit.digests[shard])

    def _is_mean(self, commit: Commit, shard: int, indices: tuple[int, ...]) -> bool:
        """Whether the shard is what plain arithmetic makes of the contributions.

        A peer that came back after a crash has two contributions of one weight, and either may be meant.
        """
        descriptor, codec = commit.descriptor, codec_named(commit.descriptor.codec)
        start, stop = descriptor.bounds[shard : shard + 2]
        weights = [entry.weight for entry in descriptor.members]
        versions: list[list[Tensor]] = []
        for index in indices:
            made = self._contributions[descriptor.peers[index], descriptor.lineage]
            parts = [one.pseudo_gradient_P[start:stop] for one in made if one.tokens == weights[index]]
            versions.append(parts)
        for chosen in itertools.product(*versions):
            data = plain_result(codec, dict(zip(indices, chosen, strict=True)), weights)
            if result_digest(data) == commit.digests[shard]:
                return True
        return False

    def _applied(
        self, before: bytes, begun: events.StepBegun, descriptor: Descriptor, contributors: list[tuple[int, ...]]
    ) -> None:
        lineage = begun.lineage
        if lineage not in self.parents:
            self.parents[lineage], self.states[lineage] = before, begun.state
            self.tokens[lineage] = begun.tokens
            self.steps[begun.outer_step].add(lineage)
            self._counted[lineage] = self._count(self._counted[before], descriptor, contributors)
        assert self.parents[lineage] == before, "one lineage with two pasts"
        # Cut down to whole tokens for each member of each step.
        in_all = sum(self._counted[lineage].values())
        assert begun.tokens <= in_all + 1e-6, f"validity: {begun.tokens} tokens in a history, of {in_all:.0f} counted"
        self._begun(begun)
        assert begun.tokens > self.tokens[before], "an outer step without any work in it"
        assert self.forks_allowed or len(self.steps[begun.outer_step]) == 1, (
            f"agreement: outer step {begun.outer_step} has {len(self.steps[begun.outer_step])} results"
        )

    def _count(
        self, counted: dict[str, float], descriptor: Descriptor, contributors: list[tuple[int, ...]]
    ) -> dict[str, float]:
        """Tokens of each peer in a history, a shard's share of them for each shard that they are in."""
        counted = dict(counted)
        for shard, indices in enumerate(contributors):
            share = (descriptor.bounds[shard + 1] - descriptor.bounds[shard]) / descriptor.bounds[-1]
            for index in indices:
                entry = descriptor.members[index]
                counted[entry.peer] = counted.get(entry.peer, 0.0) + entry.weight * share
        for peer, tokens in counted.items():
            # A trainer cuts carried tokens down to whole ones, so it can only be less.
            assert tokens <= self.trained[peer] + 1e-6, (
                f"validity: {tokens} tokens of {peer[-6:]} counted, who trained {self.trained[peer]}"
            )
        return counted
