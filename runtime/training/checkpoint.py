"""The committed state of a run on this machine's disk, so that a peer can come back with it.

Shape letters: P elements of all parameters together.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import ConfigError
from runtime.training.model import digest

STATE_FILE = "state.safetensors"
FORMAT = "atoll-state-2"


@dataclass(frozen=True)
class TrainingState:
    """What all peers of one lineage have in common; the inner optimizer is each peer's own and is not in it."""

    outer_step: int
    lineage: bytes
    """The hash chain over all committed outer steps."""
    tokens: int
    """Committed by the lineage so far."""
    group: tuple[str, ...]
    """Peers whose contributions are in its last committed step."""
    anchor_P: Tensor
    """float32 on the CPU."""
    momentum_P: Tensor
    """Of the outer optimizer; float32 on the CPU."""


def save_state(folder: Path, state: TrainingState, name: str = STATE_FILE) -> None:
    """Write the file ``name``, creating ``folder``: after a crash there is the old file or the new one, whole.

    Raises: OSError if the disk does not take it; the old file stands then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    metadata = {
        "format": FORMAT,
        "outer_step": str(state.outer_step),
        "lineage": state.lineage.hex(),
        "tokens": str(state.tokens),
        "group": " ".join(state.group),
        "digest": digest(state.anchor_P, state.momentum_P).hex(),
    }
    try:
        save_file({"anchor": state.anchor_P, "momentum": state.momentum_P}, temporary, metadata=metadata)
        _fsync(temporary)
        temporary.replace(folder / name)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(folder)


def load_state(folder: Path) -> TrainingState | None:
    """The state saved in ``folder``, or None if there is none.

    Raises: ConfigError naming the file if it is torn, altered or not one of ours.
    """
    file = folder / STATE_FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            state = TrainingState(
                outer_step=int(metadata["outer_step"]),
                lineage=bytes.fromhex(metadata["lineage"]),
                tokens=int(metadata["tokens"]),
                group=tuple(metadata["group"].split()),
                anchor_P=stored.get_tensor("anchor"),
                momentum_P=stored.get_tensor("momentum"),
            )
        _check(state, metadata["digest"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"Cannot use the saved state {file} ({error}): move it away to start without it.") from error
    return state


def _check(state: TrainingState, expected_digest: str) -> None:
    for tensor in (state.anchor_P, state.momentum_P):
        if tensor.dtype != torch.float32 or tensor.shape != (state.anchor_P.numel(),):
            raise ValueError(f"it holds a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}")
    if digest(state.anchor_P, state.momentum_P).hex() != expected_digest:
        raise ValueError("its content does not match its digest")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
