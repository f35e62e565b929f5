"""``atoll doctor``: whether this machine is fit for a run, line by line, with the fix."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

import typer

from runtime.commands.options import peer_config, with_peer_options
from runtime.config import PeerConfig
from runtime.doctor.check import Check, failed, fails
from runtime.doctor.fitness import check_data, check_lent, machine_checks, needs_of
from runtime.doctor.packages import thorough_checks
from runtime.doctor.resources import Device, Needs, check_calendar, check_key, device_now
from runtime.errors import ConfigError
from runtime.folder import Folder
from runtime.invite import Invite, parse_invite
from runtime.manifest import Manifest
from runtime.places import data_home, default_key, joined_folder

EXIT_UNFIT = 1


@with_peer_options
def doctor(
    flags: dict[str, Any],
    invite: Annotated[str | None, typer.Argument(help="Of the run to look at; without, no network.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> int:
    """Look whether this machine is fit for a run. Joins nothing.

    Flags and peer file are those of atoll join. Exit code 1 if anything fails.
    """
    parsed = parse_invite(invite) if invite is not None else None
    config = peer_config(flags, joined_folder(parsed.run_id) if parsed else data_home(), default_key())
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
        say(check_key(config.key, config.key != default_key()))
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
    if not isinstance(found, Device):
        return [*checks[:-1], found]
    if manifest is None:
        return checks
    of_run = (check_lent(manifest.config, config, device), check_data(manifest.config, config))
    return [*checks, *(check for check in of_run if check is not None)]


async def _visit(invite: Invite, config: PeerConfig, say: Callable[[Check], None]) -> Manifest | None:
    from runtime.doctor.online import Visit

    found: list[Manifest] = []
    visit = Visit(invite, config.host, config.port or Folder(config.folder).port, found.append)
    async for check in visit.checks():
        say(check)
    return found[0] if found else None
