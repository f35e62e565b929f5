"""What peers say of the states of a run, and how they ask each other for them. All digests are SHA-256."""

from dataclasses import dataclass
from typing import Annotated

from peers.errors import ProtocolViolation
from peers.wire import Codec, Digest, Length, PeerId
from runtime.averaging.messages import MAX_MEMBERS


@dataclass(frozen=True)
class ClaimRequest:
    """What do you say that the state of this outer step is?"""

    outer_step: int


@dataclass(frozen=True)
class OfferRequest:
    """Which state of a history with so many tokens do you offer to whoever joins? The answer is a ``Claim``."""

    least_tokens: int


@dataclass(frozen=True)
class ListRequest:
    """The digests of the pieces of a state, as a payload."""

    state: Digest


@dataclass(frozen=True)
class HaveRequest:
    """Which pieces of this state have you fetched so far?"""

    state: Digest


@dataclass(frozen=True)
class Have:
    """A bit for each distinct piece, in the order of ``PieceList.distinct``, the first in the lowest bit."""

    bits: Annotated[bytes, Length(0, 1 << 14)]


@dataclass(frozen=True)
class PieceRequest:
    """One piece, as a payload."""

    digest: Digest


@dataclass(frozen=True)
class Claim:
    outer_step: int
    lineage: Digest
    state: Digest
    """``PieceList.digest`` of anchor and momentum."""
    tokens: int
    group: Annotated[tuple[PeerId, ...], Length(0, MAX_MEMBERS)]

    @property
    def position(self) -> tuple[int, int, bytes]:
        """As of a ``Status``."""
        return self.tokens, self.outer_step, self.lineage


class Refuted(ProtocolViolation):
    """More of the others contradict a donor than confirm it."""


STATE = Codec(ClaimRequest, OfferRequest, ListRequest, HaveRequest, PieceRequest, Claim, Have)
