"""``atoll doctor``: whether this machine is fit for a run, line by line, with the fix."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from runtime.config import PeerConfig, validate
from runtime.doctor.check import Check, failed, fails
from runtime.doctor.fitness import machine_checks, needs_of
from runtime.doctor.packages import thorough_checks
from runtime.doctor.resources import Device, Needs, check_calendar, check_key, device_now
from runtime.errors import ConfigError
from runtime.folder import Folder
from runtime.invite import Invite, parse_invite
from runtime.manifest import Manifest
from runtime.places import config_home, data_home

EXIT_UNFIT = 1


def doctor(
    invite: Annotated[str | None, typer.Argument(help="Of the run to look at; without, no network.")] = None,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="The peer's folder, as for atoll join.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key, as for atoll join.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    host: Annotated[str, typer.Option(metavar="IP", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port; 0: the peer's, or any free one.")] = 0,
    keep: Annotated[int, typer.Option(metavar="K", help="Checkpoints that stay on disk.")] = 2,
    auxiliary: Annotated[bool, typer.Option("--auxiliary", help="For a peer that trains nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> int:
    """Look whether this machine is fit for a run, and what to mend. Joins nothing.

    Exit code 1 if anything fails.
    """
    parsed = parse_invite(invite) if invite is not None else None
    home = folder or (data_home() / parsed.run_id[:12] if parsed else data_home())
    config = PeerConfig(
        folder=home,
        key=key or config_home() / "identity.key",
        device=device,
        host=host,
        port=port,
        keep=keep,
        auxiliary=auxiliary,
    )
    validate(config, "command line")
    said: list[Check] = []

    def say(check: Check | None) -> None:
        if check is not None:
            said.append(check)
            if not as_json:
                print(check, flush=True)

    with ThreadPoolExecutor(1) as pool:
        # PyTorch takes seconds to import: meanwhile there is enough else to look at.
        looking = pool.submit(_device, config)
        for check in thorough_checks():
            say(check)
        say(check_key(config.key, key is not None))
        say(check_calendar(time.time()))
        manifest: Manifest | None = None
        if parsed is not None:
            manifest = asyncio.run(_visit(parsed, config, say))
        for check in _machine(config, looking, manifest):
            say(check)
    n_failed = len(fails(said))
    if as_json:
        print(json.dumps({"fit": not n_failed, "checks": [asdict(check) for check in said]}))
    else:
        print(
            "\nThis machine is fit." if not n_failed else f"\n{n_failed} of {len(said)} checks failed: see the fixes."
        )
    return EXIT_UNFIT if n_failed else 0


def _device(config: PeerConfig) -> Device | Check:
    try:
        return Device("cpu") if config.auxiliary else device_now(config.device)
    except ConfigError as error:
        words, _, fix = str(error).partition("; ")
        return failed("device", words, fix)
    except ImportError as error:
        return failed("device", f"PyTorch cannot be imported ({error})", "pip install --force-reinstall torch")


def _machine(config: PeerConfig, looking: "Future[Device | Check]", manifest: Manifest | None) -> list[Check]:
    found = looking.result()
    needs: Needs | None = None
    if manifest is not None and isinstance(found, Device):
        needs = needs_of(manifest.config, config.auxiliary)
    device = found if isinstance(found, Device) else Device("cpu")
    checks = machine_checks(config.folder, config.keep, device, needs)
    return checks if isinstance(found, Device) else [*checks[:-1], found]


async def _visit(invite: Invite, config: PeerConfig, say: Callable[[Check], None]) -> Manifest | None:
    from runtime.doctor.online import Visit

    found: list[Manifest] = []
    visit = Visit(invite, config.host, config.port or Folder(config.folder).port, found.append)
    async for check in visit.checks():
        say(check)
    return found[0] if found else None
