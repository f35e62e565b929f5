"""``atoll service``: a peer that starts with its user's session, or with the machine, and comes back when it dies."""

import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from runtime.commands import bootstrap, peer
from runtime.commands.options import peer_config, said_in
from runtime.errors import ConfigError
from runtime.invite import parse_invite
from runtime.places import config_home, default_key, guide_key, joined_folder, opened_folder
from runtime.runfile import load_run_file
from runtime.service import STOP_S, Manager, Service, digest_of, systemd_unit, unit_name

LOOK_S = 0.2
# There while systemd runs.
SYSTEMD = Path("/run/systemd/system")
# What a service may do. Without one of these words it joins.
COMMANDS: dict[str, Callable[..., int]] = {"join": peer.join, "start": peer.start, "bootstrap": bootstrap.bootstrap}

What = Annotated[
    list[str],
    typer.Argument(
        metavar="INVITE [FLAGS]",
        help="As for atoll join; or start FILE [FLAGS], or bootstrap [FLAGS].",
        show_default=False,
    ),
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Where there are several.", show_default=False)]


def install(
    what: What,
    system: Annotated[bool, typer.Option("--system", help="Print a unit for the whole machine instead.")] = False,
) -> int:
    """Let a peer run as a service of yours from now on."""
    command, *words = what if what[0] in COMMANDS else ["join", *what]
    name, meant = _checked(command, words)
    service = Service(
        unit_name(name),
        (str(_program()), command, *words),
        Path.cwd(),
        meant,
        {name: os.environ[name] for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME") if os.environ.get(name)},
    )
    if system:
        service = replace(service, user=getpass.getuser())
        print(systemd_unit(service), end="")
        print(
            f"atoll: let root write this to /etc/systemd/system/{service.name}.service, and say"
            f" systemctl enable --now {service.name}",
            file=sys.stderr,
        )
        return 0
    manager = _manager()
    file = manager.file(service.name)
    if file.exists() and service.name not in manager.installed():
        raise ConfigError(f"{file} is not from atoll service and stays as it is: rename it")
    if manager.is_other(service):
        raise ConfigError(
            f"{service.name} is the service of another peer, by its run, folder or key: end that one with atoll service"
            f" uninstall {service.name}, or rename the run file"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(manager.content(service))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): make its folder yours") from None
    if manager.domain:
        # launchd takes no job of a name that it has: not the new command line, and with it nothing at all.
        _end(manager, service.name)
    for line in manager.on(service.name):
        _tell(line, file)
    print(f"{service.name} runs from now on, and whenever you log in ({file}).")
    print("atoll service status shows it, atoll service uninstall ends it for good.")
    if not manager.domain:
        print("For it to run while you are not logged in, say once: loginctl enable-linger")
    return 0


def uninstall(name: Name = None) -> int:
    """End a service with a goodbye, and remove it. What the peer has on disk stays."""
    manager = _manager()
    chosen = _only(manager, name)
    _end(manager, chosen)
    manager.file(chosen).unlink()
    print(f"{chosen} is gone; the peer's folder and key are as they were.")
    return 0


def status(name: Name = None) -> int:
    """Show what the system knows of a service."""
    manager = _manager()
    return subprocess.run(manager.status(_only(manager, name)), check=False).returncode


def _checked(command: str, words: list[str]) -> tuple[str, str]:
    """What the service is called after, and a digest of what it is for. Mistakes in its flags are to be known now and
    not from a log.

    Raises: ConfigError, or click's own errors.
    """
    app = typer.Typer(add_completion=False)
    app.command(command)(COMMANDS[command])
    context = typer.main.get_command(app).make_context(f"atoll {command}", list(words))
    parsed = context.params
    run_id = parse_invite(parsed["invite"]).run_id if parsed.get("invite") else ""
    if command == "bootstrap":
        key = parsed["key"] or guide_key()
        return run_id[:12] or command, digest_of(command, run_id, str(key.absolute()))
    if command == "start":
        load_run_file(parsed["file"])
    folder = opened_folder(parsed["file"]) if command == "start" else joined_folder(run_id)
    config = peer_config(said_in(cast(typer.Context, context), parsed), folder, default_key())
    run = str(parsed["file"].absolute()) if command == "start" else run_id
    name = parsed["file"].stem if command == "start" else run_id[:12]
    return name, digest_of(command, run, str(config.folder.absolute()), str(config.key.absolute()))


def _program() -> Path:
    """Raises: ConfigError if there is none that is still there without this shell."""
    beside = Path(sys.executable).parent / "atoll"
    if not beside.is_file():
        raise ConfigError(f"there is no {beside}: install Atoll with pip, and say it again with that one")
    return beside


def _manager() -> Manager:
    """Raises: ConfigError if this machine has neither."""
    if sys.platform == "darwin":
        return Manager(Path.home() / "Library" / "LaunchAgents", ".plist", f"gui/{os.getuid()}")
    # In a container or under WSL the program may be there without what it speaks to.
    if shutil.which("systemctl") is None or not SYSTEMD.is_dir():
        raise ConfigError("this machine has no systemd: let what starts its services run atoll join INVITE")
    return Manager(config_home().parent / "systemd" / "user", ".service")


def _only(manager: Manager, name: str | None) -> str:
    installed = manager.installed()
    if name is not None:
        exact = [one for one in installed if one in (name, f"atoll-{name}")]
        installed = exact or [one for one in installed if name and one.startswith(f"atoll-{name}")]
    if not installed:
        raise ConfigError(f"there is no such service in {manager.folder}: atoll service install makes one")
    if len(installed) > 1:
        raise ConfigError(f"there are {len(installed)} services: say which, of {', '.join(installed)}")
    return installed[0]


def _end(manager: Manager, name: str) -> None:
    """Let a service end, with its goodbye.

    Raises: ConfigError with what systemd had to say. That launchd knows no such job is no reason to keep it.
    """
    if not manager.domain:
        for line in manager.off(name):
            _tell(line, manager.file(name))
        return
    for line in manager.off(name):
        subprocess.run(line, capture_output=True, check=False)
    # It may return before the job has ended.
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if subprocess.run(manager.status(name), capture_output=True, check=False).returncode:
            return
        time.sleep(LOOK_S)


def _tell(line: Sequence[str], file: Path) -> None:
    """Raises: ConfigError with what the system had to say."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise ConfigError(f"{file} is there, but {' '.join(line)} failed ({said}): mend that, and say it again")
