"""What one peer measures of its own outer steps: for its event log, and for whoever watches the run."""

from collections.abc import Callable

from peers.caps import Caps
from runtime.averaging.messages import Figures
from runtime.averaging.transfer import Transfers

MOST_TOKENS_PER_S = 1 << 40


class OwnFigures:
    """Times are loop time in seconds, each noted as it happens.

    Args:
        device: what this peer trains on, empty if it does not.
        transfers, caps: of its rounds, and what they keep to now.
    """

    def __init__(self, device: str, transfers: Transfers, caps: Callable[[], Caps]) -> None:
        self.error: float | None = None
        """Of the last contribution, relative, L2."""
        self.strikes = 0
        self._device, self._transfers, self._caps = device[:16], transfers, caps
        self._begun_at = self._ready_at = self._followed_at = 0.0
        self._waited_s = 0.0
        self._busy_s = self._blocked_s = 0.0
        self._noted_at: float | None = None
        self._training = False

    def begun(self, now: float) -> None:
        """An inner phase begins."""
        self._note(now, training=True)
        self._waited_s = now - self._ready_at if self._ready_at else 0.0
        self._begun_at = now

    def ready(self, now: float) -> None:
        """It is over."""
        self._note(now, training=False)
        self._ready_at = now

    def followed(self, now: float) -> None:
        """A new plan is followed."""
        self._followed_at = now

    def spent_s(self, now: float) -> tuple[float, float]:
        """Seconds in inner phases and seconds between them, since the first began."""
        if self._noted_at is not None:
            self._note(now, self._training)
        return self._busy_s, self._blocked_s

    def _note(self, now: float, training: bool) -> None:
        passed_s = 0.0 if self._noted_at is None else now - self._noted_at
        if self._training:
            self._busy_s += passed_s
        else:
            self._blocked_s += passed_s
        self._noted_at, self._training = now, training

    def link(self) -> tuple[int, int]:
        """Bytes a second up and down, as measured and within the caps; 0 while a rate is not known."""
        return self._caps().planned(self._transfers.up.bytes_per_s, self._transfers.down.bytes_per_s)

    def told(self, tokens: int, round_bytes: tuple[int, int], dialable: bool) -> Figures:
        """For the others, with a contribution of so many tokens."""
        trained_s = max(self._ready_at - self._begun_at, 1e-3)
        return Figures(
            device=self._device,
            tokens_per_s=min(round(tokens / trained_s), MOST_TOKENS_PER_S),
            trained_ms=round(1e3 * trained_s),
            waited_ms=round(1e3 * max(self._waited_s, 0.0)),
            up=self.link()[0],
            down=self.link()[1],
            sent_bytes=round_bytes[0],
            received_bytes=round_bytes[1],
            error_ppm=None if self.error is None else round(1e6 * self.error),
            strikes=self.strikes,
            dialable=dialable,
        )

    def times(self, now: float) -> dict[str, float]:
        """Of a round that this peer has taken part in, and that ends now."""
        return {
            "round_s": round(now - self._followed_at, 4),
            "forming_s": round(self._followed_at - self._ready_at, 4),
        }
