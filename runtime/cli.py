"""The command line: the names of the commands, and what is common to all.

What takes long to import is imported by the command that needs it.
"""

import errno
import functools
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, NoReturn, ParamSpec

import typer

from peers.errors import NetworkError
from peers.identity import IdentityError
from runtime.commands import (
    bootstrap,
    control,
    dashboard,
    demo,
    doctor,
    init,
    invite,
    peer,
    plan,
    results,
    service,
    watch,
)
from runtime.errors import EXIT_INTERRUPTED, EXIT_NOT_NOW, EXIT_USAGE, ConfigError, NotNowError
from runtime.version import version

P = ParamSpec("P")
app = typer.Typer(
    name="atoll",
    help="Train a model together with volunteers' machines: no coordinator, one model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """Entry point of the ``atoll`` script. Whatever a user can mend is one sentence on stderr and exit code 2; what may
    pass by itself, the network above all, is the same with exit code 1."""
    try:
        _main()
    except SystemExit as ended:
        if threading.active_count() > 1 and isinstance(ended.code, int):
            _end_abandoned(ended.code)
        raise


def _end_abandoned(exit_code: int) -> None:
    """End the process now if a thread is still at work that nobody waits for: in PyTorch, Python would abort it."""
    from runtime.tasks import is_any_abandoned

    if is_any_abandoned():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)


def _main() -> NoReturn:
    _open_standard_streams()
    try:
        try:
            app(prog_name="atoll")
        finally:
            sys.stdout.flush()
    except (ConfigError, NetworkError, IdentityError) as error:
        print(f"atoll: {error}", file=sys.stderr)
        sys.exit(EXIT_NOT_NOW if isinstance(error, (NotNowError, NetworkError)) else EXIT_USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "runtime").partition(".")[0] in ("runtime", "peers"):
            raise
        print(
            f"atoll: this needs the package {error.name}, which is not installed here: say it where all of Atoll is"
            " (pip install -c constraints.txt .)",
            file=sys.stderr,
        )
        sys.exit(EXIT_USAGE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        if error.errno != errno.EPIPE:
            print(f"atoll: the output cannot be written ({error.strerror}): free some space", file=sys.stderr)
        # What is left in the buffer fails once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_NOT_NOW)
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


def _command(name: str, function: Callable[P, int], within: typer.Typer = app, **settings: bool) -> None:
    """Register a command whose result is the exit code; Ctrl-C is 130, without a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    within.command(name, context_settings=settings)(run)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"atoll {version() or '(not installed, run from its sources)'}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


_command("keygen", peer.keygen)
_command("init", init.init)
_command("plan", plan.plan)
_command("doctor", doctor.doctor)
_command("start", peer.start)
_command("invite", invite.invite)
_command("join", peer.join)
_command("status", control.status)
_command("limits", control.limits)
_command("pause", control.pause)
_command("resume", control.resume)
_command("leave", control.leave)
_command("bootstrap", bootstrap.bootstrap)
_services = typer.Typer(help="A peer that runs by itself, as a service of yours.", no_args_is_help=True)
app.add_typer(_services, name="service")
_command("install", service.install, _services, ignore_unknown_options=True)
_command("uninstall", service.uninstall, _services)
_command("status", service.status, _services)
_command("demo", demo.demo)
_command("watch", watch.watch)
_command("dashboard", dashboard.dashboard)
_command("replay", watch.replay)
_command("report", watch.report)
_command("runs", results.runs)
_command("eval", results.evaluate)
_command("generate", results.generate)
_command("export", results.export)

if __name__ == "__main__":
    main()
