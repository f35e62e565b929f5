"""The state of a run, and of this peer's own training, to and from a checkpoint on disk.

Shape letters: P elements of all parameters together.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runtime.checkpoints import Checkpoint, checkpoint_name, found, write
from runtime.errors import reason_of
from runtime.state import State
from runtime.training.inner import InnerState

STATE_FILE, INNER_FILE = "state.safetensors", "inner.safetensors"
# A peer that is running lets go of old ones while they are read.
MOST_LOOKS = 3
INNER_TENSORS = ("moment_P", "square_P", "local_P", "generator")
UNUSABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError)


def save_checkpoint(folder: Path, state: State, inner: InnerState | None = None, *, fork: bool = False) -> Path:
    """Write a checkpoint into a peer's folder; where.

    Args:
        inner: this peer's own training from that state on, as far as it is known.
        fork: whether it is of a history that is being left.
    Raises: OSError if the disk does not take it; what was saved before stands.
    """
    fields = {} if inner is None else vars(inner)
    own = {"lost_P": state.lost_P, **{name: value for name, value in fields.items() if name in INNER_TENSORS}}
    own_tensors = {name: tensor for name, tensor in own.items() if tensor is not None}
    name = checkpoint_name(state.outer_step, inner.inner_steps if inner else 0, state.lineage, fork)
    content = {
        "outer_step": state.outer_step,
        "lineage": state.lineage.hex(),
        "tokens": state.tokens,
        "group": state.group,
        "inner": {name: value for name, value in fields.items() if name not in INNER_TENSORS},
    }

    def write_files(into: Path) -> None:
        try:
            save_file({"anchor": state.anchor_P, "momentum": state.momentum_P}, into / STATE_FILE)
            if own_tensors:
                save_file(own_tensors, into / INNER_FILE)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write(folder, name, content, write_files)


def load_newest(
    folder: Path, report: Callable[[Path, str], None] = lambda path, reason: None
) -> tuple[State, InnerState | None] | None:
    """The newest checkpoint in a peer's folder that is whole, None if there is none.

    If this peer's own training is not in it, as of one that was stopped in the middle of an inner step, it goes on with
    the moments of an older one.

    Args: report is told of each newer one that cannot be used, and why.
    """
    for _ in range(MOST_LOOKS):
        checkpoints, broken = found(folder)
        for checkpoint in checkpoints:
            try:
                loaded = load_checkpoint(checkpoint)
            except UNUSABLE as error:
                broken[checkpoint.path] = reason_of(error)
            else:
                _tell(broken, report)
                state, inner = loaded
                return state, inner or _at_the_anchor(checkpoints)
        # What the peer that writes them has let go of meanwhile was not broken.
        if all(path.exists() for path in broken):
            break
    _tell(broken, report)
    return None


def _at_the_anchor(newest_first: Sequence[Checkpoint]) -> InnerState | None:
    """Of the newest that has one, the inner state without what was done since its anchor."""
    for checkpoint in newest_first:
        if checkpoint.inner:
            with suppress(*UNUSABLE):
                _, inner = load_checkpoint(checkpoint)
                return inner and replace(inner, local_P=None, inner_steps=0, tokens=0, seconds=0.0, losses=())
    return None


def _tell(broken: Mapping[Path, str], report: Callable[[Path, str], None]) -> None:
    for path, reason in broken.items():
        if path.exists():
            report(path, reason)


def load_checkpoint(checkpoint: Checkpoint) -> tuple[State, InnerState | None]:
    """Raises: ValueError, KeyError, TypeError, OSError or SafetensorError if it is not what was written."""
    checkpoint.check()
    shared = _tensors(checkpoint.path / STATE_FILE)
    own: dict[str, Any] = dict.fromkeys(("lost_P", *INNER_TENSORS))
    if INNER_FILE in checkpoint.files:
        own |= _tensors(checkpoint.path / INNER_FILE)
    for tensor in (shared["anchor"], shared["momentum"]):
        if tensor.dtype != torch.float32 or tensor.shape != (shared["anchor"].numel(),):
            raise ValueError(f"it holds a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}")
    state = State(
        checkpoint.outer_step,
        checkpoint.lineage,
        checkpoint.tokens,
        checkpoint.group,
        shared["anchor"],
        shared["momentum"],
        own.pop("lost_P"),
    )
    if not checkpoint.inner:
        return state, None
    return state, InnerState(**{**own, **checkpoint.inner, "losses": tuple(checkpoint.inner["losses"])})


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
