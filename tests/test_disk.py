"""The limit for the disk: what a folder holds, who may still write into it, and what gives way first."""

import asyncio
import os
from pathlib import Path

import pytest
import torch

from runtime.checkpoints import CHECKPOINTS, bytes_beside, bytes_that_stay, found
from runtime.config import ModelSection, RunConfig
from runtime.disk import Allotment, folder_bytes, replace_file
from runtime.errors import ConfigError
from runtime.limits import Limits
from runtime.log import Event, EventLog, parse_events
from runtime.monitor.history import History
from runtime.partial import PartialState
from runtime.planning import check_fits, checkpoint_needed, memory_needed
from runtime.saving import LOG_BYTES, Saver
from runtime.state import State
from runtime.training.checkpoint import save_checkpoint

P = 200_000
CHECKPOINT = 8 * P + 2000
# Reserved for logs.
LOGS = 10_000_000


def state(outer_step: int) -> State:
    return State(outer_step, bytes([outer_step]) * 32, outer_step, (), torch.zeros(P), torch.zeros(P), None)


def test_a_folder_is_counted_with_what_is_in_it_and_not_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(1000))
    (tmp_path / "other").write_bytes(bytes(10))
    (tmp_path / "deep" / "link").symlink_to("/dev/zero")
    assert 1010 <= folder_bytes(tmp_path) < 1100


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "invite").symlink_to(tmp_path / "shared" / "invite")
    for content in (b"first", b"second"):
        replace_file(tmp_path / "invite", content)
        assert (tmp_path / "invite").is_symlink()
        assert (tmp_path / "shared" / "invite").read_bytes() == content
    assert [one.name for one in (tmp_path / "shared").iterdir()] == ["invite"]


def test_who_may_read_a_file_stays_and_no_other_file_is_touched(tmp_path: Path) -> None:
    file, hidden = tmp_path / "peer.toml", tmp_path / ".peer.toml"
    file.write_text("mine")
    file.chmod(0o640)
    hidden.write_text("another")
    replace_file(file, b"new")
    assert (file.read_text(), hidden.read_text()) == ("new", "another")
    assert file.stat().st_mode & 0o777 == 0o640


def test_what_is_taken_is_gone_until_a_look_finds_that_it_is_not(tmp_path: Path) -> None:
    disk = Allotment(tmp_path, lambda: 1000)
    assert disk.take(600)
    assert not disk.take(600)
    assert not disk.take(300, leaving=200)
    assert disk.take(300, leaving=100)
    disk.look()
    assert disk.take(1000), "nothing was written after all"


def test_what_is_being_written_counts_whatever_a_look_finds_and_what_it_takes_is_not_left_twice(tmp_path: Path) -> None:
    disk = Allotment(tmp_path, lambda: 1000)
    with disk.writing(600):
        disk.look()
        assert disk.lacks(400) == 0
        assert disk.lacks(401) == 1
        assert disk.take(300, leaving=600), "a log goes on while a checkpoint is written"
        with pytest.raises(OSError, match="no room"), disk.writing(200):
            pass
    assert disk.take(400, leaving=600), "nothing was written after all"


def test_without_a_limit_there_is_always_room_and_a_changed_one_holds_at_once(tmp_path: Path) -> None:
    most = [0]
    disk = Allotment(tmp_path, lambda: most[0])
    assert disk.take(10**15)
    most[0] = 100
    disk.look()
    assert not disk.take(101)


def saved(folder: Path, limit: int, keep: int, steps: int, keep_every: int = 0, first: int = 1) -> list[Event]:
    """What is told when so many steps are saved under a limit; it holds all the time."""
    told, before = list[Event](), folder_bytes(folder)

    def report(event: str, **fields: object) -> None:
        told.append({"event": event, **fields})

    async def main() -> None:
        at = [1]
        disk = Allotment(folder, lambda: limit)
        saver = Saver(folder, lambda memory: state(at[0]), lambda: None, keep, keep_every, report, disk, CHECKPOINT)
        for step in range(first, first + steps):
            at[0] = step
            await saver.finish(step, bytes([step]) * 32)
            assert folder_bytes(folder) <= max(limit, before)

    asyncio.run(main())
    return told


def newest(folder: Path) -> list[int]:
    return [one.outer_step for one in found(folder)[0]]


def test_with_room_for_fewer_checkpoints_fewer_are_kept(tmp_path: Path) -> None:
    assert saved(tmp_path, limit=4 * CHECKPOINT + LOG_BYTES, keep=10, steps=6) == []
    assert newest(tmp_path) == [6, 5, 4], "and the fourth, and the log, have room"


def test_with_room_for_one_alone_it_stands_and_that_is_told(tmp_path: Path) -> None:
    told = saved(tmp_path, limit=round(1.5 * CHECKPOINT), keep=10, steps=3)
    assert newest(tmp_path) == [1]
    # Of the second and the third, once.
    assert [event["event"] for event in told] == ["checkpoint_failed"]
    assert "limit for the disk" in str(told[0]["reason"])


def test_where_the_log_has_used_up_its_room_the_older_checkpoint_goes_all_the_same(tmp_path: Path) -> None:
    assert saved(tmp_path, limit=round(2.1 * CHECKPOINT), keep=2, steps=5) == []
    assert newest(tmp_path) == [5]


def test_what_is_kept_for_good_goes_last_and_its_oldest_first(tmp_path: Path) -> None:
    assert saved(tmp_path, limit=10**9, keep=2, keep_every=2, steps=7) == []
    assert newest(tmp_path) == [7, 6, 4, 2]
    assert saved(tmp_path, limit=4 * CHECKPOINT + LOG_BYTES, keep=2, keep_every=2, steps=1, first=8) == []
    assert newest(tmp_path) == [8, 6, 4], "the seventh gives way too"
    assert saved(tmp_path, limit=3 * CHECKPOINT + LOG_BYTES, keep=2, keep_every=2, steps=1, first=9) == []
    assert newest(tmp_path) == [9, 8]


