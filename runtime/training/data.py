"""Text as bytes: what a volunteer trains on, and what the swarm is measured on.

Shape letters: N bytes of text, B sequences in a batch, T bytes in a sequence.
"""

import hashlib
import math
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import ConfigError

# One sequence of the longest context (1,024 bytes) with its shifted targets, twice over.
MIN_VALIDATION_BYTES = 2 * 1025
# Below this a model of any preset only learns the text by heart.
MIN_CORPUS_BYTES = 32 * 1024

# What is installed beside the library differs between machines. pydoc_data is one file of prose of 0.7 MB, by its
# hash more than half of the validation text.
STDLIB_SKIPPED = {
    "test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "__pycache__"
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    train: Tensor
    """uint8 (N,) on the CPU."""
    validation: Tensor
    """uint8 (N,) on the CPU; no byte of it is in ``train``."""
    n_files: int


def load_corpus(source: str, path: str | None, validation_fraction: float) -> Corpus:
    """Read all the text into memory and split it.

    ``source`` is ``stdlib`` (the running Python's standard library) or ``files``, where ``path`` is one text file, a
    folder or a glob. Which files are validation follows from a hash of each relative path, so that neither the order
    nor the other files matter. One file, or so few that this leaves too little on a side, is split by position: the
    last fraction of each file is validation.

    Raises: ConfigError if there is nothing to read or too little of it.
    """
    if source == "stdlib":
        texts = _read_texts(_stdlib_files(Path(sysconfig.get_path("stdlib"))))
        where = "the standard library of this Python"
    elif source == "files":
        if path is None:
            raise ConfigError("This run trains on the volunteers' own text: name a file or a folder with --data.")
        texts = _read_texts(_named_files(path))
        where = path
    else:
        raise ConfigError(f"Unknown data source {source!r}: choose stdlib or files.")
    total_bytes = sum(len(text) for text in texts.values())
    if not texts:
        raise ConfigError(f"No readable text in {where}: name a text file, or a folder that has some, with --data.")
    if total_bytes < MIN_CORPUS_BYTES:
        raise ConfigError(
            f"Only {total_bytes} bytes of text in {where}: give at least {MIN_CORPUS_BYTES} bytes with --data."
        )
    train, validation = _split_by_file(texts, validation_fraction)
    if len(validation) < MIN_VALIDATION_BYTES or len(validation) > total_bytes // 2:
        train, validation = _split_by_position(texts, validation_fraction)
    return Corpus(_as_tensor(train), _as_tensor(validation), len(texts))


def load_text(path: str) -> Tensor:
    """All the text of a file, a folder or a glob, uint8 (N,).

    Raises: ConfigError if there is none.
    """
    texts = _read_texts(_named_files(path))
    if not texts:
        raise ConfigError(f"No readable text in {path}: name a text file, or a folder that has some, with --data.")
    return _as_tensor(bytearray().join(texts.values()))


def is_validation_file(relative_path: str, validation_fraction: float) -> bool:
    """Whether a file is kept for validation; of many files the share ``validation_fraction`` is."""
    hashed = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") < validation_fraction * 2**64


def sample_batch(data: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``batch`` random windows of ``data``, uint8 (N,): tokens and the same one byte later, both int64 (B, T).

    Raises: ValueError if there are fewer than ``context + 1`` bytes.
    """
    _check_long_enough(data, context)
    starts_B = torch.randint(0, data.numel() - context, (batch,), generator=generator)
    return windows(data, starts_B, context)


def validation_batches(data: Tensor, batch: int, context: int, n_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same ``n_batches`` batches on every call, their windows spread evenly over ``data``.

    Raises: ValueError if there are fewer than ``context + 1`` bytes.
    """
    _check_long_enough(data, context)
    last_start = data.numel() - context - 1
    n_windows = n_batches * batch
    for first in range(0, n_windows, batch):
        starts_B = torch.arange(first, first + batch) * last_start // max(n_windows - 1, 1)
        yield windows(data, starts_B, context)


def _check_long_enough(data: Tensor, context: int) -> None:
    if data.numel() < context + 1:
        raise ValueError(f"{data.numel()} bytes of text are too few for a context of {context}")


def windows(data: Tensor, starts_B: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The windows of ``data``, uint8 (N,), that begin there, and the same one byte later: both int64 (B, T)."""
    windows = data[starts_B[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _stdlib_files(root: Path) -> dict[str, Path]:
    return {name: file for name, file in _walk(root, STDLIB_SKIPPED).items() if file.suffix == ".py"}


def _named_files(path: str) -> dict[str, Path]:
    """Relative path -> file, of one file, a folder or a glob."""
    if not path.strip():
        raise ConfigError("The name after --data is empty: name a text file, a folder or a glob.")
    named = Path(path).expanduser()
    if named.is_file():
        return {named.name: named}
    if named.is_dir():
        return _walk(named, set())
    first_wild = next((i for i, part in enumerate(named.parts) if any(sign in part for sign in "*?[")), None)
    if first_wild is None:
        raise ConfigError(f"There is no file or folder {path}: name one that exists with --data.")
    # Relative to the last folder before the first wildcard, so that the split does not depend on what matches.
    root = Path(*named.parts[:first_wild])
    matches = {file.relative_to(root): file for file in root.glob("/".join(named.parts[first_wild:]))}
    return {
        relative.as_posix(): file
        for relative, file in matches.items()
        if _is_plain(file) and not any(part.startswith(".") for part in relative.parts)
    }


def _walk(root: Path, skipped: set[str]) -> dict[str, Path]:
    """Relative path -> regular file, recursively; hidden ones and symbolic links are left out."""
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and _is_plain(file):
                files[file.relative_to(root).as_posix()] = file
    return files


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _read_texts(files: dict[str, Path]) -> dict[str, bytes]:
    """Relative path -> content, sorted by path; what cannot be read or is not UTF-8 text is left out."""
    texts = {}
    for relative_path, file in sorted(files.items()):
        try:
            content = file.read_bytes()
            content.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if content and b"\0" not in content:
            texts[relative_path] = content
    return texts


def _split_by_file(texts: dict[str, bytes], validation_fraction: float) -> tuple[bytearray, bytearray]:
    train, validation = bytearray(), bytearray()
    for relative_path, content in texts.items():
        (validation if is_validation_file(relative_path, validation_fraction) else train).extend(content)
    return train, validation


def _split_by_position(texts: dict[str, bytes], validation_fraction: float) -> tuple[bytearray, bytearray]:
    """The last fraction of every file is validation, and a little more where that would be too little."""
    total_bytes = sum(len(content) for content in texts.values())
    fraction = max(validation_fraction, MIN_VALIDATION_BYTES / total_bytes)
    train, validation = bytearray(), bytearray()
    for content in texts.values():
        cut = len(content) - math.ceil(len(content) * fraction)
        train.extend(content[:cut])
        validation.extend(content[cut:])
    return train, validation


def _as_tensor(text: bytearray) -> Tensor:
    return torch.frombuffer(text, dtype=torch.uint8)
