"""What the picture of a run is made of: its members, its outer steps, marks on its curve, and the round under way.

Times are Unix times by the clock of whoever told of it.
"""

from dataclasses import dataclass, field


@dataclass
class MemberPicture:
    """One peer of the run. Times are Unix times by the clock of whoever told of it."""

    peer: str
    doing: str = ""
    """training, ready, averaging, behind, joining, still, auxiliary, or gone."""
    outer_step: int = 0
    progress: int = 0
    """Inner steps since the run began."""
    device: str = ""
    tokens: int = 0
    """Contributed, as far as this picture goes back."""
    n_steps: int = 0
    """Outer steps that it took part in, as far as this picture goes back."""
    tokens_per_s: float = 0.0
    loss: float | None = None
    trained_s: float = 0.0
    waited_s: float = 0.0
    up: float = 0.0
    """Of its link, bytes a second."""
    down: float = 0.0
    dialable: bool = True
    """Whether others can dial it; who cannot be dialled contributes, and reduces nothing."""
    sent_bytes: float = 0.0
    received_bytes: float = 0.0
    error: float | None = None
    """Quantisation error of its last contribution, relative, L2."""
    strikes: int = 0
    """That others, as far as they tell, have recorded of it."""
    came_at: float = 0.0
    gone_at: float | None = None
    gone_reason: str = ""

    @property
    def busy(self) -> float | None:
        """The part of its last outer step in which it trained."""
        whole = self.trained_s + self.waited_s
        return self.trained_s / whole if whole else None


@dataclass(frozen=True)
class StepPicture:
    """A committed outer step."""

    outer_step: int
    time: float
    loss: float | None
    tokens: float
    """Of the run, up to this step."""
    n_members: int
    live: int
    round_s: float | None
    busy: float | None = None
    """Mean part of the step in which its members trained."""
    error: float | None = None
    """Mean quantisation error of its members."""
    members: tuple[str, ...] = ()
    """Sorted; empty where only their number is known."""

    @property
    def participation(self) -> float:
        return min(1.0, self.n_members / self.live) if self.live else 0.0


@dataclass(frozen=True)
class Mark:
    """Something worth a mark on the curve."""

    time: float
    outer_step: int
    kind: str
    member: str
    words: str


@dataclass
class Round:
    """The round that is under way, as the member that is listened to sees it."""

    outer_step: int = 0
    attempt: int = 0
    leader: str = ""
    codec: str = ""
    began_at: float | None = None
    doing: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """By member since when it does what, since the step before was committed."""
