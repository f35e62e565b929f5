import json
import resource
import signal
from pathlib import Path

from runtime.log import EventLog


def test_an_event_is_one_line_and_is_heard() -> None:
    """And where the disk is full, it is heard all the same: a run does not end because it cannot be written about."""
    heard = list[str]()
    log = EventLog(Path("/dev/full"), "peer")
    log.listener = lambda event: heard.append(event["event"])
    log.report("joined", outer_step=3)
    log.report("left")
    log.close()
    assert heard == ["log_failed", "joined", "left"]


def test_a_line_for_which_there_was_no_room_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    """A file size limit does to a line what a full disk does: a part of it is written."""
    path = tmp_path / "events.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log, heard = EventLog(path, "peer"), list[str]()
    log.listener = lambda event: heard.append(event["event"])
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        log.report("joined", outer_step=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    log.report("left")
    log.close()
    assert heard == ["log_failed", "joined", "left"]
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["event"] == "left"


def test_events_are_appended_with_time_and_peer(tmp_path: Path) -> None:
    for step in range(2):
        log = EventLog(tmp_path / "events.jsonl", "peer")
        log.report("joined", outer_step=step)
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["peer"], line["outer_step"]) for line in lines] == [
        ("joined", "peer", 0),
        ("joined", "peer", 1),
    ]
    assert lines[0]["time"] <= lines[1]["time"]


def test_a_line_that_a_killed_process_left_torn_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "joi')
    log = EventLog(path, "peer")
    log.report("left")
    log.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"event": "joi'
    assert json.loads(whole)["event"] == "left"
