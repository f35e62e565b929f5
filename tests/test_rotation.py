"""Logs in pieces: nothing is lost or read twice while one is put away, whoever reads or dies meanwhile."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.log import EventLog, parse_events, read_log
from runtime.monitor.source import logged
from runtime.progress import given_before
from runtime.rotation import Tail, full_pieces, logs_below

ROOT = Path(__file__).parents[1]
PIECE_BYTES = 400
# Appends numbered events behind those that are there, until it is killed.
WRITER = """
import sys
from itertools import count
from pathlib import Path
from runtime.log import EventLog, read_log
path = Path(sys.argv[1])
numbers = [event["number"] for event in read_log(path)]
log = EventLog(path, "peer", piece_bytes=400, most_pieces=10_000)
print("writing", flush=True)
for number in count(max(numbers, default=-1) + 1):
    log.report("joined", number=number)
"""


def write(path: Path, numbers: range, most_pieces: int = 10_000) -> None:
    log = EventLog(path, "peer", piece_bytes=PIECE_BYTES, most_pieces=most_pieces)
    for number in numbers:
        log.report("joined", number=number)
    log.close()


def numbers(path: Path) -> list[int]:
    return [event["number"] for event in read_log(path)]


def test_all_pieces_together_are_the_log_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, range(50))
    write(path, range(50, 100))
    assert list(full_pieces(path)) == list(range(1, len(full_pieces(path)) + 1))
    # As text, the tenth piece would come before the second.
    assert len(full_pieces(path)) > 12
    assert all(piece.stat().st_size <= PIECE_BYTES for piece in [*full_pieces(path).values(), path])
    assert numbers(path) == list(range(100))


def test_the_oldest_pieces_go_and_no_number_is_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, range(100), most_pieces=3)
    assert len(full_pieces(path)) == 2
    assert min(full_pieces(path)) > 10
    left = numbers(path)
    assert left == list(range(left[0], 100))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * PIECE_BYTES


def test_a_line_that_is_longer_than_a_piece_is_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "peer", piece_bytes=PIECE_BYTES)
    for number in range(3):
        log.report("left", number=number, reason="x" * 2 * PIECE_BYTES)
    log.close()
    assert numbers(path) == [0, 1, 2]
    assert len(full_pieces(path)) == 2


def test_who_follows_reads_each_line_once_while_pieces_are_put_away(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writing = threading.Thread(target=write, args=(path, range(600)))
    tail, seen = Tail(path), list[int]()
    writing.start()
    while writing.is_alive():
        seen += [event["number"] for event in parse_events(tail.read())]
    writing.join()
    seen += [event["number"] for event in parse_events(tail.read())]
    assert seen == list(range(600))


def test_who_follows_goes_on_with_what_is_left_where_pieces_have_gone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    write(path, range(2))
    assert len(parse_events(tail.read())) == 2
    write(path, range(2, 100), most_pieces=3)
    seen = [event["number"] for event in parse_events(tail.read())]
    assert seen == numbers(path)


def test_a_kill_at_any_moment_costs_no_line_but_the_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail, seen = Tail(path), list[int]()
    for pause_s in (0.0, 0.003, 0.011, 0.029, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(pause_s)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        seen += [event["number"] for event in parse_events(tail.read())]
    assert len(full_pieces(path)) > 5
    written = numbers(path)
    assert written == list(range(len(written)))
    assert seen == written


@pytest.mark.parametrize("lost", [False, True])
def test_a_death_between_two_pieces_is_harmless(tmp_path: Path, lost: bool) -> None:
    """The last piece has its number, and nobody has begun the next; a torn line may be at its end."""
    path = tmp_path / "events.jsonl"
    write(path, range(3))
    if lost:
        with path.open("ab") as file:
            file.write(b'{"event": "joined", "num')
    path.rename(tmp_path / "events.1.jsonl")
    tail = Tail(path)
    assert len(parse_events(tail.read())) == 3
    assert numbers(path) == [0, 1, 2]
    write(path, range(3, 5))
    assert [event["number"] for event in parse_events(tail.read())] == [3, 4]
    assert numbers(path) == [0, 1, 2, 3, 4]


def test_where_no_piece_can_be_put_away_the_file_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    write(path, range(20))
    monkeypatch.undo()
    assert numbers(path) == list(range(20))
    assert not full_pieces(path)
    write(path, range(20, 22))
    assert numbers(path) == list(range(22))
    assert list(full_pieces(path)) == [1]


def test_all_who_read_logs_read_all_pieces(tmp_path: Path) -> None:
    path = tmp_path / "peer" / "events.jsonl"
    path.parent.mkdir()
    log = EventLog(path, "me", piece_bytes=PIECE_BYTES)
    for step in range(1, 21):
        log.report("outer_step_committed", outer_step=step, members=["me", "you"], weights=[step, 1])
    log.close()
    assert len(full_pieces(path)) > 3
    assert given_before(path).outer_steps == 20
    assert given_before(path).tokens == sum(range(21))
    assert [event["outer_step"] for event in logged(tmp_path)] == list(range(1, 21))
    path.rename(tmp_path / "elsewhere")
    assert logs_below(tmp_path, "events.jsonl") == [path]
    assert [event["outer_step"] for event in logged(tmp_path)] == list(range(1, len(list(logged(tmp_path))) + 1))
    piece = full_pieces(path)[2]
    assert [event["outer_step"] for event in logged(piece)] == [event["outer_step"] for event in read_log(piece)]
