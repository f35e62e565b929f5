"""Services: what systemd and launchd are told, and the command that tells them."""

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.errors import ConfigError
from runtime.service import MARK, Manager, Service, systemd_unit, unit_name

PEER_ID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
INVITE = f"atoll:{'0' * 40}@/ip4/192.0.2.7/tcp/4001/p2p/{PEER_ID}?token=a"
NAME = "atoll-000000000000"
# Writes down what it is told, and fails where it is told to.
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/told"
case "$*" in *"$FAIL"*) test -n "$FAIL" && { echo "Failed to connect to bus" >&2; exit 1; };; esac
exit 0
"""


# Knows one job or none; when that is told to end it is still there for a look.
LAUNCHCTL = """#!/bin/sh
echo "$@" >> "$HOME/told"
job="$HOME/job"
case "$1" in
    bootstrap) test -e "$job" && { echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }; cp "$3" "$job";;
    bootout) test -e "$job" || { echo "Boot-out failed: 3: No such process" >&2; exit 3; }; touch "$HOME/ending";;
    print) test -e "$job" || exit 113; test -e "$HOME/ending" && rm "$job" "$HOME/ending"; exit 0;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands who has a systemctl, and an atoll beside their Python."""
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("launchctl", LAUNCHCTL), ("atoll", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("runtime.commands.service.SYSTEMD", tmp_path)
    monkeypatch.chdir(tmp_path)
    own = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "XDG_CONFIG_HOME": "", "FAIL": ""}
    for name, value in {**own, "XDG_DATA_HOME": str(tmp_path / "data")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def atoll(*arguments: str) -> Done:
    """As ``main`` in ``runtime.cli`` ends it."""
    done = CliRunner().invoke(app, ["service", *arguments])
    if isinstance(done.exception, ConfigError):
        return Done(2, done.stdout, f"atoll: {done.exception}")
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return Done(done.exit_code, done.stdout, done.stderr)


def unit_file(home: Path) -> Path:
    return home / ".config" / "systemd" / "user" / f"{NAME}.service"


def told(home: Path) -> list[str]:
    log = home / "told"
    return log.read_text().splitlines() if log.exists() else []


def parsed(unit: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return parser


def words(exec_start: str) -> list[str]:
    """As systemd reads them."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(exec_start)]


def test_a_peer_is_installed_shown_and_removed(home: Path) -> None:
    done = atoll("install", INVITE, "--up", "2MB/s", "--folder", "my peer", "--port=4001")
    assert done.returncode == 0, done.stderr
    assert "loginctl enable-linger" in done.stdout
    unit = parsed(unit_file(home).read_text())
    assert words(unit["Service"]["ExecStart"]) == [
        *(str(home / "bin" / "atoll"), "join", INVITE),
        *("--up", "2MB/s", "--folder", "my peer", "--port=4001"),
    ]
    assert unit["Service"]["WorkingDirectory"] == str(home)
    assert unit["Service"]["Environment"] == f'"XDG_DATA_HOME={home / "data"}"'
    assert unit["Install"]["WantedBy"] == "default.target"
    assert told(home) == [
        "--user daemon-reload",
        f"--user enable {NAME}.service",
        f"--user restart {NAME}.service",
    ]
    assert atoll("status").returncode == 0
    assert told(home)[-1] == f"--user --no-pager status {NAME}.service"
    assert atoll("uninstall", NAME[6:12]).returncode == 0
    assert told(home)[-1] == f"--user disable --now {NAME}.service"
    assert not unit_file(home).exists()


def test_a_peer_says_goodbye_by_itself_comes_back_after_a_crash_and_not_after_a_mistake() -> None:
    unit = parsed(systemd_unit(Service(NAME, ("/usr/bin/atoll", "join", INVITE), Path("/home/me"), "")))["Service"]
    # Else systemd would tell p2pd to end at the same time, and the goodbye goes through it.
    assert unit["KillMode"] == "mixed"
    assert unit["Restart"] == "on-failure"
    assert unit["RestartPreventExitStatus"] == "2"
    assert int(unit["TimeoutStopSec"]) >= 60
    # A peer gives way by itself where it does no harm: an event loop that is nice looks like a slow link.
    assert not {"Nice", "IOSchedulingClass", "CPUSchedulingPolicy"} & set(unit)


@pytest.mark.parametrize("user", ["", "root"])
def test_systemd_finds_no_fault_with_a_unit(tmp_path: Path, user: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    odd = ("/bin/true", "join", INVITE, "--folder", '50% of "my" $HOME\\peers', "--data", "it's")
    service = Service(NAME, odd, Path("/tmp"), "", {"XDG_DATA_HOME": "/tmp/100% mine"}, user)
    assert words(parsed(systemd_unit(service))["Service"]["ExecStart"]) == list(odd)

    def verified(unit: str) -> str:
        file = tmp_path / f"{NAME}.service"
        file.write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "--system" if user else "--user", "verify", str(file)],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr + done.stdout

    assert NAME not in verified(systemd_unit(service))
    mistaken = systemd_unit(service).replace("KillMode=mixed", "KillMode=tender")
    assert "tender" in verified(mistaken), "it looks at what it is given"


