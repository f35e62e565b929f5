"""What members say to each other about one outer step. All digests are SHA-256."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgpack

from peers.wire import Codec, Digest, Length, PeerId, RunId

MAX_MEMBERS = 256
MOST_TOKENS = 1 << 40
"""Of one contribution: a run can then take millions of steps before its count of tokens does not fit on the wire."""
MOST_LOSS = 1e9
MOST_ATTEMPTS = 1_000_000
"""Nobody tries so often: a Ready that says so wants to push the others out of what fits on the wire."""


@dataclass(frozen=True)
class Figures:
    """What a member says of itself for those who watch: its own word, by which nothing is decided.

    Whole numbers, since a group's figures go to everyone in every round.
    """

    device: Annotated[str, Length(0, 16)]
    """What it trains on, as torch names it; empty where it does not train."""
    tokens_per_s: int
    trained_ms: int
    """Of its last inner phase."""
    waited_ms: int
    """From the end of the phase before until this one began: the round, and waiting for others."""
    up: int
    """Of its link as measured, bytes a second; 0 while it is not known."""
    down: int
    sent_bytes: int
    """Of rounds, since its process began; ``received_bytes`` as well."""
    received_bytes: int
    error_ppm: int | None
    """Relative L2 error of its last contribution as it was sent, in millionths."""
    strikes: int
    """That it has recorded of others."""
    dialable: bool = True
    """As in ``Ready``."""


@dataclass(frozen=True)
class MemberEntry:
    """One member of a group: ``weight`` in tokens, ``loss`` its mean training loss in nats a token or None."""

    peer: PeerId
    weight: int
    loss: float | None
    trains: bool = True
    """Who does not is auxiliary: it reduces and votes, and contributes nothing."""
    figures: Figures | None = None


@dataclass(frozen=True)
class Descriptor:
    """A leader's word on how an outer step is reduced: everything that can change a bit of the result is in it.

    The *plan* (who contributes what weight, where shards begin, the codec) decides the bytes that members send; it
    survives a change of leader or of reducers, and with it what was already sent. ``(attempt, revision)`` orders the
    descriptors of an outer step, and a member follows the highest it has seen.
    """

    run_id: RunId
    outer_step: int
    lineage: Digest
    state: Digest
    """Digest of anchor and momentum before the step."""
    attempt: int
    revision: int
    leader: PeerId
    members: Annotated[tuple[MemberEntry, ...], Length(1, MAX_MEMBERS)]
    """Sorted by peer id; the rest speaks of members by their index here."""
    bounds: Annotated[tuple[int, ...], Length(2, MAX_MEMBERS + 1)]
    """Shard j is the elements ``bounds[j]`` to ``bounds[j + 1]``."""
    codec: Annotated[str, Length(1, 16)]
    reducers: Annotated[tuple[int, ...], Length(1, MAX_MEMBERS)]
    """The member that reduces each shard."""
    settled: Annotated[tuple[Annotated[bytes, Length(0, 32)], ...], Length(1, MAX_MEMBERS)]
    """Digest of each shard's result where one exists and is only to be fetched; empty where it is to be reduced."""
    voters: Annotated[tuple[int, ...], Length(1, MAX_MEMBERS)]
    """Members that must hold all results before they are committed: more than half of the ``electors``."""
    electors: int
    """How many could vote: the voters, or where a run allows only majorities its last group."""

    @cached_property
    def plan_id(self) -> bytes:
        """32 bytes that name the plan."""
        entries = [[entry.peer, entry.weight, entry.trains] for entry in self.members]
        plan = [self.run_id, self.outer_step, self.lineage, self.state, entries, self.bounds, self.codec]
        return hashlib.sha256(b"atoll plan" + msgpack.packb(plan)).digest()

    @cached_property
    def peers(self) -> tuple[str, ...]:
        return tuple(entry.peer for entry in self.members)

    @cached_property
    def trainers(self) -> tuple[int, ...]:
        """Those who contribute."""
        return tuple(index for index, entry in enumerate(self.members) if entry.trains)

    def turn(self, sender: str, to: str) -> int:
        """When a member sends to another: each to its next neighbour first, so that no two meet at a third."""
        return (self.peers.index(to) - self.peers.index(sender)) % len(self.members)

    @property
    def n_shards(self) -> int:
        return len(self.reducers)

    @property
    def order(self) -> tuple[int, int]:
        return self.attempt, self.revision

    def check(self, n_elements: int, block: int) -> None:
        """Raises: ValueError if the parts do not fit together or a vector of ``n_elements``."""
        n, peers = len(self.members), list(self.peers)
        if peers != sorted(set(peers)):
            raise ValueError("members are not sorted and distinct")
        if self.bounds[0] != 0 or self.bounds[-1] != n_elements or list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"bounds do not cover {n_elements} elements once")
        if any(bound % block for bound in self.bounds[:-1]):
            raise ValueError(f"a shard does not begin at a multiple of {block}")
        if not len(self.reducers) == len(self.settled) == len(self.bounds) - 1:
            raise ValueError("reducers, settled and bounds differ in length")
        if self.attempt > MOST_ATTEMPTS or self.revision > MOST_ATTEMPTS:
            raise ValueError(f"attempt {self.attempt}, revision {self.revision}")
        if any(entry.weight > MOST_TOKENS or abs(entry.loss or 0.0) > MOST_LOSS for entry in self.members):
            raise ValueError("a weight or a loss that no training has")
        if any(index >= n for index in (*self.reducers, *self.voters)):
            raise ValueError(f"an index beyond {n} members")
        if not self.trainers:
            raise ValueError("nobody in it trains")
        if list(self.voters) != sorted(set(self.voters)):
            raise ValueError("voters are not sorted and distinct")
        if not len(self.voters) <= self.electors < 2 * len(self.voters):
            raise ValueError(f"{len(self.voters)} voters of {self.electors}")
        if any(len(digest) not in (0, 32) for digest in self.settled):
            raise ValueError("a settled digest of a wrong length")