def test_a_limit_that_is_typed_too_small_costs_no_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, limit=10**9, keep=3, steps=4)
    told = saved(tmp_path, limit=1000, keep=3, steps=1, first=5)
    assert [event["event"] for event in told] == ["checkpoint_failed"]
    assert newest(tmp_path) == [4, 3, 2]


def test_a_fork_is_kept_if_the_next_checkpoint_has_room_beside_it(tmp_path: Path) -> None:
    async def main(limit: int) -> str:
        disk = Allotment(tmp_path, lambda: limit)
        saver = Saver(
            tmp_path, lambda memory: state(1), lambda: None, 2, 0, lambda *args, **fields: None, disk, CHECKPOINT
        )
        where = saver.keep_fork(state(3))
        await saver.wait()
        return where

    assert asyncio.run(main(2 * CHECKPOINT)) == ""
    where = asyncio.run(main(2 * CHECKPOINT + LOG_BYTES))
    assert (tmp_path / where).is_dir()
    assert bytes_that_stay(tmp_path) == folder_bytes(tmp_path / where)


def test_a_log_stops_at_the_limit_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    room, heard = [2], list[str]()
    log = EventLog(tmp_path / "events.jsonl", "peer", lambda n_bytes: room[0] > 0)
    log.listener = lambda event: heard.append(event["event"])
    log.report("one")
    room[0] = 0
    log.report("two")
    log.report("three")
    room[0] = 1
    log.report("four")
    log.close()
    events = parse_events((tmp_path / "events.jsonl").read_bytes())
    assert [event["event"] for event in events] == ["one", "four"]
    assert heard == ["one", "log_failed", "two", "three", "four"]


def test_the_past_and_a_download_stay_within_it_too(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", lambda n_bytes: False)
    history.add({"event": "joined", "time": 1.0, "peer": "ann", "outer_step": 3})
    assert len(history.since(0)) == 1, "in memory it is there"
    partial = PartialState(tmp_path, lambda n_bytes: False)
    partial.keep(b"digest", b"piece")
    assert partial.recall(b"digest") is None
    assert folder_bytes(tmp_path) == 0


def test_a_run_fits_or_is_refused_with_both_numbers(tmp_path: Path) -> None:
    config = RunConfig(model=ModelSection("large"))
    memory, disk = memory_needed(config, "cpu"), 2 * checkpoint_needed(config, "cpu") + LOGS
    check_fits(config, Limits(memory_bytes=memory, disk_bytes=disk), "cpu", tmp_path)
    with pytest.raises(ConfigError, match=r"needs 8.18 GB of memory, .* but --memory is 8 GB"):
        check_fits(config, Limits(memory_bytes=8 * 10**9), "cpu", tmp_path)
    # What a GPU holds is not the machine's.
    check_fits(config, Limits(memory_bytes=8 * 10**9), "cuda", tmp_path)
    # Nor has a peer that trains nothing what training takes.
    check_fits(config, Limits(memory_bytes=4 * 10**9, disk_bytes=2 * 10**9 + LOGS), "", tmp_path)
    with pytest.raises(ConfigError, match=r"of the disk, two checkpoints and the logs, but --disk is"):
        check_fits(config, Limits(disk_bytes=disk - 1), "cpu", tmp_path)


def test_what_is_there_already_is_to_leave_room_for_the_next_checkpoint(tmp_path: Path) -> None:
    config = RunConfig()
    one = checkpoint_needed(config, "cpu")
    limits = Limits(disk_bytes=2 * one + LOGS)
    (tmp_path / CHECKPOINTS / "fork-1").mkdir(parents=True)
    fork, log = tmp_path / CHECKPOINTS / "fork-1" / "file", tmp_path / "events.jsonl"
    for file, most in ((fork, LOGS), (log, one + LOGS)):
        sparse(file, most)
        check_fits(config, limits, "cpu", tmp_path)
        check_fits(config, Limits(), "cpu", tmp_path)
        sparse(file, most + 1)
        with pytest.raises(ConfigError, match="of the disk"):
            check_fits(config, limits, "cpu", tmp_path)
        file.unlink()
    # Older ones give way, the newest does not.
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    newest, older = (folder_bytes(checkpoint.path) for checkpoint in found(tmp_path)[0])
    assert bytes_beside(tmp_path) == newest
    sparse(log, limits.disk_bytes - one - newest)
    check_fits(config, limits, "cpu", tmp_path)
    assert older > 0


def sparse(file: Path, n_bytes: int) -> None:
    file.touch()
    os.truncate(file, n_bytes)


def test_what_stays_is_forks_and_torn_ones_and_no_logs_and_not_what_a_kill_left_half_written(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    for name, n_bytes in (("events.jsonl", 1), ("events.1.jsonl", 2), ("history.jsonl", 4), ("port", 1000)):
        (tmp_path / name).write_bytes(bytes(n_bytes))
    for name in (".half", "00000001.00000-aa", "fork-1", "torn-1"):
        (tmp_path / CHECKPOINTS / name).mkdir()
        (tmp_path / CHECKPOINTS / name / "file").write_bytes(bytes(8))
    assert bytes_that_stay(tmp_path) == 8 + 8


def test_what_one_checkpoint_takes_is_counted_by_what_it_takes(tmp_path: Path) -> None:
    saved(tmp_path, limit=10**9, keep=1, steps=1)
    assert 8 * P < folder_bytes(tmp_path / CHECKPOINTS) <= CHECKPOINT
