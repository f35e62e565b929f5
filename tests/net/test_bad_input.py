"""What a user can get wrong about a run, a folder or the network, through the real command line with real peers."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm import RUN_FILE, environment, swarm, write_text

from peers.identity import Identity
from runtime.errors import EXIT_NOT_NOW, EXIT_USAGE

NOBODY = Identity.from_seed(bytes(32)).peer
OTHER_RUN = "0" * 40


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The invite of a run with one peer, which waits for a second and meanwhile leaves the cores to the tests."""
    with swarm(tmp_path_factory.mktemp("live")) as made:
        _, invite = made.start(outer_steps=10, quorum=2)
        yield invite


def atoll(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """To its end, with the key of ``home`` and a folder that is there already."""
    own = ("--folder", str(home / "peer"), "--key", str(home / "identity.key"), "--host", "127.0.0.1", "--threads", "1")
    return subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments, *own],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(home: Path, said: str, *arguments: str, exit_code: int = EXIT_USAGE) -> None:
    """One sentence with ``said`` in it, every file as it was, and no process that knows of ``home``."""
    before = contents(home)
    done = atoll(home, *arguments)
    assert done.returncode == exit_code, done.stderr
    # Without a terminal each thing that takes a moment announces itself in a line that ends in "...".
    *progress, sentence = done.stderr.splitlines()
    assert all(line.endswith(" ...") for line in progress), done.stderr
    assert sentence.startswith("atoll: ")
    assert said in sentence
    assert done.stdout == ""
    after = contents(home)
    assert {path: after.get(path) for path in before} == before
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "command="], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listing.splitlines() if str(home) in line]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Identity.generate().save(tmp_path / "identity.key")
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "output.log").write_text("the user's own")
    (tmp_path / "empty").mkdir()
    write_text(tmp_path)
    (tmp_path / "run.toml").write_text(RUN_FILE.format(inner_steps=4, outer_steps=10, quorum=1))
    return tmp_path


def test_start_refuses_data_that_is_missing_empty_or_not_named(home: Path) -> None:
    assert_refused(home, "There is no file or folder missing.txt", "start", "run.toml", "--data", "missing.txt")
    assert_refused(home, "No readable text in empty", "start", "run.toml", "--data", "empty")
    assert_refused(home, "name a file or a folder with --data", "start", "run.toml")
    # A folder that has been claimed for a run that never began would refuse the next one.
    assert not (home / "peer" / "manifest").exists()


def test_join_refuses_data_that_is_missing_empty_or_not_named(home: Path, live: str) -> None:
    assert_refused(home, "There is no file or folder missing.txt", "join", live, "--data", "missing.txt")
    assert_refused(home, "No readable text in empty", "join", live, "--data", "empty")
    assert_refused(home, "name a file or a folder with --data", "join", live)


@pytest.mark.parametrize("command", ["start", "join"])
def test_a_port_in_use_is_refused(home: Path, command: str) -> None:
    invite = f"atoll:{OTHER_RUN}@/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        what = "run.toml" if command == "start" else invite
        said = f"port {port} is in use: choose another with --port"
        flags = ("--data", "text.txt", "--port", str(port))
        assert_refused(home, said, command, what, *flags, exit_code=EXIT_NOT_NOW)


@pytest.mark.parametrize("command", ["start", "join"])
def test_a_metrics_port_in_use_is_refused_before_anything_is_joined(home: Path, command: str) -> None:
    invite = f"atoll:{OTHER_RUN}@/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        what = "run.toml" if command == "start" else invite
        said = f"port {port} of 127.0.0.1 cannot serve metrics"
        flags = ("--data", "text.txt", "--metrics-port", str(port))
        assert_refused(home, said, command, what, *flags, exit_code=EXIT_NOT_NOW)
    assert not (home / "peer" / "events.jsonl").exists()


@pytest.mark.parametrize(("name", "option"), [("identity.key", "--key"), ("peer", "--folder")])
def test_a_key_or_a_folder_that_another_peer_uses_is_refused(home: Path, name: str, option: str) -> None:
    descriptor = os.open(home / name, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        said = f"is in use by another peer on this machine: name another with {option}"
        assert_refused(home, said, "start", "run.toml", "--data", "text.txt", exit_code=EXIT_NOT_NOW)
    finally:
        os.close(descriptor)


def test_a_folder_in_which_no_log_can_be_written_is_refused(home: Path) -> None:
    (home / "peer" / "events.jsonl").mkdir()
    said = "cannot be written (Is a directory): name another with --folder"
    assert_refused(home, said, "start", "run.toml", "--data", "text.txt")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_peer_whose_caller_closed_its_standard_streams_takes_part_all_the_same(home: Path, closed: str) -> None:
    (home / "run.toml").write_text(RUN_FILE.format(inner_steps=2, outer_steps=1, quorum=1))
    own = "--folder peer --key identity.key --host 127.0.0.1 --threads 1 --data text.txt"
    command = f"exec {sys.executable} -m runtime.cli start run.toml {own} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=home, env=environment(home), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert b'"event": "left"' in (home / "peer" / "events.jsonl").read_bytes()


def test_start_refuses_a_key_that_others_may_read(home: Path) -> None:
    (home / "identity.key").chmod(0o644)
    assert_refused(home, "chmod 600", "start", "run.toml", "--data", "text.txt")


def test_join_refuses_an_invite_whose_peer_is_in_another_run_by_now(home: Path, live: str) -> None:
    _, _, addresses = live.partition("@")
    assert_refused(home, "in another run", "join", f"atoll:{OTHER_RUN}@{addresses}", "--data", "text.txt")


def test_a_folder_of_another_run_is_refused(home: Path, live: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with swarm(other) as made:
        made.start(inner_steps=4, outer_steps=11, quorum=1)
        made.peers[0].process.terminate()
        assert made.peers[0].wait_for_exit() == 0
        shutil.copy(other / "first" / "manifest", home / "peer" / "manifest")
        shutil.copytree(other / "first" / "checkpoints", home / "peer" / "checkpoints", dirs_exist_ok=True)
    differs = "belongs to another run (there outer.steps is 11, in the run file 10): name another folder with --folder"
    assert_refused(home, differs, "start", "run.toml", "--data", "text.txt")
    said = "belongs to another run: name another folder with --folder"
    assert_refused(home, said, "join", live, "--data", "text.txt")
