"""``atoll watch``, ``replay`` and ``report``: a run as it goes on, one that is past, and a page of it to share."""

import asyncio
import json
import math
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from runtime.errors import ConfigError, NotNowError
from runtime.invite import Invite, parse_invite
from runtime.monitor import source
from runtime.monitor.picture import Picture
from runtime.monitor.report import report as page_of
from runtime.monitor.screen import Showing
from runtime.monitor.source import Watched
from runtime.monitor.summary import summary
from runtime.monitor.terminal import show, view
from runtime.progress import counted
from runtime.shelf import find_run

# Of silence, and in all: a member with a slow link may take minutes to tell a long past.
LIVE_TIMEOUT_S, MOST_S = 15.0, 300.0
LIVE_POLL_S = 0.05
EXIT_ENDED = 128 + signal.SIGTERM
MOST_SPEED = 1e6
# Where nothing shows how high the output is, all of it is wanted.
ENDLESS = 400

Logs = Annotated[
    Path, typer.Argument(metavar="DIR", help="A peer's folder, or one with such folders in it; or a run's name.")
]


def watch(
    invite: Annotated[str, typer.Argument(help="Of the run: atoll:...", metavar="INVITE")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: one JSON object.")] = False,
) -> int:
    """Watch a run in the terminal. Ctrl-C ends it.

    Its loss, its members, the round under way. Takes no part in it.
    """
    parsed = parse_invite(invite)
    if as_json and not once:
        raise ConfigError("--json shows a run once: say atoll watch INVITE --once --json")
    if once:
        return watch_once(source.follow_run, parsed, as_json)
    source.require_observer()
    watched = Watched(parsed.run_id)
    return _until_ended(show(Showing(watched), source.follow_run(parsed, watched), _console()))


def watch_once(
    follow: Callable[[Invite, Watched], Coroutine[Any, Any, None]],
    invite: Invite,
    as_json: bool,
    timeout_s: float = LIVE_TIMEOUT_S,
) -> int:
    """Show a run as soon as a member has told all of its past.

    Raises: NotNowError if nothing more of it has come for ``timeout_s``.
    """
    watched = Watched(invite.run_id)

    async def until_live() -> None:
        task = asyncio.create_task(follow(invite, watched))
        try:
            async with asyncio.timeout(MOST_S):
                while not (watched.picture.live or task.done()) and watched.silent_s < timeout_s:
                    await asyncio.wait({task}, timeout=LIVE_POLL_S)
        except TimeoutError:
            pass
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    if code := _until_ended(until_live()):
        return code
    if not watched.picture.live:
        why = f" ({watched.trouble})" if watched.trouble else ""
        raise NotNowError(
            f"no member has told of the run within {timeout_s:.0f} s{why}: try again, or ask for a new invite"
        )
    if as_json:
        print(json.dumps(summary(watched)))
    else:
        console = _console()
        console.print(view(Showing(watched), console, console.height - 1 if console.is_terminal else ENDLESS))
    return 0


def replay(
    logs: Logs,
    speed: Annotated[float, typer.Option(metavar="N", help="So many times as fast as it was.")] = 10.0,
) -> int:
    """Show a past run again in the terminal, from its peers' logs."""
    if not (math.isfinite(speed) and 0 < speed <= MOST_SPEED):
        raise ConfigError(f"--speed is {speed:g}, but must be above 0 and at most {MOST_SPEED:g}")
    watched, logs = Watched(), _folder_of(logs)
    events = source.logged(logs)
    watched.manifest = source.manifest_below(logs)
    telling = source.replay(events, watched, speed)
    return _until_ended(show(Showing(watched, str(logs), speed), telling, _console()))


def report(
    logs: Logs,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it.", show_default="DIR.html, here")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> int:
    """Write one HTML page of a run, from its peers' logs.

    To be read anywhere, and to be shared.
    """
    logs = _folder_of(logs)
    events = source.logged(logs)
    manifest = source.manifest_below(logs)
    name = manifest.config.name if manifest else logs.resolve().name
    file = out or Path(f"{logs.resolve().name}.html")
    picture = Picture()
    for event in events:
        picture.see(event)
    page = page_of(picture, name, manifest)
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(page)
    except FileExistsError:
        raise ConfigError(f"{file} exists already: say --force to overwrite it, or name another with --out") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): name another with --out") from None
    of_it = f"{counted(len(picture.steps), 'outer step')} and {counted(len(picture.members), 'member')}"
    print(f"Wrote {file.absolute()}: {of_it}")
    return 0


def _folder_of(logs: Path) -> Path:
    """A folder, or that of the run on this disk which is called so."""
    return logs if logs.exists() else find_run(str(logs)).folder


def _console() -> Console:
    # A terminal that has not all signs shows another in their place.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console(markup=False, highlight=False)


def _until_ended(showing: Coroutine[Any, Any, None]) -> int:
    """Run it; SIGTERM ends it as Ctrl-C does, so that the terminal is left as it was."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await showing

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        return EXIT_ENDED
    return 0
