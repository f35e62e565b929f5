"""The command line. Parses and checks; what takes long to import is imported by the command that needs it."""

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from peers.errors import NetworkError
from peers.identity import Identity, IdentityError
from runtime.config import PeerConfig, RunConfig, validate
from runtime.errors import ConfigError
from runtime.invite import parse_invite
from runtime.runfile import load_run_file, render_run_file

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
# One a second: beyond it, peers die while they start.
MOST_FAULTS_PER_HOUR = 3600

P = ParamSpec("P")
app = typer.Typer(
    name="atoll",
    help="Train a model together with volunteers' machines: no coordinator, one model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

KEY_DEFAULT = "~/.config/atoll/identity.key"

Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="This peer's state and event log.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key.", show_default=KEY_DEFAULT)]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(metavar="N", help="CPU threads; 0: as PyTorch chooses.")]
Data = Annotated[str | None, typer.Option(metavar="PATH", help="Text file, folder or glob to train on.")]
Host = Annotated[str, typer.Option(metavar="IP", help="Address to listen on.")]
Port = Annotated[int, typer.Option(metavar="N", help="TCP port to listen on; 0: as before, or any free one.")]
Upload = Annotated[float, typer.Option(metavar="MBIT", help="Most Mbit/s to send; 0: no limit.")]
Download = Annotated[float, typer.Option(metavar="MBIT", help="Most Mbit/s to take; 0: no limit.")]
Auxiliary = Annotated[bool, typer.Option("--auxiliary", help="Train nothing; reduce for those who do.")]
Anew = Annotated[bool, typer.Option("--anew", help="Begin again if nobody who was in the run is left.")]
ExitWithStdin = Annotated[bool, typer.Option("--exit-with-stdin", hidden=True)]
InnerStep = Annotated[float, typer.Option("--inner-step-s", hidden=True)]


def _within(low: int, high: int) -> Callable[[int], int]:
    """A range check. Typer's own min and max push the help text of every option to the right edge."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise typer.BadParameter(f"{value} is not in the range from {low} to {high}")
        return value

    return check


def main() -> NoReturn:
    """Entry point of the ``atoll`` script. Whatever a user can mend is one sentence on stderr and exit code 2."""
    _open_standard_streams()
    try:
        app(prog_name="atoll")
    except (ConfigError, NetworkError, IdentityError) as error:
        print(f"atoll: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    sys.exit(0)


def _open_standard_streams() -> None:
    """Where the caller closed one (``<&-``) nobody else is to get its number: libuv aborts on closing such a socket."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, so this one.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def command(function: Callable[P, int]) -> Callable[P, None]:
    """Register a command whose result is the exit code; Ctrl-C is 130, without a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    return app.command()(run)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("atoll")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed, run from its sources)"
        print(f"atoll {version}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


@command
def keygen(
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it.", metavar="PATH", show_default=KEY_DEFAULT)
    ] = None,
) -> int:
    """Create this machine's private key, and print its peer id. Never overwrites."""
    chosen = _default_key() if path is None else path
    identity = _create_key(chosen, make_parents=path is None)
    print(identity.peer)
    return 0


@command
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.", metavar="FILE")] = Path("atoll.toml"),
) -> int:
    """Write a run file with every setting explained. Never overwrites."""
    text = render_run_file(RunConfig())
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists already and is never overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); name a file in a folder of yours") from None
    print(f"Wrote {file}. Edit it, then open the run with:\n\n    atoll start {file}")
    return 0


@command
def start(
    file: Annotated[Path, typer.Argument(help="A run file, as atoll init writes it.", metavar="FILE")],
    folder: Folder = None,
    key: Key = None,
    device: Device = "auto",
    threads: Threads = 0,
    data: Data = None,
    host: Host = "0.0.0.0",
    port: Port = 0,
    upload: Upload = 0.0,
    download: Download = 0.0,
    auxiliary: Auxiliary = False,
    anew: Anew = False,
    exit_with_stdin: ExitWithStdin = False,
    inner_step_s: InnerStep = 0.0,
) -> int:
    """Open a run as its first peer, and print the invite.

    Without --folder, the peer's folder lies beside FILE: run.toml has run.peer.
    """
    run_config = load_run_file(file)
    if data is not None and run_config.data.source != "files":
        raise ConfigError(f"{file}: data.source is {run_config.data.source!r}, so --data has no use; set it to 'files'")
    peer_config = PeerConfig(
        folder or file.with_suffix(".peer"),
        key or _default_key(),
        device,
        threads,
        data,
        host,
        port,
        upload,
        download,
        auxiliary,
        anew,
        exit_with_stdin,
        inner_step_s,
    )
    _prepare(peer_config, may_make_key=key is None)
    from runtime.app import start as start_peer

    return _run(start_peer(run_config, peer_config))


