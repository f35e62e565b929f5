"""Training as averaging wants it: a replica whose inner steps run in a thread of their own."""

import asyncio
import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from runtime.averaging.arithmetic import keep_to_one_core
from runtime.config import PeerConfig, RunConfig
from runtime.errors import NotNowError
from runtime.machine import wait_with_work
from runtime.tasks import abandonable
from runtime.training.data import load_corpus
from runtime.training.inner import InnerState
from runtime.training.model import build_model, flatten
from runtime.training.outer import apply_outer_step, outer_momentum
from runtime.training.replica import InnerResult, Replica

# An inner step of a large model on a CPU can outlast the five seconds that leaving may take.
LAST_INNER_STEP_S = 1.5


@functools.cache
def share_threads() -> int:
    """Keep this thread, the event loop's, to one CPU thread; how many PyTorch chose before, for the training thread.

    With as many for both, the chunks of a round wait for cores that an inner step has: rounds of 20 ms took a second.
    """
    n_threads = torch.get_num_threads()
    keep_to_one_core()
    return n_threads


def give_back_memory() -> None:
    """To the system, what a model that was let go of has left in this process."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    # glibc keeps what was freed in small parts; other systems have no such call.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class AuxiliaryTrainer:
    """Has the run's state and trains nothing: no data, no inner optimizer, and of the model its parameters."""

    trains = False
    device = ""

    def __init__(self, run_config: RunConfig) -> None:
        self._outer = run_config.outer
        self.outer_step = self.inner_steps_done = self.inner_steps_taken = 0
        self.tokens_per_s = 0.0
        self.anchor_P = flatten(build_model(run_config.model.preset, run_config.model.seed).parameters())
        self.momentum_P = torch.zeros_like(self.anchor_P)
        self.n_elements = self.anchor_P.numel()

    @property
    def progress(self) -> int:
        return self.outer_step

    async def train(self, stop: threading.Event) -> InnerResult:
        return InnerResult(0, 0, 0.0, 0.0)

    def pseudo_gradient(self) -> Tensor:
        raise TypeError("an auxiliary peer has no pseudo-gradient")

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        apply_outer_step(
            self.anchor_P,
            self.momentum_P,
            mean_pseudo_gradient_P,
            learning_rate=self._outer.learning_rate,
            momentum=outer_momentum(self.outer_step, self._outer.momentum, self._outer.momentum_ramp_steps),
        )
        self.outer_step += 1

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        self.anchor_P.copy_(anchor_P)
        self.momentum_P.copy_(momentum_P)
        self.outer_step = outer_step

    async def until_still(self) -> None:
        """It always is."""

    def inner_state(self) -> None:
        """It has none of its own."""

    def load_inner_state(self, inner: InnerState) -> None:
        """Of a peer that trained before and is auxiliary now: nothing of it is used."""

    def validation_loss(self) -> None:
        """It has no text."""


@contextmanager
def room_on(device: str) -> Iterator[None]:
    """Raises: NotNowError where the device has not enough memory for what is done in here: others may use it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise NotNowError(
            f"{device} has no room for this run's model and batch: choose another --device, or join a run with a"
            " smaller one"
        ) from None


class ReplicaTrainer:
    """A ``Replica`` as the driver wants it: its inner steps run in a thread of their own, one phase at a time.

    Args: n_threads says how many CPU threads the next phase is to have.
    """

    trains = True

    def __init__(self, run_config: RunConfig, peer_config: PeerConfig, peer: str, n_threads: Callable[[], int]) -> None:
        self._n_threads, self._nice = n_threads, peer_config.nice
        data = run_config.data
        corpus = load_corpus(data.source, peer_config.data, data.validation_fraction)
        seed = int.from_bytes(peer.encode()[-7:], "big") ^ run_config.model.seed
        with room_on(peer_config.device):
            self.replica = Replica(
                run_config, corpus, device=peer_config.device, peer_seed=seed, inner_step_s=peer_config.inner_step_s
            )
        self.n_elements = self.replica.n_elements
        self.device = self.replica.device
        self._inner_steps = run_config.inner.steps
        self._ended = asyncio.Event()
        """No thread is in a phase. Set in the beginning."""
        self._ended.set()

    @property
    def outer_step(self) -> int:
        return self.replica.outer_step

    @property
    def anchor_P(self) -> Tensor:
        return self.replica.anchor_P

    @property
    def momentum_P(self) -> Tensor:
        return self.replica.momentum_P

    @property
    def inner_steps_done(self) -> int:
        return self.replica.inner_steps_done

    @property
    def inner_steps_taken(self) -> int:
        """Since this process began."""
        return self.replica.inner_steps_taken

    @property
    def tokens_per_s(self) -> float:
        """Of the last inner steps; 0 before the first."""
        return self.replica.tokens_per_s

    def validation_loss(self) -> float | None:
        """Of the anchor; see ``Replica``. In a thread of its own."""
        wait_with_work(self._nice)
        torch.set_num_threads(self._n_threads())
        with room_on(self.device):
            return self.replica.validation_loss()

    def inner_state(self) -> InnerState | None:
        """See ``Replica``; None in the middle of an inner step."""
        return self.replica.inner_state() if self._ended.is_set() else None

    def load_inner_state(self, inner: InnerState) -> None:
        self.replica.load_inner_state(inner)

    @property
    def progress(self) -> int:
        """Inner steps since the run began, as far as this peer knows."""
        return self.outer_step * self._inner_steps + self.replica.inner_steps_done

    async def train(self, stop: threading.Event) -> InnerResult:
        loop = asyncio.get_running_loop()

        def work() -> InnerResult:
            wait_with_work(self._nice)
            torch.set_num_threads(self._n_threads())
            try:
                with room_on(self.device):
                    return self.replica.train(stop.is_set)
            finally:
                # The loop may be gone.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._ended.set)

        self._ended.clear()
        try:
            # No inner step keeps the process from ending.
            return await abandonable(work)
        except asyncio.CancelledError:
            stop.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_INNER_STEP_S):
                    await self._ended.wait()
            raise

    async def until_still(self) -> None:
        """Wait for an inner step that has outlasted its cancelled phase: it is in what is saved then."""
        await self._ended.wait()

    def pseudo_gradient(self) -> Tensor:
        return self.replica.pseudo_gradient()

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        self.replica.apply_outer_step(mean_pseudo_gradient_P, missed)

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        self.replica.load_state(outer_step, anchor_P, momentum_P)
