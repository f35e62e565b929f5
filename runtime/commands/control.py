"""``atoll status``, ``limits``, ``pause``, ``resume`` and ``leave``: a word with a peer that runs on this machine."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.commands.options import Battery, Busy, Disk, Down, Hours, Memory, NoBattery, NoBusy, Up
from runtime.control import NoAnswerError, NotRunningError, ask, is_running
from runtime.errors import ConfigError
from runtime.limits import limit_words, limits_words
from runtime.monitor.words import size_words
from runtime.progress import doing_words, progress_from, share_words, step_words
from runtime.running import command_line, find_running

EXIT_UNHEALTHY = 1
# A goodbye takes five seconds, and what a large state takes to write.
LEAVING_S = 60.0
LOOK_S = 0.1

Which = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Name, beginning of the run id, or folder of the peer.",
        show_default="the only one that runs here",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="As one JSON object.")]
UNCHANGED = "as it is"


def status(run: Which = None, as_json: Json = False) -> int:
    """Show what a running peer does, and its limits.

    Exit code 0: it is well, be it at work or paused. 1: it does not answer, or its training stands still. 2: none runs.
    """
    folder = find_running(run)
    try:
        told = ask(folder, {"do": "status"})
    except NotRunningError as error:
        raise ConfigError(f"{error}: it has just ended") from None
    except NoAnswerError as error:
        print(f"atoll: {error}", file=sys.stderr)
        return EXIT_UNHEALTHY
    print(json.dumps(told) if as_json else "\n".join(status_lines(told)))
    return 0 if told["healthy"] else EXIT_UNHEALTHY


def limits(
    run: Which = None,
    up: Up = UNCHANGED,
    down: Down = UNCHANGED,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads, from the next phase on.", show_default=UNCHANGED)
    ] = None,
    memory: Memory = UNCHANGED,
    disk: Disk = UNCHANGED,
    hours: Hours = UNCHANGED,
    pause_on_battery: Battery = False,
    pause_when_busy: Busy = False,
    no_pause_on_battery: NoBattery = False,
    no_pause_when_busy: NoBusy = False,
    save: Annotated[bool, typer.Option("--save", help="For later starts too, in the peer file.")] = False,
    as_json: Json = False,
) -> int:
    """Show the limits of a running peer, or change them.

    Until it ends, or with --save for good. --no-pause-on-battery and --no-pause-when-busy switch off.
    """
    said: dict[str, object] = {"up": up, "down": down, "memory": memory, "disk": disk, "hours": hours}
    said["threads"] = threads
    change = {name: value for name, value in said.items() if value not in (UNCHANGED, None)}
    for name, on, off in (
        ("pause-on-battery", pause_on_battery, no_pause_on_battery),
        ("pause-when-busy", pause_when_busy, no_pause_when_busy),
    ):
        if on or off:
            change[name] = not off
    if save and not change:
        raise ConfigError("--save has nothing to save: say a limit with it, such as --up 2MB/s")
    told = _ask(find_running(run), {"do": "limits", "change": change, "save": save})
    if save:
        print(f"atoll: saved for later starts: {', '.join(sorted(change))}", file=sys.stderr)
    if save and (first := _on_its_command_line(told["pid"], change)):
        print(
            f"atoll: note: this peer was started with {', '.join(first)}, which comes before what is saved: start it"
            " without that",
            file=sys.stderr,
        )
    in_force = told["limits"]
    lines = [f"{name:17} {limit_words(value)}" for name, value in in_force.items()]
    print(json.dumps(in_force) if as_json else "\n".join(lines))
    return 0


def pause(run: Which = None) -> int:
    """Let a running peer leave its run for a while.

    It keeps its work, and gives memory and link back.
    """
    folder = find_running(run)
    told = _ask(folder, {"do": "pause"})
    deadline = time.monotonic() + LEAVING_S
    while told["doing"] == "pausing":
        if time.monotonic() > deadline:
            print(f"atoll: the peer in {folder} is still writing its state; it pauses by itself", file=sys.stderr)
            return EXIT_UNHEALTHY
        time.sleep(LOOK_S)
        told = _ask(folder, {"do": "status"})
    # Meanwhile somebody else may have said otherwise.
    print(f"paused: {told['paused']}; atoll resume lets it go on" if told["doing"] == "paused" else told["doing"])
    return 0


def resume(run: Which = None) -> int:
    """Let a paused peer take part again."""
    told = _ask(find_running(run), {"do": "resume"})
    print(f"still paused: {told['paused']}; atoll limits can change that" if told["paused"] else "resumed")
    return 0


def leave(run: Which = None) -> int:
    """Let a running peer say goodbye and end, as Ctrl-C does."""
    folder = find_running(run)
    _ask(folder, {"do": "leave"})
    deadline = time.monotonic() + LEAVING_S
    while is_running(folder):
        if time.monotonic() > deadline:
            print(f"atoll: the peer in {folder} is still writing its state; it ends by itself", file=sys.stderr)
            return EXIT_UNHEALTHY
        time.sleep(0.05)
    print(f"the peer in {folder} has left")
    return 0


def _on_its_command_line(pid: int, names: Iterable[str]) -> list[str]:
    """Of these flags those that a peer was started with, as far as that is known."""
    said = {word.partition("=")[0] for word in command_line(pid)}
    return [flag for name in names for flag in (f"--{name}", f"--no-{name}") if flag in said]


def _ask(folder: Path, request: Mapping[str, object]) -> dict[str, Any]:
    """Raises: ConfigError."""
    try:
        return ask(folder, request)
    except NotRunningError as error:
        raise ConfigError(f"{error}: it has just ended") from None
    except NoAnswerError as error:
        raise ConfigError(f"{error}: it hangs, or this machine does; kill it, and it goes on from its disk") from None


def status_lines(told: Mapping[str, Any]) -> list[str]:
    """What `atoll status` prints of an answer."""
    run = f"run {told['run']} ({told['run_id'][:12]})" if told["run"] else "no run yet"
    lines = [f"{run} in {told['folder']}, process {told['pid']}"]
    if told["paused"]:
        lines.append(f"{told['doing']}: {told['paused']}")
    elif "others" not in told:
        lines.append(told["doing"])
    if "others" in told:
        progress = progress_from(told)
        parts = [step_words(progress)] + ([] if told["paused"] else [doing_words(progress)]) + [share_words(progress)]
        lines += [", ".join(words) for words in parts]
        if progress.unsaved:
            lines.append(f"not saved, what was saved before stands: {progress.unsaved}")
    lines.append(f"{size_words(told['memory_bytes'])} of memory, {size_words(told['disk_bytes'])} of the disk")
    return [*lines, f"limits: {', '.join(limits_words(told['limits'])) or 'none'}"]