def test_a_unit_for_the_machine_is_printed_and_nothing_is_touched(home: Path) -> None:
    (home / "run.toml").write_text('name = "reef"\n')
    done = atoll("install", "--system", "start", "run.toml", "--port", "4001")
    assert done.returncode == 0, done.stderr
    unit = parsed(done.stdout)
    assert unit["Service"]["User"]
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert words(unit["Service"]["ExecStart"])[1:] == ["start", "run.toml", "--port", "4001"]
    assert "/etc/systemd/system/atoll-run.service" in done.stderr
    assert not told(home)
    assert not (home / ".config").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install", "atoll:"], "the invite is malformed"),
        (["install", INVITE, "--what"], "No such option: --what"),
        (["install", INVITE, "--up", "much"], "command line: up is 'much', but must be a rate such as 2MB/s"),
        (["install", "start", "missing.toml"], "missing.toml: no such file"),
        (["uninstall"], "there is no such service in"),
        (["status", "reef"], "there is no such service in"),
    ],
)
def test_a_mistake_is_told_at_once_and_nothing_is_installed(home: Path, arguments: list[str], said: str) -> None:
    done = atoll(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not told(home)
    assert not unit_file(home).exists()


def test_what_systemd_says_is_passed_on_and_another_ones_unit_stays_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "daemon-reload")
    done = atoll("install", INVITE)
    assert done.returncode == 2
    assert "systemctl --user daemon-reload failed (Failed to connect to bus)" in done.stderr
    monkeypatch.setenv("FAIL", "")
    unit_file(home).write_text("[Service]\nExecStart=/bin/mine\n")
    done = atoll("install", INVITE)
    assert done.returncode == 2
    assert "is not from atoll service and stays as it is" in done.stderr
    assert unit_file(home).read_text() == "[Service]\nExecStart=/bin/mine\n"


def test_of_several_services_one_has_to_be_named(home: Path) -> None:
    assert atoll("install", INVITE).returncode == 0
    assert atoll("install", "bootstrap", "--port", "4001").returncode == 0
    done = atoll("uninstall")
    assert done.returncode == 2
    assert f"there are 2 services: say which, of {NAME}, atoll-bootstrap" in done.stderr
    assert atoll("uninstall", "bootstrap").returncode == 0
    assert unit_file(home).exists()


@pytest.mark.parametrize(
    ("first", "again", "other"),
    [
        (["start", "a/run.toml"], ["start", "a/run.toml", "--up", "2MB/s"], ["start", "b/run.toml"]),
        ([INVITE], [INVITE.replace("192.0.2.7", "192.0.2.8"), "--keep", "3"], [INVITE, "--folder", "elsewhere"]),
        ([INVITE], [INVITE, "--folder", f"data/atoll/{'0' * 12}"], [INVITE, "--key", "another.key"]),
        ([INVITE], [INVITE], ["bootstrap", INVITE]),
    ],
    ids=["run file", "folder", "key", "bootstrap"],
)
def test_a_service_is_installed_again_with_other_flags_but_never_in_place_of_another_one(
    home: Path, first: list[str], again: list[str], other: list[str]
) -> None:
    for name in ("a", "b"):
        (home / name).mkdir()
        (home / name / "run.toml").write_text('name = "reef"\n')
    for what in (first, again):
        done = atoll("install", *what)
        assert done.returncode == 0, done.stderr
    before = {unit: unit.read_bytes() for unit in unit_file(home).parent.iterdir()}
    assert len(before) == 1
    n_told = len(told(home))
    done = atoll("install", *other)
    assert done.returncode == 2
    assert "is the service of another peer, by its run, folder or key" in done.stderr
    assert {unit: unit.read_bytes() for unit in unit_file(home).parent.iterdir()} == before
    assert len(told(home)) == n_told


def test_the_peer_file_is_read_where_the_peer_will_read_it(home: Path) -> None:
    (home / "run.toml").write_text('name = "reef"\n')
    for folder in (home / "run.peer", home / "data" / "atoll" / ("0" * 12)):
        folder.mkdir(parents=True)
        (folder / "peer.toml").write_text('up = "much"\n')
        done = atoll("install", *(["start", "run.toml"] if folder.suffix else [INVITE]))
        assert done.returncode == 2
        assert "peer.toml: up is 'much', but must be a rate" in done.stderr


def test_launchd_lets_go_of_a_job_before_it_gets_it_anew_and_one_that_it_has_not_can_be_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for flags in ([], ["--up", "2MB/s"]):
        done = atoll("install", INVITE, *flags)
        assert done.returncode == 0, done.stderr
    assert plistlib.loads((home / "job").read_bytes())["ProgramArguments"][-2:] == ["--up", "2MB/s"]
    (home / "job").unlink()
    assert atoll("uninstall").returncode == 0
    assert not list((home / "Library" / "LaunchAgents").iterdir())


def test_launchd_is_told_the_same(tmp_path: Path) -> None:
    manager = Manager(tmp_path, ".plist", "gui/501")
    service = Service(NAME, ("/opt/atoll", "join", INVITE), tmp_path, "", {"XDG_DATA_HOME": "/tmp"})
    manager.file(NAME).write_bytes(manager.content(service))
    assert MARK.encode() in manager.content(service)
    job = plistlib.loads(manager.content(service))
    assert job["ProgramArguments"] == ["/opt/atoll", "join", INVITE]
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert (job["Label"], job["WorkingDirectory"]) == (NAME, str(tmp_path))
    assert not {"Nice", "LowPriorityIO", "ProcessType"} & set(job)
    assert manager.installed() == [NAME]
    assert manager.on(NAME) == (("launchctl", "bootstrap", "gui/501", str(tmp_path / f"{NAME}.plist")),)
    assert manager.off(NAME) == (("launchctl", "bootout", f"gui/501/{NAME}"),)


def test_a_name_is_one_that_both_systems_take() -> None:
    assert unit_name("my run/№1") == "atoll-my-run--1"
    assert len(unit_name("x" * 1000)) < 100
