"""``atoll watch``, ``replay`` and ``report``, as they are called."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import BEGAN, commit, mark, members, peers, run_of

from peers.identity import Identity
from runtime.commands.watch import replay, report, watch_once
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.folder import Folder
from runtime.invite import Invite
from runtime.log import EventLog
from runtime.manifest import sign_manifest
from runtime.monitor.source import Watched, logged

ROOT = Path(__file__).parents[2]
INVITE = Invite("7" * 40, ("/ip4/127.0.0.1/tcp/1/p2p/nobody",))


async def told(invite: Invite, watched: Watched) -> None:
    """A member that tells of a run, and then goes on."""
    watched.say("", peers(1)[0])
    for event in run_of(2, 5):
        watched.see(event)
    watched.see({"event": "validated", "time": BEGAN + 21, "peer": peers(1)[0], "outer_step": 5, "val_loss": 1.5})
    watched.see(mark("strike", BEGAN + 21, peers(2)[1], reason="late"))
    watched.see(members(BEGAN + 21, dict(zip(peers(2), ("ready", "training"), strict=True))))
    watched.see({"event": "live", "time": BEGAN + 21, "peer": peers(1)[0]})
    await asyncio.Event().wait()


async def nobody(invite: Invite, watched: Watched) -> None:
    watched.say("no member answers (connection refused); trying again in 2 s")
    await asyncio.Event().wait()


async def slowly(invite: Invite, watched: Watched) -> None:
    for event in run_of(2, 5):
        await asyncio.sleep(0.1)
        watched.see(event)
    watched.see({"event": "live", "time": BEGAN + 21, "peer": peers(1)[0]})


async def impossible(invite: Invite, watched: Watched) -> None:
    raise ConfigError("watching needs the package libp2p")


def test_once_as_json_is_one_object_with_the_keys_that_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch_once(told, INVITE, as_json=True) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    said = json.loads(printed)
    documented = (ROOT / "docs" / "events.md").read_text(encoding="utf-8").split("--once --json")[1]
    for key in [*said, *said["members"][0], *said["steps"][0], *said["marks"][0], *said["round"]]:
        assert f"`{key}`" in documented, key
    assert (said["run_id"], said["outer_step"], said["loss"], said["live"]) == ("7" * 40, 5, 1.8, True)
    assert said["validation"] == {"5": 1.5}
    assert said["round"]["waits_for"] == [peers(2)[1]]
    assert [one["peer"] for one in said["members"]] == peers(2)
    assert sum(one["token_share"] for one in said["members"]) == pytest.approx(1.0)
    assert said["marks"][-1]["words"] == "late"


def test_once_is_the_view_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch_once(told, INVITE, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "outer step 5 · 2 members" in printed
    assert "strike against 000001: late" in printed


def test_once_waits_for_a_member_only_so_long_and_says_why() -> None:
    with pytest.raises(ConfigError, match=r"no member has told of the run within 0 s \(no member answers"):
        watch_once(nobody, INVITE, as_json=True, timeout_s=0.2)
    with pytest.raises(ConfigError, match="needs the package libp2p"):
        watch_once(impossible, INVITE, as_json=True)


def test_once_waits_for_who_tells_slowly_as_long_as_something_comes(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch_once(slowly, INVITE, as_json=False, timeout_s=0.4) == 0
    assert "outer step 5 · 2 members" in capsys.readouterr().out


def written(folder: Path, events: list[dict[str, Any]]) -> Path:
    """A peer's folder with its log, whose last line is torn, and its manifest."""
    folder.mkdir(parents=True)
    log = EventLog(folder / "events.jsonl", peers(1)[0])
    for event in events:
        log.report(event["event"], **{key: value for key, value in event.items() if key not in ("event", "peer")})
    log.close()
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "outer_step_comm')
    organiser = Identity.from_seed(bytes(32))
    Folder(folder).claim(sign_manifest(organiser, RunConfig(name="[red]<coral>"), bytes(32), "nonce"))
    return folder


def test_a_log_with_a_torn_line_is_replayed_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = run_of(2, 4)
    old = {key: value for key, value in commit(5, 2).items() if key not in ("figures", "live", "round_s")}
    folder = written(tmp_path / "demo" / "peer-1", [*events, old])
    assert replay(tmp_path / "demo", speed=1e6) == 0
    said = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert said[-2:] == [
        "outer step 4: loss 2.000, 2 members took part, round 0.25 s",
        "outer step 5: loss 1.800, 2 members took part",
    ]
    assert replay(folder / "events.jsonl", speed=1e6) == 0


def test_a_report_lies_where_one_stands_and_is_overwritten_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "demo" / "peer-1", run_of(2, 4))
    monkeypatch.chdir(tmp_path / "demo")
    assert report(Path()) == 0
    file = Path("demo.html")
    page = file.read_text(encoding="utf-8")
    assert "[red]&lt;coral&gt;" in page
    assert "4 of 20" in page
    assert capsys.readouterr().out == f"Wrote {file.absolute()}: 4 outer steps and 2 members\n"
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"demo.html exists already: say --force"):
        report(Path())
    assert file.read_text() == "mine"
    assert report(Path(), force=True) == 0
    assert file.read_text(encoding="utf-8") == page
    for place in (tmp_path / "missing" / "x.html", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be written|exists already"):
            report(Path(), out=place, force=place == tmp_path)


def test_what_a_peer_has_learnt_of_the_time_before_it_came_is_shown_too(tmp_path: Path) -> None:
    came, left = mark("joined", BEGAN + 11.0, peers(2)[1], outer_step=2), mark("member_down", BEGAN + 5.0, peers(3)[2])
    events = [came, commit(3, 2), commit(4, 2)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    known = [commit(1, 3), left, commit(2, 2), came, commit(3, 2, peer=peers(2)[1])]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in known))
    assert logged(tmp_path) == [*known[:3], *events]


def test_what_is_in_a_log_by_mistake_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    lines = ["[]", "{}", '{"event": 1}', '{"event": "left", "time": NaN}', f'{{"event": "left", "time": 1{"0" * 400}}}']
    log.write_text("\n".join([*lines, '{"event": "left", "time": 1e999}', json.dumps(commit(1, 2))]))
    assert [event["outer_step"] for event in logged(log)] == [1]
    log.chmod(0)
    if os.geteuid():
        with pytest.raises(ConfigError, match="cannot be read"):
            logged(log)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_and_the_terminal_is_as_it_was(tmp_path: Path, number: int, code: int) -> None:
    written(tmp_path / "demo", run_of(2, 4))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runtime.cli", "replay", str(tmp_path / "demo"), "--speed", "0.001"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    # Whoever runs the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    shown = b""
    try:
        while b"members" not in shown:
            shown += os.read(ours, 1 << 16)
        process.send_signal(number)
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"\x1b[?1049h" in shown
    assert b"\x1b[?1049l" in shown
    assert b"Traceback" not in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def _read(descriptor: int) -> bytes:
    """What comes from a pseudo-terminal, nothing when its other end is closed."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""
