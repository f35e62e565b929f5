"""This machine as psutil sees it: other programs, the battery, this peer's memory. And taking a back seat on it."""

import os
import resource
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from runtime.pausing import Look

SUPPLIES = Path("/sys/class/power_supply")
# Of best effort the lowest. Idle is lower still, but on a busy disk it could keep this process from its own code.
LOWEST_BEST_EFFORT = 7
# More than a run of 256 and as many strangers need; a shell allows 1024 as a rule.
MOST_FILES = 8192


@dataclass(frozen=True)
class Spent:
    """Processor time of all cores together, in seconds since some beginning."""

    all_s: float
    busy_s: float
    own_s: float
    """By this process and its children."""


def others_share(before: Spent, after: Spent) -> float:
    """Of all cores, what other programs used between two moments, 0 to 1."""
    passed_s = after.all_s - before.all_s
    if passed_s <= 0:
        return 0.0
    # A child that has ended takes its time with it.
    own_s = max(after.own_s - before.own_s, 0.0)
    return min(max((after.busy_s - before.busy_s - own_s) / passed_s, 0.0), 1.0)


class Machine:
    def __init__(self) -> None:
        self._process = psutil.Process()
        self._spent: Spent | None = None

    def look(self) -> Look:
        """Some milliseconds of work; to be called from one thread at a time."""
        processes = [self._process]
        with suppress(psutil.Error):
            processes += self._process.children(recursive=True)
        spent, before = _spent(processes), self._spent
        self._spent = spent
        return Look(
            minute=minute_now(),
            on_battery=_on_battery(),
            others_share=others_share(before, spent) if before is not None else 0.0,
            memory_bytes=_resident(processes),
        )


def minute_now() -> int:
    """Of the day, by the clock on the wall."""
    now = datetime.now()
    return 60 * now.hour + now.minute


def allow_files(most: int = MOST_FILES) -> None:
    """Let this process and those that it begins have so many files open, if the system does: a stream is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def wait_with_io() -> None:
    """Read and write after other programs, in this thread and what it begins from now on. Linux alone has it.

    Never raises the priority of what was started with a lower one.
    """
    if sys.platform == "linux":
        with suppress(psutil.Error, OSError):
            if (process := psutil.Process()).ionice().ioclass != psutil.IOPRIO_CLASS_IDLE:
                process.ionice(psutil.IOPRIO_CLASS_BE, LOWEST_BEST_EFFORT)


# The training thread alone, not the process: beside three busy programs on two cores an event loop woke up to 4 ms late
# (99 of 100 times) with a nice training thread, 14 ms with none, and 20 ms with all of the process nice. Others would
# take that for a slow link. Either way a thread at 10 did a sixth of the work that it did at 0.
def wait_with_work(nice: int) -> None:
    """Give way to other programs in the calling thread, and in those that it begins; where threads share one niceness,
    on macOS, in the whole process. Never raises the priority of what was started with a lower one.
    """
    who = threading.get_native_id() if sys.platform == "linux" else 0
    with suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, who) < nice:
            os.setpriority(os.PRIO_PROCESS, who, nice)


def _spent(processes: list[psutil.Process]) -> Spent:
    times: dict[str, float] = {}
    with suppress(psutil.Error, OSError):
        times = psutil.cpu_times()._asdict()
    # What virtual machines use is in `user` already.
    every = {name: value for name, value in times.items() if not name.startswith("guest")}
    idle_s = sum(every.get(name, 0.0) for name in ("idle", "iowait", "steal"))
    all_s, own_s = sum(every.values()), 0.0
    for process in processes:
        with suppress(psutil.Error, OSError):
            own = process.cpu_times()
            own_s += own.user + own.system
    return Spent(all_s, all_s - idle_s, own_s)


def _resident(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.Error, OSError):
            total += process.memory_info().rss
    return total


def _on_battery() -> bool:
    """False where there is none, or where that is not known."""
    with suppress(psutil.Error, OSError):
        if hasattr(psutil, "sensors_battery") and (battery := psutil.sensors_battery()) is not None:
            return battery.power_plugged is False and _has_own_battery()
    return False


def _has_own_battery() -> bool:
    """psutil takes a wireless mouse's for one on which the machine runs; Linux says whose each is."""
    supplies = SUPPLIES.iterdir() if sys.platform == "linux" else ()
    scopes = [one / "scope" for one in supplies if one.name.startswith("BAT") or "battery" in one.name.lower()]
    return not scopes or not all(scope.exists() and scope.read_text().strip() == "Device" for scope in scopes)
