"""Checkpoints as folders on disk: written beside and renamed, checked by their digests, the older ones let go.

``checkpoints/00000012.00000-0a1b2c3d4e5f`` is outer step 12, no inner step after it, and the beginning of the lineage.
A history that was left has ``fork-`` before that, and stays until its owner deletes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.disk import folder_bytes
from runtime.errors import reason_of

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
FORMAT = "atoll-checkpoint-3"
FORK, TORN = "fork-", "torn-"
READ_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One that is on disk under its own name, so whole when it was written."""

    path: Path
    outer_step: int
    lineage: bytes
    """The hash chain over all committed outer steps."""
    tokens: int
    """Committed by the lineage so far."""
    group: tuple[str, ...]
    """Peers whose contributions are in its last committed step."""
    inner: Mapping[str, Any]
    """Numbers of this peer's own training, empty where that is not in it."""
    files: Mapping[str, Mapping[str, Any]]
    """By name: ``bytes`` and ``sha256``."""

    @property
    def inner_steps(self) -> int:
        return int(self.inner.get("inner_steps", 0))

    @property
    def position(self) -> tuple[int, int, int]:
        """The heavier history first, as members compare them, then the later moment in it."""
        return self.tokens, self.outer_step, self.inner_steps

    def check(self) -> None:
        """Raises: ValueError or OSError if a file is not what was written."""
        for name, expected in self.files.items():
            size, digest = _size_and_digest(self.path / name)
            if size != expected["bytes"]:
                raise ValueError(f"{name} has {size} bytes of {expected['bytes']}")
            if digest != expected["sha256"]:
                raise ValueError(f"{name} does not match its digest")


def checkpoint_name(outer_step: int, inner_steps: int, lineage: bytes, fork: bool = False) -> str:
    return f"{FORK if fork else ''}{outer_step:08d}.{inner_steps:05d}-{lineage.hex()[:12]}"


def found(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints of a peer's folder, the newest first, forks left out; and why others cannot be used."""
    whole, broken = [], {}
    for path in sorted((folder / CHECKPOINTS).glob("[0-9]*")):
        try:
            whole.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken[path] = reason_of(error)
    return sorted(whole, key=lambda one: one.position, reverse=True), broken


def write(folder: Path, name: str, content: Mapping[str, Any], write_files: Callable[[Path], None]) -> Path:
    """Write a checkpoint: after a crash it is there whole, or not at all.

    Args:
        content: what its manifest says beside the digests of its files.
        write_files: writes them into the folder that it is given.
    Raises: OSError if the disk does not take it; what was there before stands.
    """
    parent = folder / CHECKPOINTS
    path, temporary = parent / name, parent / f".{name}"
    if path.exists():
        return path
    # A folder that its owner has deleted stays so.
    parent.mkdir(exist_ok=True)
    try:
        temporary.mkdir()
        write_files(temporary)
        files = {}
        for file in sorted(temporary.iterdir()):
            _fsync(file)
            size, digest = _size_and_digest(file)
            files[file.name] = {"bytes": size, "sha256": digest}
        manifest = temporary / MANIFEST
        manifest.write_text(json.dumps({"format": FORMAT, **content, "files": files}, indent=1) + "\n", "utf-8")
        _fsync(manifest)
        _fsync(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _fsync(parent)
    return path


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Let go of all but the ``keep`` newest and the first from every ``keep_every``-th outer step on (0: from none)."""
    newest_first, _ = found(folder)
    stay = {*newest_first[:keep], *nth_of(newest_first, keep_every)}
    remove(one for one in newest_first if one not in stay)


def nth_of(newest_first: Sequence[Checkpoint], keep_every: int) -> set[Checkpoint]:
    """The first from every ``keep_every``-th outer step on."""
    nth: dict[int, Checkpoint] = {}
    for one in newest_first:
        number = one.outer_step // keep_every if keep_every else 0
        if number and (number not in nth or one.outer_step < nth[number].outer_step):
            nth[number] = one
    return set(nth.values())


def remove(checkpoints: Iterable[Checkpoint]) -> None:
    for one in checkpoints:
        # Of a process that dies meanwhile nothing is to look like a checkpoint that is torn.
        going = one.path.with_name(f".{one.path.name}")
        with suppress(OSError):
            one.path.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def bytes_that_stay(folder: Path) -> int:
    """Of a peer's folder: forks and torn checkpoints, which are their owner's to delete. Logs stop where it is full."""
    return sum(folder_bytes(path) for kind in (FORK, TORN) for path in (folder / CHECKPOINTS).glob(f"{kind}*"))


def bytes_beside(folder: Path) -> int:
    """Of a peer's folder, beside the next checkpoint: all but older ones, which give way, and what is unfinished."""
    newest_first, _ = found(folder)
    newest = sum(folder_bytes(one.path) for one in newest_first[:1])
    files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
    return files + newest + bytes_that_stay(folder)


def set_aside(path: Path) -> None:
    """A checkpoint that cannot be used makes room for another of the same moment."""
    with suppress(OSError):
        path.rename(path.with_name(f"{TORN}{path.name}"))


def has_torn_step(folder: Path) -> bool:
    """Whether a checkpoint of a committed step was set aside in a peer's folder."""
    first = f"{TORN}{0:08d}."
    return any(not path.name.startswith(first) for path in (folder / CHECKPOINTS).glob(f"{TORN}*"))


def clear_unfinished(folder: Path) -> None:
    """What a process that was killed had not finished writing. Only while nobody writes."""
    for path in (folder / CHECKPOINTS).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> Checkpoint:
    content = json.loads((path / MANIFEST).read_text("utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
    # Nothing outside of it is ever read, whatever its manifest says.
    files = {Path(name).name: expected for name, expected in content["files"].items()}
    return Checkpoint(
        path,
        int(content["outer_step"]),
        bytes.fromhex(content["lineage"]),
        int(content["tokens"]),
        tuple(map(str, content["group"])),
        dict(content["inner"]),
        {name: {"bytes": int(one["bytes"]), "sha256": str(one["sha256"])} for name, one in files.items()},
    )


def _size_and_digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
