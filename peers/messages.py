"""What peers of one run tell each other about themselves."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from peers.wire import Codec, Digest, Length, PeerId, RunId

PROTOCOL_VERSION = 7
"""Peers of different versions refuse each other at the first frame."""

MAX_RECORDS = 32

Addresses = Annotated[tuple[Annotated[str, Length(1, 256)], ...], Length(0, 16)]


class Role(IntEnum):
    JOINING = 0
    """Has not the run's state yet: nobody waits for it and it decides nothing."""
    MEMBER = 1
    """Has the state of its lineage, takes part in rounds and may lead them."""
    AUXILIARY = 2
    """A member that trains nothing: it reduces for the others, and keeps the run's state when they go."""


@dataclass(frozen=True)
class Status:
    """Where a peer stands: ``progress`` grows only when its training thread moves."""

    role: int
    outer_step: int
    lineage: Digest
    progress: int
    tokens: int = 0
    """All that the lineage has committed so far: of two histories of one run the heavier one stands."""

    @property
    def is_member(self) -> bool:
        return self.role in (Role.MEMBER, Role.AUXILIARY)

    @property
    def position(self) -> tuple[int, int, bytes]:
        """Of two peers the one with the lower position goes over to the other, whether it is behind or on a fork."""
        return self.tokens, self.outer_step, self.lineage


@dataclass(frozen=True)
class Hello:
    """The first frame on a control stream."""

    version: int
    run_id: RunId
    addresses: Addresses
    status: Status


@dataclass(frozen=True)
class Heartbeat:
    status: Status


@dataclass(frozen=True)
class Lost:
    """The sender's link to this peer has ended without a goodbye: look whether yours still lives."""

    peer: PeerId


@dataclass(frozen=True)
class Introduction:
    """Sealed member records of the sender and of those it is linked with, each signed by whom it is of.

    The DHT knows them as well, but not at once, and a part of it may be away.
    """

    records: Annotated[tuple[Annotated[bytes, Length(1, 4096)], ...], Length(0, MAX_RECORDS)]


@dataclass(frozen=True)
class Goodbye:
    """A polite end: the sender is leaving and expects to be counted out at once."""

    reason: Annotated[str, Length(0, 200)]


@dataclass(frozen=True)
class MemberRecord:
    """Where a peer of a run can be dialled; sealed, kept in the DHT under the run's key.

    ``expires_at`` is the writer's Unix time, hours ahead: two clocks may differ by an hour, and whether a peer lives is
    judged on its streams alone.
    """

    run_id: RunId
    addresses: Addresses
    expires_at: float
    left: bool


CONTROL = Codec(Hello, Heartbeat, Lost, Introduction, Goodbye)
RECORD = Codec(MemberRecord)
