"""The inner phases: the trainer's own time between two outer steps."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from torch import Tensor


class InnerWork(Protocol):
    """What one inner phase came to."""

    @property
    def tokens(self) -> int: ...
    @property
    def loss(self) -> float: ...


class Trainer(Protocol):
    """What averaging needs of training. ``train`` runs elsewhere (a thread) until done or told to stop."""

    n_elements: int
    trains: bool
    """False for an auxiliary peer: ``train`` returns at once, and there is no pseudo-gradient."""
    device: str
    """What it trains on, as torch names it; empty where it does not."""

    @property
    def outer_step(self) -> int: ...
    @property
    def anchor_P(self) -> Tensor: ...
    @property
    def momentum_P(self) -> Tensor: ...
    @property
    def progress(self) -> int: ...
    async def train(self, stop: threading.Event) -> InnerWork: ...
    def pseudo_gradient(self) -> Tensor: ...
    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None: ...
    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None: ...


class InnerPhases:
    """Lets the trainer go on after each outer step and stops it before the next is applied.

    ``done`` is awaited with what a phase came to, when it ends by itself or by ``stop``, not by ``pause``; the phase is
    over when it is.
    """

    def __init__(self, trainer: Trainer, done: Callable[[InnerWork], Awaitable[None]]) -> None:
        self._trainer, self._done = trainer, done
        self._stop = threading.Event()
        self._go = asyncio.Event()
        self._still = asyncio.Event()
        self._still.set()
        self._pausing = False

    async def run(self) -> None:
        """One phase after the other, as ``go`` says, until cancelled."""
        try:
            while True:
                await self._go.wait()
                # A pause may have come between the event and this line.
                if not self._go.is_set():
                    continue
                self._go.clear()
                self._still.clear()
                try:
                    work = await self._trainer.train(self._stop)
                    if self._pausing:
                        continue
                    if self._stop.is_set() and not work.tokens:
                        # It came when the others were ready: an outer step of such contributions alone would move the
                        # model by momentum only. It trains on, and is in time for the next.
                        self.go()
                    else:
                        await self._done(work)
                finally:
                    self._still.set()
        finally:
            self._stop.set()

    @property
    def are_still(self) -> bool:
        """Whether no phase is under way; one may be about to begin."""
        return self._still.is_set()

    def go(self) -> None:
        """Begin a phase from the present state."""
        self._stop.clear()
        self._go.set()

    def stop(self) -> None:
        """End the phase after the inner step that is being taken; what was done counts."""
        self._stop.set()

    async def pause(self) -> None:
        """Return when no inner step is being taken and none will be before ``go``."""
        self._pausing = True
        self._go.clear()
        self._stop.set()
        await self._still.wait()
        self._pausing = False
