"""``atoll dashboard``."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import ConfigError
from runtime.invite import parse_invite


def dashboard(
    invite: Annotated[
        str | None, typer.Argument(help="What atoll start printed: atoll:...", metavar="[INVITE]", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(metavar="IP", help="Address to serve the page on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port to serve it on; 0: any free one.")] = 8080,
    past: Annotated[
        Path | None, typer.Option("--replay", metavar="DIR", help="Show the event logs in DIR instead of a live run.")
    ] = None,
    speed: Annotated[float, typer.Option(metavar="X", help="Replay so many times as fast.")] = 10.0,
) -> int:
    """Show a run in a browser. Ctrl-C ends it.

    Give an INVITE to watch a live run, or --replay for one that is over.
    """
    if (invite is None) == (past is None):
        raise ConfigError("name either an INVITE, for a live run, or --replay DIR, for the event logs of a past one")
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}, but must be from 0 to 65535")
    if not (math.isfinite(speed) and 0 < speed <= 1e6):
        raise ConfigError(f"--speed is {speed:g}, but must be above 0 and at most 1000000")
    import asyncio

    from runtime.monitor.source import Watched, follow_run, logged, manifest_below, replay

    watched = Watched()
    if past is not None:
        feed = replay(logged(past), watched, speed)
        watched.manifest = manifest_below(past)
    else:
        assert invite is not None
        parsed = parse_invite(invite)
        watched.run_id = parsed.run_id
        feed = follow_run(parsed, watched)
    try:
        from runtime.monitor.dashboard.server import address_of, is_private, listen, serve
    except ImportError as error:
        feed.close()
        raise ConfigError(
            f"the dashboard needs the package {error.name or 'nicegui'}: make monitor, or pip install '.[monitor]'"
        ) from None
    try:
        listening = listen(host, port)
    except ConfigError:
        feed.close()
        raise

    def ready() -> None:
        print(f"The dashboard is at {address_of(listening)} (Ctrl-C ends it)", flush=True)
        if not is_private(listening):
            print(
                "atoll: whoever reaches this machine can read it: there is no password and no encryption",
                file=sys.stderr,
                flush=True,
            )

    asyncio.run(serve(watched, feed, listening, ready, replayed=past is not None, name=host))
    return 0
