"""What is on disk is whole or not there, and a peer goes on from it bit for bit."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.checkpoints import CHECKPOINTS, MANIFEST, clear_unfinished, found, prune, set_aside
from runtime.config import InnerSection, OuterSection, RunConfig
from runtime.state import State
from runtime.training.checkpoint import INNER_FILE, STATE_FILE, load_newest, save_checkpoint
from runtime.training.data import Corpus, load_corpus
from runtime.training.replica import Replica

LINEAGE = bytes(range(32))


def a_state(outer_step: int = 3, tokens: int | None = None, lineage: bytes = LINEAGE) -> State:
    generator = torch.Generator().manual_seed(outer_step)
    anchor_P, momentum_P = torch.randn(2, 1000, generator=generator)
    tokens = 1000 * outer_step if tokens is None else tokens
    return State(outer_step, lineage, tokens, ("bob", "cat"), anchor_P, momentum_P)


def load(folder: Path) -> State:
    loaded = load_newest(folder)
    assert loaded is not None
    return loaded[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = replace(a_state(), lost_P=torch.rand(1000))
    save_checkpoint(tmp_path, saved)
    loaded, inner = load_newest(tmp_path) or (None, None)
    assert loaded is not None
    assert inner is None
    for name, value in vars(saved).items():
        other = getattr(loaded, name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value


def test_a_loaded_state_can_be_written_to_while_its_checkpoint_is_let_go(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(3))
    loaded = load(tmp_path)
    save_checkpoint(tmp_path, a_state(4))
    prune(tmp_path, 1, 0)
    loaded.anchor_P.zero_()
    assert torch.equal(load(tmp_path).anchor_P, a_state(4).anchor_P)
    assert not loaded.anchor_P.any()


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_checkpoint(tmp_path / "gone", a_state())
    assert not (tmp_path / "gone").exists()


def test_of_a_process_that_dies_while_it_lets_one_go_nothing_looks_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 4):
        save_checkpoint(tmp_path, a_state(step))
    monkeypatch.setattr("runtime.checkpoints.shutil.rmtree", lambda path, ignore_errors: (path / MANIFEST).unlink())
    prune(tmp_path, 1, 0)
    whole, broken = found(tmp_path)
    assert [one.outer_step for one in whole] == [4]
    assert not broken


def test_an_empty_or_missing_folder_has_no_state(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "missing") is None


def test_the_newest_and_every_nth_stay_and_forks_are_left_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(2), fork=True)
    for outer_step in range(1, 12):
        save_checkpoint(tmp_path, a_state(outer_step))
        prune(tmp_path, 2, 5)
    kept = LINEAGE.hex()[:12]
    assert names(tmp_path) == [*(f"{n:08d}.00000-{kept}" for n in (5, 10, 11)), f"fork-00000002.00000-{kept}"]


def test_of_every_nth_step_on_the_first_that_was_saved_stays_of_the_heavier_history(tmp_path: Path) -> None:
    """A large model is not saved at every step."""
    for outer_step in (2, 4, 7, 9, 12, 13, 16):
        save_checkpoint(tmp_path, a_state(outer_step))
    save_checkpoint(tmp_path, a_state(7, tokens=6000, lineage=bytes(32)))
    prune(tmp_path, 1, 5)
    assert [name[:8] for name in names(tmp_path)] == ["00000007", "00000012", "00000016"]
    assert load_newest(tmp_path) is not None
    assert names(tmp_path)[0].endswith(LINEAGE.hex()[:12])


def test_a_torn_one_is_set_aside_and_its_moment_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(3))
    torn = save_checkpoint(tmp_path, a_state(4))
    (torn / STATE_FILE).write_bytes(b"torn")
    load_newest(tmp_path, lambda path, reason: set_aside(path))
    save_checkpoint(tmp_path, a_state(4))
    assert load(tmp_path).outer_step == 4
    assert f"torn-{torn.name}" in names(tmp_path)


def test_the_heavier_history_is_the_newest(tmp_path: Path) -> None:
    """A peer that went over to it may have been at a later step of the one that it left."""
    save_checkpoint(tmp_path, a_state(9, tokens=100))
    save_checkpoint(tmp_path, a_state(7, tokens=200, lineage=bytes(32)))
    assert load(tmp_path).outer_step == 7


def test_a_write_that_fails_leaves_the_old_state_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, a_state(3))
    before = names(tmp_path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, a_state(4))
    assert load(tmp_path).outer_step == 3
    assert names(tmp_path) == before


def test_what_a_killed_process_had_not_finished_is_cleared_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state(3))
    before = names(tmp_path)
    unfinished = tmp_path / CHECKPOINTS / ".00000004.00000-aa"
    unfinished.mkdir()
    (unfinished / STATE_FILE).write_bytes(b"half")
    assert load(tmp_path).outer_step == 3
    clear_unfinished(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("file", [STATE_FILE, MANIFEST])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_of_a_torn_checkpoint_is_told_and_the_one_before_is_used(tmp_path: Path, kept: float, file: str) -> None:
    save_checkpoint(tmp_path, a_state(3))
    torn = save_checkpoint(tmp_path, a_state(4))
    content = (torn / file).read_bytes()
    # The last byte of a manifest is a newline, which nobody misses.
    (torn / file).write_bytes(content[: int(kept * (len(content) - 2))])
    told = dict[Path, str]()
    loaded = load_newest(tmp_path, told.__setitem__)
    assert loaded is not None
    assert loaded[0].outer_step == 3
    assert list(told) == [torn]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, a_state()) / STATE_FILE
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    told = dict[Path, str]()
    assert load_newest(tmp_path, told.__setitem__) is None
    assert told == {file.parent: f"{STATE_FILE} does not match its digest"}


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_state())
    (tmp_path / "secret").write_bytes(b"secret")
    manifest = next((tmp_path / CHECKPOINTS).iterdir()) / MANIFEST
    manifest.write_text(manifest.read_text().replace(STATE_FILE, "../../secret"))
    (checkpoint,), _ = found(tmp_path)
    assert list(checkpoint.files) == ["secret"]
    told = dict[Path, str]()
    assert load_newest(tmp_path, told.__setitem__) is None
    # Others are told of it too, and where a volunteer's files lie is nobody's business.
    assert told == {checkpoint.path: "No such file or directory"}


CONFIG = replace(
    RunConfig(),
    inner=InnerSection(steps=6, batch=4, warmup_steps=5),
    outer=OuterSection(steps=8, momentum_ramp_steps=8),
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("stdlib", None, 0.05)


@pytest.mark.parametrize("stopped_at", [0, 4])
@pytest.mark.parametrize("missed", [False, True])
def test_a_replica_goes_on_bit_for_bit_from_what_is_on_disk(
    tmp_path: Path, corpus: Corpus, stopped_at: int, missed: bool
) -> None:
    """Between two outer steps and within one; also with work in it that missed the outer step."""

    def outer_step(replica: Replica) -> None:
        replica.train(lambda: False)
        ranges = [(0, 50_000)] if missed else []
        replica.apply_outer_step(replica.pseudo_gradient() * 0.9, ranges)

    replica, other = (Replica(CONFIG, corpus, device="cpu", peer_seed=seed) for seed in (1, 2))
    outer_step(replica)
    replica.train(lambda: replica.inner_steps_done >= stopped_at)
    state = State(replica.outer_step, LINEAGE, 7, (), replica.anchor_P, replica.momentum_P)
    save_checkpoint(tmp_path, state, replica.inner_state())
    loaded = load_newest(tmp_path)
    assert loaded is not None
    kept, inner = loaded
    assert inner is not None
    assert inner.inner_steps == stopped_at
    other.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
    other.load_inner_state(inner)
    for one in (replica, other):
        outer_step(one)
    assert replica.state_digest() == other.state_digest()
    ended, other_ended = (replace(one.train(lambda: False), seconds=0.0) for one in (replica, other))
    assert ended == other_ended
    assert torch.equal(replica.pseudo_gradient(), other.pseudo_gradient())


@pytest.mark.parametrize("torn", [False, True])
def test_who_was_stopped_within_an_inner_step_goes_on_with_the_moments_before_it(
    tmp_path: Path, corpus: Corpus, torn: bool
) -> None:
    """Of what was done since that one's anchor nothing: it is in the state, or lost."""
    replica = Replica(CONFIG, corpus, device="cpu", peer_seed=1)
    replica.train(lambda: replica.inner_steps_done >= 4)
    state = State(0, LINEAGE, 7, (), replica.anchor_P, replica.momentum_P)
    before = replica.inner_state()
    path = save_checkpoint(tmp_path, state, before)
    save_checkpoint(tmp_path, replace(state, outer_step=1, tokens=8))
    if torn:
        os.truncate(path / INNER_FILE, 9)
    kept, inner = load_newest(tmp_path) or (None, None)
    assert kept is not None
    assert kept.outer_step == 1
    if torn:
        assert inner is None
        return
    assert inner is not None
    assert (inner.local_P, inner.inner_steps, inner.tokens, inner.losses) == (None, 0, 0, ())
    assert inner.optimizer_steps == 4
    assert torch.equal(inner.moment_P, before.moment_P)
    assert torch.equal(inner.generator, before.generator)
    replica.load_inner_state(inner)
    assert not replica.pseudo_gradient().any()


def test_an_inner_state_of_another_model_changes_nothing(corpus: Corpus) -> None:
    replica = Replica(CONFIG, corpus, device="cpu", peer_seed=1)
    replica.train(lambda: replica.inner_steps_done >= 2)
    before, inner = replica.pseudo_gradient().clone(), replica.inner_state()
    with pytest.raises(ValueError, match="inner state of"):
        replica.load_inner_state(replace(inner, square_P=torch.zeros(5)))
    assert torch.equal(replica.pseudo_gradient(), before)