@command
def join(
    invite: Annotated[str, typer.Argument(help="What atoll start printed: atoll:...", metavar="INVITE")],
    folder: Folder = None,
    key: Key = None,
    device: Device = "auto",
    threads: Threads = 0,
    data: Data = None,
    host: Host = "0.0.0.0",
    port: Port = 0,
    upload: Upload = 0.0,
    download: Download = 0.0,
    auxiliary: Auxiliary = False,
    anew: Anew = False,
    exit_with_stdin: ExitWithStdin = False,
    inner_step_s: InnerStep = 0.0,
) -> int:
    """Join a run that someone has invited you to. Ctrl-C leaves it.

    Without --folder, the peer's folder is ~/.local/share/atoll/RUN.
    """
    parsed = parse_invite(invite)
    peer_config = PeerConfig(
        folder or _user_folder("XDG_DATA_HOME", ".local/share") / parsed.run_id[:12],
        key or _default_key(),
        device,
        threads,
        data,
        host,
        port,
        upload,
        download,
        auxiliary,
        anew,
        exit_with_stdin,
        inner_step_s,
    )
    _prepare(peer_config, may_make_key=key is None)
    from runtime.app import join as join_peer

    return _run(join_peer(parsed, peer_config))


@command
def demo(
    peers: Annotated[int, typer.Option(callback=_within(1, 64), metavar="N", help="Peers at the start.")] = 4,
    outer_steps: Annotated[
        int, typer.Option(callback=_within(1, 100_000), metavar="N", help="Outer steps in the run.")
    ] = 20,
    inner_steps: Annotated[
        int, typer.Option(callback=_within(1, 100_000), metavar="N", help="Inner steps in each.")
    ] = 25,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Text file, folder or glob to train on.", show_default="Python's standard library"
        ),
    ] = None,
    kill: Annotated[bool, typer.Option(help="SIGKILL one peer in the middle of a round.")] = True,
    late_joiner: Annotated[bool, typer.Option(help="Start one more peer later.")] = True,
    seed: Annotated[
        int, typer.Option(callback=_within(0, 2**63 - 1), metavar="N", help="Seed of the initial weights.")
    ] = 0,
    storm: Annotated[
        float | None,
        typer.Option(metavar="PER_HOUR", help="Kill so many an hour, each comes back."),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Empty or new folder for logs and report.json.", show_default="temporary"),
    ] = None,
) -> int:
    """Train a small model with a swarm on this machine, and report on it."""
    if storm is not None:
        if not 0 < storm <= MOST_FAULTS_PER_HOUR:
            raise ConfigError(
                f"--storm is {storm:g}, but must be above 0 and at most {MOST_FAULTS_PER_HOUR} faults an hour"
            )
        if peers < 2:
            raise ConfigError(
                "a storm leaves as many peers as a step needs, and kills none of a single one; say --peers 2"
            )
        kill = late_joiner = False
    if kill and peers < 2:
        raise ConfigError("the demo kills one of the joiners, and with --peers 1 there is none; say --no-kill")
    if late_joiner and outer_steps < 5:
        raise ConfigError("the late joiner needs a run of at least 5 outer steps to come late to; say --no-late-joiner")
    from runtime.demo.run import DemoOptions, run_demo

    return run_demo(
        DemoOptions(peers, outer_steps, inner_steps, data, kill, late_joiner, seed, workdir=workdir, storm=storm)
    )


def _prepare(config: PeerConfig, may_make_key: bool) -> None:
    """Check what the user has said, and see to it that the key and the folder are there."""
    validate(config, "command line")
    if may_make_key and not os.path.lexists(config.key):
        identity = _create_key(config.key, make_parents=True)
        print(f"atoll: created the key {config.key}; you are {identity.peer}", file=sys.stderr)
    # The peer reads the key again: a broken one is to be known before seconds of imports.
    Identity.load(config.key)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{config.folder} cannot be the peer's folder ({error.strerror}); name another with --folder"
        ) from None


def _create_key(path: Path, make_parents: bool) -> Identity:
    if make_parents:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(
                f"{path.parent} cannot be created ({error.strerror}): name a key file elsewhere."
            ) from None
    identity = Identity.generate()
    identity.save(path)
    return identity


def _default_key() -> Path:
    return _user_folder("XDG_CONFIG_HOME", ".config") / "identity.key"


def _user_folder(variable: str, under_home: str) -> Path:
    """Atoll's own folder as the XDG base directories have it; a relative path in the variable is to be ignored."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / under_home) / "atoll"


def _run(peer: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(peer)


if __name__ == "__main__":
    main()
