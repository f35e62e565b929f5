"""What goes into the round's state machine and what comes out of it. Names of peers are peer ids, digests 32 bytes."""

from dataclasses import dataclass

from peers.membership import Changed, Down, Gone, Slept, Up
from runtime.averaging.messages import Commit, CommitRequest, Descriptor, Figures, Held, Past, Ready

Message = Ready | Descriptor | Held | Commit | CommitRequest | Past
"""As the machine sees them: the driver has opened the seals of descriptors and commits and checked who signed."""


# Events


@dataclass(frozen=True)
class StepBegun:
    """This peer has the state of ``outer_step``: after an applied commit, or as ``loaded`` from disk or a member."""

    outer_step: int
    lineage: bytes
    state: bytes
    tokens: int = 0
    """Committed by the lineage so far."""
    group: frozenset[str] = frozenset()
    """Whose contributions are in the last committed step."""
    loaded: bool = False


@dataclass(frozen=True)
class ContributionReady:
    """The inner steps of ``outer_step`` are over. ``weight`` in tokens, ``loss`` their mean, None if not a number."""

    outer_step: int
    weight: int
    loss: float | None
    up: int = 0
    """Of this peer's link, bytes a second; 0 while it is not known."""
    down: int = 0
    dialable: bool = True
    figures: Figures | None = None


@dataclass(frozen=True)
class MessageFrom:
    sender: str
    message: Message


@dataclass(frozen=True)
class ContributionArrived:
    """A member's whole share of a shard that this peer reduces is here."""

    plan_id: bytes
    shard: int
    sender: str


@dataclass(frozen=True)
class ResultReady:
    """A whole result is here: made by this peer, sent by its reducer, or fetched (``sender`` is then None)."""

    plan_id: bytes
    shard: int
    sender: str | None
    digest: bytes


@dataclass(frozen=True)
class FetchFailed:
    plan_id: bytes
    shard: int
    digest: bytes


@dataclass(frozen=True)
class SyncFailed:
    """The state of a member that is ahead could not be had; ``refuted`` if the others do not confirm its claim."""

    peer: str
    refuted: bool


@dataclass(frozen=True)
class Tick:
    pass


Event = (
    StepBegun
    | ContributionReady
    | MessageFrom
    | ContributionArrived
    | ResultReady
    | FetchFailed
    | SyncFailed
    | Up
    | Changed
    | Down
    | Gone
    | Slept
    | Tick
)


# Actions


@dataclass(frozen=True)
class Send:
    """To one peer, or to all linked ones if ``to`` is None. The driver seals descriptors and commits."""

    to: str | None
    message: Message


@dataclass(frozen=True)
class ForwardCommit:
    """Send the sealed commit of this outer step to a peer that lacks it, or word that it is past."""

    to: str
    outer_step: int


@dataclass(frozen=True)
class StopTraining:
    """The others are ready: contribute what there is."""


@dataclass(frozen=True)
class Follow:
    """Make room for this descriptor's plan, and forget another plan's contributions and results."""

    descriptor: Descriptor


@dataclass(frozen=True)
class SendContribution:
    descriptor: Descriptor
    shard: int
    to: str


@dataclass(frozen=True)
class Collect:
    """This peer reduces the shard: as the members' contributions come, in the hope of all of them."""

    shard: int


@dataclass(frozen=True)
class Reduce:
    """Aggregate these members' contributions, by index, to a shard; ``ResultReady`` follows."""

    descriptor: Descriptor
    shard: int
    contributors: tuple[int, ...]


@dataclass(frozen=True)
class SendResult:
    descriptor: Descriptor
    shard: int
    to: tuple[str, ...]


@dataclass(frozen=True)
class Fetch:
    """Get a result by its digest from any of ``sources``; ``ResultReady`` or ``FetchFailed`` follows."""

    descriptor: Descriptor
    shard: int
    digest: bytes
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Apply:
    """Take the outer step, now and in one go; ``StepBegun`` follows."""

    commit: Commit


@dataclass(frozen=True)
class Resync:
    """This peer cannot catch up by commits, or is on a lighter fork: go over to the state of a member ahead."""

    reason: str


@dataclass(frozen=True)
class Strike:
    peer: str
    reason: str


@dataclass(frozen=True)
class Report:
    """For the event log."""

    event: str
    fields: tuple[tuple[str, object], ...]


Action = (
    Send
    | ForwardCommit
    | StopTraining
    | Follow
    | SendContribution
    | Collect
    | Reduce
    | SendResult
    | Fetch
    | Apply
    | Resync
    | Strike
    | Report
)
