"""``atoll demo`` as a user runs it, small: one peer killed in mid-round, and a report that is true of the logs."""

import json
import subprocess
import sys
from pathlib import Path

from swarm import environment, write_text


def test_the_demo_kills_a_peer_and_reports_what_the_logs_say(tmp_path: Path) -> None:
    write_text(tmp_path)
    arguments = ["--peers", "3", "--outer-steps", "10", "--inner-steps", "10", "--no-late-joiner", "--workdir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "demo", *arguments, "--data", str(tmp_path / "text.txt")],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["outer_steps"] == len(report["rounds"]) == 10
    assert report["val_loss_end"] < report["val_loss_start"]
    assert report["anchors_equal"]
    assert report["bytes_ratio"] > 20
    assert report["group_forming_s_median"] < 1.0
    killed = report["killed_peer"]
    assert killed["mid_round"]
    # The victim froze inside a round: the last that its own log says of rounds is that one began.
    log = (tmp_path / "run" / killed["peer"] / "events.jsonl").read_text().splitlines()
    kinds = [event["event"] for event in map(json.loads, log)]
    assert [kind for kind in kinds if kind in ("round_began", "outer_step_committed")][-1] == "round_began"
    assert max(report["participation"][killed["peer"]]) <= killed["outer_step"]
