"""A peer as a service of its user: what systemd, or launchd on a Mac, is told of it. Text and command lines only."""

import hashlib
import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "Written by atoll service install; atoll service uninstall removes it."
FOR = "It is for "
# A goodbye takes five seconds; a state of 18 GB (the largest model) some minutes to a slow disk.
STOP_S = 300
RESTART_S = 30


@dataclass(frozen=True)
class Service:
    name: str
    """Of the unit, without its suffix: ``atoll-`` and what it is for."""
    command: tuple[str, ...]
    """The program with its absolute path, and its arguments."""
    folder: Path
    """Where it stands: paths in the arguments may be relative to it."""
    meant: str
    """A digest of what it is for, as from ``digest_of``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    """Empty for a service of whoever installs it; else it is the machine's, and runs as this user."""


def unit_name(words: str) -> str:
    """What both systems take in a name, as near to ``words`` as can be."""
    return f"atoll-{re.sub(r'[^A-Za-z0-9_.-]', '-', words)[:64]}"


def digest_of(*what: str) -> str:
    """Of what makes a service this one and no other: what it does, its run, its folder and its key."""
    return hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]


def systemd_unit(service: Service) -> str:
    """The unit file.

    Only the peer itself is told to end (``KillMode``): it says goodbye through p2pd, which ends with it. A mistake of
    the user's, exit code 2, does not become better by trying again; all else may. Nothing here is nice: training is
    by itself, and what answers the others must not be (runtime/machine.py).
    """
    lines = [
        f"# {MARK}",
        f"# {FOR}{service.meant}.",
        "[Unit]",
        f"Description=Atoll: {service.name.removeprefix('atoll-')}",
        *(("Wants=network-online.target", "After=network-online.target") if service.user else ()),
        "",
        "[Service]",
        *((f"User={service.user}",) if service.user else ()),
        f"WorkingDirectory={_percent(str(service.folder))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment.items()),
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in service.command)}",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        "RestartPreventExitStatus=2",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        "OOMScoreAdjust=500",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if service.user else 'default.target'}",
    ]
    return "\n".join([*lines, ""])


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """As one word of systemd's, whatever is in it."""
    escaped = _percent(word).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def launchd_job(service: Service, log: Path) -> bytes:
    """The property list. launchd knows no exit code that is final, so a mistake of the user's is tried again."""
    return plistlib.dumps(
        {
            "Label": service.name,
            "ProgramArguments": list(service.command),
            "WorkingDirectory": str(service.folder),
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            "ExitTimeOut": STOP_S,
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    ).replace(b"<plist", f"<!-- {MARK} {FOR}{service.meant}. -->\n<plist".encode(), 1)


@dataclass(frozen=True)
class Manager:
    """Who looks after services on this machine."""

    folder: Path
    suffix: str
    domain: str = ""
    """Of launchd; empty for systemd."""

    @property
    def program(self) -> str:
        return "launchctl" if self.domain else "systemctl"

    def file(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def content(self, service: Service) -> bytes:
        if self.domain:
            return launchd_job(service, self.folder.parent / "Logs" / f"{service.name}.log")
        return systemd_unit(service).encode()

    def installed(self) -> list[str]:
        """Names of the services that this program has written, in order."""
        files = sorted(self.folder.glob(f"atoll-*{self.suffix}"))
        return [file.name.removesuffix(self.suffix) for file in files if MARK.encode() in file.read_bytes()]

    def is_other(self, service: Service) -> bool:
        """Whether the file of this name is that of another service, or of somebody else's."""
        file = self.file(service.name)
        return file.exists() and f"{FOR}{service.meant}.".encode() not in file.read_bytes()

    def on(self, name: str) -> Sequence[Sequence[str]]:
        """The command lines that begin it now and with every login."""
        if self.domain:
            return (("launchctl", "bootstrap", self.domain, str(self.file(name))),)
        # Restarted, so that a new command line counts where the service runs already.
        unit = f"{name}{self.suffix}"
        return (
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", unit),
            ("systemctl", "--user", "restart", unit),
        )

    def off(self, name: str) -> Sequence[Sequence[str]]:
        if self.domain:
            return (("launchctl", "bootout", f"{self.domain}/{name}"),)
        return (("systemctl", "--user", "disable", "--now", f"{name}{self.suffix}"),)

    def status(self, name: str) -> Sequence[str]:
        if self.domain:
            return ("launchctl", "print", f"{self.domain}/{name}")
        return ("systemctl", "--user", "--no-pager", "status", f"{name}{self.suffix}")