@dataclass(frozen=True)
class Accepted:
    """A member once held results of all shards under this descriptor and said so: they may have been committed."""

    descriptor: Descriptor
    digests: Annotated[tuple[Digest, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True)
class Ready:
    """To everyone: my inner steps are done, and I follow no leader of an earlier attempt any more."""

    outer_step: int
    attempt: int
    lineage: Digest
    state: Digest
    weight: int
    loss: float | None
    following: Descriptor | None
    """The last descriptor that the sender followed; none at the first attempt."""
    accepted: Accepted | None
    held: Annotated[tuple[Annotated[bytes, Length(0, 32)], ...], Length(0, MAX_MEMBERS)] = ()
    """Digests of the results that it holds under ``following``, by shard; empty where it holds none."""
    up: int = 0
    """Of its link as measured, bytes a second; 0 while it is not known."""
    down: int = 0
    dialable: bool = True
    """Whether others reach it directly, as far as it knows; who cannot be dialled reduces nothing."""
    trains: bool = True
    """As in ``MemberEntry``; who does not is ready as soon as it has the state."""
    figures: Figures | None = None


@dataclass(frozen=True)
class Begin:
    """From the leader to the group: a sealed ``Descriptor``."""

    sealed: Annotated[bytes, Length(1, 1 << 17)]


@dataclass(frozen=True)
class Held:
    """To the leader: under this descriptor I hold the whole result of this shard."""

    outer_step: int
    attempt: int
    revision: int
    shard: int
    digest: Digest


@dataclass(frozen=True)
class Commit:
    """The end of an outer step: these results are applied. Sealed by its leader, so that anyone can pass it on."""

    descriptor: Descriptor
    digests: Annotated[tuple[Digest, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True)
class Committed:
    """To everyone: a sealed ``Commit``."""

    sealed: Annotated[bytes, Length(1, 1 << 17)]


@dataclass(frozen=True)
class CommitRequest:
    """Others are ahead of me: send me the commit of this outer step."""

    outer_step: int


@dataclass(frozen=True)
class Past:
    """The commit of this outer step is past: it is not kept any more, or yours was another.

    ``lineage`` is the sender's before that step, empty if it does not know.
    """

    outer_step: int
    lineage: Annotated[bytes, Length(0, 32)]


ROUND = Codec(Ready, Begin, Held, Committed, CommitRequest, Past)
SIGNED = Codec(Descriptor, Commit)
DESCRIPTOR_CONTEXT = "atoll round descriptor"
COMMIT_CONTEXT = "atoll commit"
