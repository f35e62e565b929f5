"""What a run needs of a machine, and the short form of the checks: what ``atoll join`` asks of itself."""

import time
from collections.abc import Sequence
from pathlib import Path

from runtime.config import PeerConfig, RunConfig
from runtime.doctor import packages, resources
from runtime.doctor.check import Check, Verdict, failed, fails, passed, warned
from runtime.errors import ConfigError, NotNowError

# What fails here may be well half a minute later: the clock not yet set after a start, a disk full or not yet mounted.
PASSING = ("clock", "disk")


def needs_of(config: RunConfig, auxiliary: bool = False) -> resources.Needs:
    """As ``atoll plan`` reckons. Imports PyTorch."""
    from runtime.planning import PROCESS_BYTES, usual_plan

    plan = usual_plan(config, trains=not auxiliary)
    return resources.Needs(
        PROCESS_BYTES + int(plan["host_memory_bytes"]),
        int(plan["device_memory_bytes"]),
        int(plan["checkpoint_bytes"]),
        trains=not auxiliary,
    )


def machine_checks(folder: Path, keep: int, device: resources.Device, needs: resources.Needs | None) -> list[Check]:
    """Memory, disk and device, with a model to measure against or without."""
    free, held = resources.disk_now(folder)
    return [
        resources.check_memory(resources.memory_now(), needs, device.kind),
        resources.check_folder(folder) or resources.check_disk(folder, free, held, needs, keep),
        resources.check_device(device, needs),
    ]


def check_data(config: RunConfig, peer_config: PeerConfig) -> Check | None:
    """Whether text of the user's own is of any use to the run. None if they have named none, or it is."""
    if peer_config.data is None or config.data.source == "files":
        return None
    words = f"this run trains on text of its own (data.source is {config.data.source!r}): --data has no use in it"
    return warned("data", words, "leave it out, or open a run with data.source = 'files'")


def check_lent(config: RunConfig, peer_config: PeerConfig, device: resources.Device) -> Check | None:
    """Whether what the user lends is enough, as ``atoll join`` asks itself. None if they lend all that there is."""
    from runtime.planning import check_fits

    limits, kind = peer_config.limits, "" if peer_config.auxiliary else device.kind
    if not (limits.memory_bytes or limits.disk_bytes):
        return None
    try:
        check_fits(config, limits, kind, peer_config.folder)
    except ConfigError as error:
        words, _, fix = str(error).partition(": ")
        return failed("limits", words, fix)
    return passed("limits", "what you lend of memory and disk is enough for this run")


def checks_before_joining() -> list[Check]:
    """Some milliseconds, before anything is imported that takes long."""
    calendar = resources.check_calendar(time.time())
    return [*packages.quick_checks(), *([calendar] if calendar else [])]


def checks_for_run(config: RunConfig, peer_config: PeerConfig) -> list[Check]:
    """Once it is known what the run is, before its model is built.

    Raises: ConfigError for a device that is not here.
    """
    device = resources.Device("cpu") if peer_config.auxiliary else resources.device_now(peer_config.device)
    needs = needs_of(config, peer_config.auxiliary)
    data = check_data(config, peer_config)
    return [*machine_checks(peer_config.folder, peer_config.keep, device, needs), *([data] if data else [])]


def warnings_of(checks: Sequence[Check]) -> list[str]:
    """What there is to say of them where nothing fails.

    Raises: ConfigError with the first that fails, NotNowError if that may pass.
    """
    for check in fails(checks):
        blamed = NotNowError if check.name in PASSING else ConfigError
        raise blamed(f"this machine is not fit for it: {check.sentence()}")
    return [f"note: {check.sentence()}" for check in checks if check.verdict is Verdict.WARN]
