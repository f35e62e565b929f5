"""``atoll demo`` as a user runs it, small: one peer killed in mid-round, and a report that is true of the logs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from swarm import environment, write_text


def run_demo(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The report of ``atoll demo`` on a little text, and what it printed."""
    write_text(folder)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "demo", *arguments, "--data", "text.txt", "--workdir", "run"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "run" / "report.json").read_text()), done.stdout


def test_the_demo_kills_a_peer_and_reports_what_the_logs_say(tmp_path: Path) -> None:
    report, _ = run_demo(tmp_path, "--peers", "3", "--outer-steps", "10", "--inner-steps", "10", "--no-late-joiner")
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


def test_a_storm_of_kills_leaves_one_history_and_says_what_it_cost(tmp_path: Path) -> None:
    report, printed = run_demo(
        tmp_path, "--storm", "1200", "--peers", "3", "--outer-steps", "30", "--inner-steps", "80"
    )
    storm = report["storm"]
    assert storm["faults"] >= 1
    assert storm["mismatches"] == 0
    assert 0.5 < storm["participation"] <= 1.0
    assert 0.0 < storm["efficiency"] < 1.5
    assert report["participation_mean"] > 0.5
    assert "starts again in 5 s" in printed
    assert "step efficiency" in printed
