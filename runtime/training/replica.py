"""One peer's copy of the model: inner steps since the anchor, and the committed outer steps.

Shape letters: P elements of all parameters together, B sequences in a batch, T bytes in a sequence.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.pieces import PieceList
from runtime.training.data import Corpus, sample_batch, validation_batches
from runtime.training.inner import InnerState, copy_moments, inner_learning_rate, inner_optimizer, load_moments
from runtime.training.model import VOCABULARY, build_model, flatten, host_vector, unflatten_into
from runtime.training.outer import apply_outer_step, outer_momentum

# How late a stop may be seen by an inner step that is asleep.
SLEEP_S = 0.02


@dataclass(frozen=True)
class InnerResult:
    """What was done since the anchor, what was carried over from before it included."""

    inner_steps: int
    tokens: int
    """Bytes of text in the steps that counted: the weight of the contribution."""
    loss: float
    """Mean training loss in nats per byte, always finite: with no step since the anchor, the mean before it."""
    seconds: float
    """Time in inner steps."""


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, or else the CPU.

    Raises: ConfigError if this machine or this build of torch does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # A torch built without CUDA says so with an AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"The device {name!r} is not available here; --device auto takes what there is") from error
    return device


class Replica:
    """The anchor and outer momentum of the lineage, and the local parameters that move away from the anchor.

    All methods block and are called from one thread at a time; only ``inner_steps_done``, ``inner_steps_taken`` and
    ``tokens_per_s`` may be read from another.
    The inner optimizer is neither averaged nor reset; its learning rate follows the committed outer step.

    Args: inner_step_s is the least time that an inner step takes, the rest of it asleep: for benchmarks.
    Raises: ConfigError for an unknown preset, a missing device, or text too short for the model's context.
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, *, device: str = "auto", peer_seed: int, inner_step_s: float = 0.0
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._inner_step_s = inner_step_s
        self._device = resolve_device(device)
        self._model = build_model(config.model.preset, config.model.seed).to(self._device)
        self._context = self._model.shape.context
        shortest = min(corpus.train.numel(), corpus.validation.numel())
        if shortest <= self._context:
            raise ConfigError(
                f"Only {shortest} bytes to train or validate on, and the model reads {self._context} at a time: "
                "give more text with --data."
            )
        self._optimizer = inner_optimizer(self._model, config.inner)
        self._generator = torch.Generator().manual_seed(peer_seed)

        self.outer_step = 0
        self.inner_steps_taken = 0
        """By this object, never fewer."""
        self.tokens_per_s = 0.0
        """Of the last inner steps since an anchor; 0 before the first."""
        self.n_elements = sum(parameter.numel() for parameter in self._model.parameters())
        self.anchor_P = flatten(self._model.parameters(), host_vector(self.n_elements, self._device))
        self.momentum_P = torch.zeros_like(self.anchor_P)
        self._moved_P = host_vector(self.n_elements, self._device)
        # Of the moments in an ``InnerState``; touched now, since fresh pages would hold up the first checkpoint.
        self._kept = torch.empty_like(self.momentum_P).zero_(), torch.empty_like(self.momentum_P).zero_()

        self._steps = 0
        self._tokens = 0
        self._seconds = 0.0
        self._losses: list[float] = []
        # A model that knows nothing gives each of the 256 bytes the same chance.
        self._last_mean_loss = math.log(VOCABULARY)

    @property
    def device(self) -> str:
        """As torch names it, without a number."""
        return self._device.type

    @property
    def inner_steps_done(self) -> int:
        """Inner steps since the anchor: what shows, from another thread, that training moves."""
        return self._steps

    def train(self, should_stop: Callable[[], bool]) -> InnerResult:
        """Go on until ``inner.steps`` steps were taken since the anchor, or ``should_stop()`` between two of them."""
        while self._steps < self._config.inner.steps and not should_stop():
            started = time.perf_counter()
            self._inner_step()
            while (left_s := started + self._inner_step_s - time.perf_counter()) > 0 and not should_stop():
                time.sleep(min(left_s, SLEEP_S))
            self._seconds += time.perf_counter() - started
            self.inner_steps_taken += 1
            self.tokens_per_s = self._tokens / self._seconds
        if self._losses:
            self._last_mean_loss = sum(self._losses) / len(self._losses)
        return InnerResult(self._steps, self._tokens, self._last_mean_loss, self._seconds)

    def pseudo_gradient(self) -> Tensor:
        """``anchor - local``: the direction the inner steps moved, negated, so that it is subtracted as a gradient is.

        Returns: float32 (P,) on the CPU, the caller's to change until the next call, which takes the memory again.
        """
        return self._moved(self._moved_P)

    def _moved(self, out_P: Tensor) -> Tensor:
        return torch.sub(self.anchor_P, flatten(self._model.parameters(), out_P), out=out_P)

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        """Move the anchor by a committed mean, float32 (P,) on the CPU, and go on from there.

        ``missed`` are the disjoint ranges [start, stop) of elements that this peer's contribution did not get into.
        There the local parameters keep their distance from the anchor, so that the work is in the next
        pseudo-gradient; everywhere else they become the anchor. Tokens are carried in the same share.

        Raises: ValueError for a mean or a range that does not fit the model; nothing is changed then.
        """
        n_missed = self._check_ranges(missed)
        # Not in the memory of the contribution, of which what the codec lost is still to be held.
        own_P = self._moved(torch.empty_like(self.anchor_P)) if missed else None
        outer = self._config.outer
        apply_outer_step(
            self.anchor_P,
            self.momentum_P,
            mean_pseudo_gradient_P,
            learning_rate=outer.learning_rate,
            momentum=outer_momentum(self.outer_step, outer.momentum, outer.momentum_ramp_steps),
        )
        if own_P is None:
            unflatten_into(self._model.parameters(), self.anchor_P)
        else:
            local_P = self.anchor_P.clone()
            for start, stop in missed:
                local_P[start:stop].sub_(own_P[start:stop])
            unflatten_into(self._model.parameters(), local_P)
        self._carry(n_missed)
        self.outer_step += 1

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        """Take over a committed state (copied); the inner steps since the old anchor are dropped.

        Raises: ValueError if a tensor does not fit the model; nothing is changed then.
        """
        for tensor in (anchor_P, momentum_P):
            if tensor.shape != (self.n_elements,) or tensor.dtype != torch.float32:
                raise ValueError(
                    f"a state of {tensor.dtype} {tuple(tensor.shape)} for a model of {self.n_elements} elements"
                )
        self.anchor_P.copy_(anchor_P)
        self.momentum_P.copy_(momentum_P)
        self.outer_step = outer_step
        unflatten_into(self._model.parameters(), self.anchor_P)
        self._carry(0)

    def inner_state(self) -> InnerState:
        """What only this peer has of its training, copied; the next call takes the memory again."""
        moment_P, square_P = self._kept
        is_anchor = not self._steps and not self._tokens
        return InnerState(
            moment_P,
            square_P,
            None if is_anchor else flatten(self._model.parameters()),
            self._generator.get_state(),
            copy_moments(self._optimizer, self._model, moment_P, square_P),
            self._steps,
            self._tokens,
            self._seconds,
            tuple(self._losses),
            self._last_mean_loss,
        )

    def load_inner_state(self, inner: InnerState) -> None:
        """Go on from where ``inner_state`` was taken, the same anchor loaded before.

        Raises: ValueError if it does not fit the model; nothing is changed then.
        """
        for vector in (inner.moment_P, inner.square_P, *(() if inner.local_P is None else (inner.local_P,))):
            if vector.shape != (self.n_elements,) or vector.dtype != torch.float32:
                raise ValueError(f"inner state of {vector.dtype} {tuple(vector.shape)} for {self.n_elements} elements")
        self._generator.set_state(inner.generator)
        load_moments(self._optimizer, self._model, inner)
        unflatten_into(self._model.parameters(), self.anchor_P if inner.local_P is None else inner.local_P)
        self._steps, self._tokens, self._seconds = inner.inner_steps, inner.tokens, inner.seconds
        self._losses, self._last_mean_loss = list(inner.losses), inner.last_mean_loss

    def state_digest(self) -> bytes:
        """Equal on all peers of one lineage."""
        return PieceList.of(self.anchor_P, self.momentum_P).digest

    def validation_loss(self, batches: int = 32) -> float:
        """Mean loss of the anchor, in nats per byte, on the same ``batches`` batches every time.

        The local parameters and the sampling are not touched, so that measuring does not change the training.
        """
        names = [name for name, _ in self._model.named_parameters()]
        sizes = [parameter.numel() for parameter in self._model.parameters()]
        shapes = [parameter.shape for parameter in self._model.parameters()]
        pieces = torch.split(self.anchor_P.to(self._device), sizes)
        anchor = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        losses: list[float] = []
        with torch.no_grad():
            for tokens_BT, targets_BT in validation_batches(
                self._corpus.validation, self._config.inner.batch, self._context, batches
            ):
                inputs = (tokens_BT.to(self._device), targets_BT.to(self._device))
                with self._autocast():
                    losses.append(functional_call(self._model, anchor, inputs).item())
        return sum(losses) / len(losses)

    def _inner_step(self) -> None:
        inner = self._config.inner
        step = self.outer_step * inner.steps + self._steps
        learning_rate = inner_learning_rate(step, self._config.outer.steps * inner.steps, inner)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        tokens_BT, targets_BT = sample_batch(self._corpus.train, inner.batch, self._context, self._generator)
        with self._autocast():
            loss = self._model(tokens_BT.to(self._device), targets_BT.to(self._device))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), inner.clip_norm)
        # One gradient that is not finite would reach every peer by way of the mean: the step is spent on it, but the
        # parameters do not move and its tokens do not count.
        if math.isfinite(norm.item()):
            self._optimizer.step()
            self._losses.append(loss.item())
            self._tokens += tokens_BT.numel()
        self._steps += 1

    def _autocast(self) -> torch.autocast:
        on_cuda = self._device.type == "cuda"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=on_cuda)

    def _check_ranges(self, ranges: Sequence[tuple[int, int]]) -> int:
        """The number of elements in the ranges."""
        end = 0
        for start, stop in sorted(ranges):
            if not end <= start <= stop <= self.n_elements:
                raise ValueError(f"ranges {sorted(ranges)} overlap or leave [0, {self.n_elements})")
            end = stop
        return sum(stop - start for start, stop in ranges)

    def _carry(self, n_missed: int) -> None:
        # The steps are counted anew: a peer that missed a round trains on as long as the others and is with them again.
        self._steps = 0
        self._tokens = self._tokens * n_missed // self.n_elements
        self._seconds = self._seconds * n_missed / self.n_elements
        self._losses = []
