"""``atoll dashboard``: a mistake is one sentence and exit code 2, Ctrl-C is 130 at once, and nothing is left behind."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAVE_PAGES = importlib.util.find_spec("nicegui") is not None
needs_pages = pytest.mark.skipif(not HAVE_PAGES, reason="needs nicegui")
PEER_ID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
INVITE = f"atoll:{'0' * 40}@/ip4/127.0.0.1/tcp/1/p2p/{PEER_ID}"
# As if it were not installed.
WITHOUT = "import sys; sys.modules['nicegui'] = None; from runtime.cli import main; main()"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    event = {"event": "member_up", "time": 1.0, "peer": "12D3KooWann", "member": "12D3KooWbob"}
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return folder


def started(*arguments: str, cwd: Path, code: str = "from runtime.cli import main; main()") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, "dashboard", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(*arguments: str, cwd: Path, code: str = "from runtime.cli import main; main()") -> str:
    process = started(*arguments, cwd=cwd, code=code)
    output, said = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, ""), said
    assert said.startswith("atoll: ")
    assert len(said.splitlines()) == 1
    return said


@contextmanager
def serving(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = started(*arguments, cwd=cwd)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "name either an INVITE"),
        ("atoll:x --replay logs", "name either an INVITE"),
        ("atoll:x", "the invite is malformed"),
        ("--replay missing", "there is no event of a run in missing"),
        ("--replay logs --port 70000", "--port is 70000, but must be from 0 to 65535"),
        ("--replay logs --speed 0", "--speed is 0, but must be above 0"),
        ("--replay logs --speed nan", "--speed is nan, but must be above 0"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, log: Path, arguments: str, said: str) -> None:
    assert said in refused(*arguments.split(), cwd=tmp_path)


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, log: Path) -> None:
    said = refused("--replay", "logs", cwd=tmp_path, code=WITHOUT)
    assert "needs the package" in said
    assert "pip install '.[monitor]'" in said


@needs_pages
def test_an_installation_that_cannot_watch_says_so_before_there_is_a_page(tmp_path: Path) -> None:
    said = refused(INVITE, "--port", "0", cwd=tmp_path, code=WITHOUT.replace("nicegui", "peers.observer"))
    assert "watching needs the package" in said


@needs_pages
def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_mistakes(tmp_path: Path, log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1" in refused("--replay", "logs", "--port", port, cwd=tmp_path)
    assert "no-such-host.invalid" in refused("--replay", "logs", "--host", "no-such-host.invalid", cwd=tmp_path)
    # TEST-NET-1: no machine's own.
    assert "192.0.2.1" in refused("--replay", "logs", "--host", "192.0.2.1", cwd=tmp_path)


@needs_pages
def test_ctrl_c_ends_it_within_a_second_and_leaves_nothing(tmp_path: Path, log: Path) -> None:
    with serving("--replay", "logs", "--port", "0", cwd=tmp_path) as (process, line):
        assert line.startswith("The dashboard is at http://127.0.0.1:")
        address = line.split()[4]
        with urllib.request.urlopen(f"{address}/data/run") as answer:
            assert json.load(answer)["head"]["watching"]["state"] == "ended"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - began < 1.0
        assert (process.returncode, said) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs_pages
def test_who_lets_others_read_is_warned(tmp_path: Path, log: Path) -> None:
    with serving("--replay", "logs", "--port", "0", "--host", "0.0.0.0", cwd=tmp_path) as (process, line):
        assert line.startswith("The dashboard is at http://0.0.0.0:")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert said == "atoll: whoever reaches this machine can read it: there is no password and no encryption\n"


@needs_pages
def test_pages_need_neither_torch_nor_hivemind() -> None:
    loaded = "import sys, runtime.monitor.dashboard.server; print({'torch', 'hivemind', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_pages
def test_what_a_page_may_ask_for_is_little_and_only_read(tmp_path: Path, log: Path) -> None:
    with serving("--replay", "logs", "--port", "0", cwd=tmp_path) as (_, line):
        address = line.split()[4]
        for path, method, code in (("/nothing", "GET", 404), ("/openapi.json", "GET", 404), ("/data/run", "POST", 404)):
            request = urllib.request.Request(address + path, method=method)
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(request)
            with refusal.value as answer:
                assert answer.code == code
