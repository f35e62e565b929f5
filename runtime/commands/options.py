"""The flags of a peer, declared once for all commands; with the peer file they make its configuration."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.config import PeerConfig, shown, validate
from runtime.errors import ConfigError
from runtime.invite import address_problem
from runtime.limits import OFF
from runtime.peerfile import PEER_FILE, read_peer_file

NO = "no_"
KEY_DEFAULT = "~/.config/atoll/identity.key"


def _named(text: str) -> Path:
    """A path that somebody has named: an empty one, as of a variable that is not set, would be this folder."""
    if not text:
        raise typer.BadParameter("its name is empty")
    return Path(text)


Folder = Annotated[Path | None, typer.Option(metavar="DIR", parser=_named, help="This peer's state and event log.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", parser=_named, help="Private key.", show_default=KEY_DEFAULT)]
ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=_named, help="These flags as TOML.", show_default=f"DIR/{PEER_FILE}"),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[str | None, typer.Option(metavar="PATH", help="Text file, folder or glob to train on.")]
Host = Annotated[str, typer.Option(metavar="IP", help="Address to listen on.")]
Port = Annotated[int, typer.Option(metavar="N", help="TCP port; 0: as before.")]
Up = Annotated[str, typer.Option(metavar="RATE", help="Most to send: 2MB/s.")]
Down = Annotated[str, typer.Option(metavar="RATE", help="Most to take.")]
Threads = Annotated[int, typer.Option(metavar="N", help="CPU threads; 0: its choice.")]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Most to hold: 4GB.")]
Disk = Annotated[str, typer.Option(metavar="SIZE", help="Most for the folder: 10GB.")]
Hours = Annotated[str, typer.Option(metavar="SPANS", help="When: 22:00-07:00.")]
Battery = Annotated[bool, typer.Option("--pause-on-battery", help="Pause while on battery.")]
Busy = Annotated[bool, typer.Option("--pause-when-busy", help="Pause while others need the cores.")]
Nice = Annotated[int, typer.Option(metavar="N", help="Gives way: 0 to 19.")]
Keep = Annotated[int, typer.Option(metavar="K", help="Newest checkpoints kept.")]
KeepEvery = Annotated[int, typer.Option(metavar="N", help="Also every N-th one; 0: none.")]
Bootstrap = Annotated[str, typer.Option(metavar="ADDR,...", help="Bootstrap peers.", show_default="none")]
MetricsPort = Annotated[int, typer.Option(metavar="N", help="Local port for Prometheus.")]
Auxiliary = Annotated[bool, typer.Option("--auxiliary", help="Train nothing; reduce for those who do.")]
Anew = Annotated[bool, typer.Option("--anew", help="Begin again if nobody who was in the run is left.")]
# What a peer file has switched on. Hidden: beside each other the two names of a flag make the help twice as long.
NoBattery = Annotated[bool, typer.Option("--no-pause-on-battery", hidden=True)]
NoBusy = Annotated[bool, typer.Option("--no-pause-when-busy", hidden=True)]
NoAuxiliary = Annotated[bool, typer.Option("--no-auxiliary", hidden=True)]
ExitWithStdin = Annotated[bool, typer.Option("--exit-with-stdin", hidden=True)]
InnerStep = Annotated[float, typer.Option("--inner-step-s", hidden=True)]


def _peer_options(
    folder: Folder = None,
    key: Key = None,
    config: ConfigFile = None,
    device: Device = "auto",
    data: Data = None,
    host: Host = "0.0.0.0",
    port: Port = 0,
    up: Up = OFF,
    down: Down = OFF,
    threads: Threads = 0,
    memory: Memory = OFF,
    disk: Disk = OFF,
    hours: Hours = OFF,
    pause_on_battery: Battery = False,
    pause_when_busy: Busy = False,
    nice: Nice = 10,
    keep: Keep = 2,
    keep_every: KeepEvery = 0,
    bootstrap: Bootstrap = "",
    metrics_port: MetricsPort = 0,
    auxiliary: Auxiliary = False,
    anew: Anew = False,
    no_pause_on_battery: NoBattery = False,
    no_pause_when_busy: NoBusy = False,
    no_auxiliary: NoAuxiliary = False,
    exit_with_stdin: ExitWithStdin = False,
    inner_step_s: InnerStep = 0.0,
) -> None:
    """Those of `atoll start`, `join` and `doctor`, each with the default of ``PeerConfig``."""


def with_peer_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with its own parameters and all of these, of which its first is given what the user said, by name."""
    _, *own = inspect.signature(command).parameters.values()
    shared = inspect.signature(_peer_options).parameters
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

    @functools.wraps(command)
    def run(context: typer.Context, **values: Any) -> int:
        return command(said_in(context, values), *(values[one.name] for one in own))

    parameters = (context, *own, *shared.values())
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def said_in(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the flags of a peer those that are not left out, by the fields of ``PeerConfig``."""
    shared = inspect.signature(_peer_options).parameters
    said = {name: values[name] for name in shared if _was_said(context, name)}
    for name in [name for name in said if name.startswith(NO)]:
        said[name.removeprefix(NO)] = not said.pop(name)
    return said


def _was_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    # By its name: where the enumeration is to be imported from differs between releases of typer.
    return source is not None and source.name == "COMMANDLINE"


def peer_config(said: Mapping[str, Any], folder: Path, key: Path) -> PeerConfig:
    """What the command line says, then the peer file, then the defaults.

    Args: folder and key are where they are unless somebody says otherwise.
    Raises: ConfigError.
    """
    folder = said.get("folder", folder)
    file = said.get("config", folder / PEER_FILE)
    # A Path raises where it may not look; what is wrong with the folder is said elsewhere.
    from_file = read_peer_file(file) if "config" in said or os.path.exists(file) else {}  # noqa: PTH110
    made = PeerConfig(**{"folder": folder, "key": key, **from_file, **said})
    validate(made, "command line")
    check_addresses("--bootstrap", made.bootstrap_addresses)
    return made


def check_addresses(option: str, addresses: Iterable[str]) -> None:
    """Raises: ConfigError if one is no address of a peer."""
    for address in addresses:
        if problem := address_problem(address):
            raise ConfigError(f"the address {shown(address)} after {option} {problem}")
