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
        round_bytes: sent and received so far, payload and control.
    """

    def __init__(
        self, device: str, transfers: Transfers, caps: Callable[[], Caps], round_bytes: Callable[[], tuple[int, int]]
    ) -> None:
        self.error: float | None = None
        """Of the last contribution, relative, L2."""
        self.strikes = 0
        self._device, self._transfers, self._caps, self._round_bytes = device[:16], transfers, caps, round_bytes
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

    def told(self, tokens: int, dialable: bool) -> Figures:
        """For the others, with a contribution of so many tokens."""
        sent, received = self._round_bytes()
        trained_s = max(self._ready_at - self._begun_at, 1e-3)
        return Figures(
            device=self._device,
            tokens_per_s=min(round(tokens / trained_s), MOST_TOKENS_PER_S),
            trained_ms=round(1e3 * trained_s),
            waited_ms=round(1e3 * max(self._waited_s, 0.0)),
            up=self.link()[0],
            down=self.link()[1],
            sent_bytes=sent,
            received_bytes=received,
            error_ppm=None if self.error is None else round(1e6 * self.error),
            strikes=self.strikes,
            dialable=dialable,
        )

    def of_round(self, now: float, took_part: bool) -> dict[str, float | None]:
        """For the log, of a round that ends now; its times are those of who took part."""
        sent, received = self._round_bytes()
        return {
            "round_s": round(now - self._followed_at, 4) if took_part else None,
            "forming_s": round(self._followed_at - self._ready_at, 4) if took_part else None,
            "bytes_sent": sent,
            "bytes_received": received,
        }
