"""Memory, disk, device and key of this machine, against what a run takes of it."""

import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from peers.identity import Identity, IdentityError
from runtime.disk import folder_bytes
from runtime.doctor.check import Check, failed, passed, warned
from runtime.folder import in_use
from runtime.monitor.words import size_words

# Without a run to measure against: what a small one takes, of memory with Python, PyTorch and libp2p's daemon.
SMALL_BYTES, SMALL_MEMORY_BYTES = 1_000_000_000, 1_600_000_000
# 2026-01-01: a clock that is behind this has lost its battery.
EARLIEST_UNIX = 1_767_225_600.0
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may have, all together and now."""

    total: int
    free: int


@dataclass(frozen=True)
class Device:
    """Where the model trains: "cpu", or a GPU of this name and so many bytes."""

    kind: str
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    problem: str = ""
    """Why it is not the one that was asked for, or could be."""


@dataclass(frozen=True)
class Needs:
    """Of a run, in bytes."""

    host: int
    device: int
    checkpoint: int
    trains: bool = True


def check_memory(memory: Memory, needs: Needs | None, device: str) -> Check:
    """The machine's, which is the device's as well where that is the processor."""
    has = f"{size_words(memory.total)}, {size_words(memory.free)} of it free"
    if needs is None:
        if memory.total < SMALL_MEMORY_BYTES:
            return warned("memory", f"{has}: little even for a small model", "close other programs, or take more")
        return passed("memory", has)
    wanted = needs.host + (needs.device if device == "cpu" and needs.trains else 0)
    words = f"{has}; this model needs about {size_words(wanted)}"
    if wanted > memory.total:
        return failed("memory", words, "take a machine with more memory, or join a run with a smaller model")
    if wanted > memory.free:
        return warned("memory", words, "close other programs before you join")
    return passed("memory", words)


def check_disk(folder: Path, free: int, held: int, needs: Needs | None, keep: int) -> Check:
    """Args: held has the bytes that the folder has already, which its checkpoints take over."""
    has = f"{size_words(free)} free for {folder}"
    if needs is None:
        if free < SMALL_BYTES:
            return warned("disk", f"{has}: little even for a small model", "free some space, or name another --folder")
        return passed("disk", has)
    wanted = (keep + 1) * needs.checkpoint
    words = f"{has}; {keep} checkpoints and the one being written take {size_words(wanted)}"
    if free + held < needs.checkpoint:
        return failed("disk", words, "free some space, or name a --folder on another disk")
    if free + held < wanted:
        return warned("disk", words, "free some space, say --keep 1, or name a --folder on another disk")
    return passed("disk", words)


def check_folder(folder: Path) -> Check | None:
    """None if a peer can write there."""
    there = _existing(folder)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return failed("disk", f"{there} is not yours to write to", "name another folder with --folder")


def check_device(device: Device, needs: Needs | None) -> Check:
    if device.kind != "cpu":
        has = f"{device.name}, {size_words(device.total_bytes)}, {size_words(device.free_bytes)} of it free"
        if needs is None or not needs.trains:
            return passed("device", has)
        words = f"{has}; this model needs {size_words(needs.device)} and what a batch takes"
        if needs.device > device.total_bytes:
            return failed("device", words, "say --device cpu, or --auxiliary, or join a run with a smaller model")
        if needs.device > device.free_bytes:
            return warned("device", words, "end what else uses the GPU, or name another with --device cuda:1")
        return passed("device", words)
    has = f"the processor, {os.cpu_count() or 1} cores"
    if device.problem:
        return warned("device", f"{has}: {device.problem}", "install PyTorch's CUDA build, as pytorch.org says")
    return passed("device", has)


def check_key(path: Path, named: bool) -> Check:
    """Args: named says whether the user chose it; else it is made when it is needed."""
    if not named and not os.path.lexists(path):
        return passed("key", f"none yet: atoll join makes {path}")
    try:
        identity = Identity.load(path)
    except IdentityError as error:
        words, _, fix = str(error).partition(": ")
        return failed("key", words, fix.rstrip("."))
    words = f"you are {identity.peer}"
    if in_use(path):
        fix = "atoll status shows it; for one more beside it, name another --key and --folder"
        return warned("key", f"{words}, and a peer on this machine is so now", fix)
    return passed("key", words)


def check_calendar(now_unix: float) -> Check | None:
    """None if the clock can be right; how right, only others can tell."""
    if now_unix >= EARLIEST_UNIX:
        return None
    year = time.gmtime(now_unix).tm_year
    return failed("clock", f"this machine thinks it is {year}", "set the clock: timedatectl set-ntp true")


# What is there.


def memory_now() -> Memory:
    """The limit of a container counts."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        total, free = min(total, limit), max(0, min(free, limit - used))
    return Memory(total, free)


def disk_now(folder: Path) -> tuple[int, int]:
    """Bytes free where the folder is or will be, and bytes in it."""
    return shutil.disk_usage(_existing(folder)).free, folder_bytes(folder)


def device_now(wanted: str) -> Device:
    """Imports PyTorch.

    Raises: ConfigError for a device that is not here.
    """
    import torch

    from runtime.training.replica import resolve_device

    device = resolve_device(wanted)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Device("cuda", torch.cuda.get_device_name(device), total, free)
    has_gpu = sys.platform == "linux" and Path("/dev/nvidia0").exists()
    if wanted == "auto" and has_gpu:
        return Device("cpu", problem="there is an NVIDIA GPU, and this PyTorch cannot use it")
    return Device("cpu")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.exists():
            return path
    return Path("/")
