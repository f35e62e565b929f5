import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.errors import ConfigError
from runtime.training.checkpoint import STATE_FILE, TrainingState, load_state, save_state


def a_state(outer_step: int = 3) -> TrainingState:
    generator = torch.Generator().manual_seed(outer_step)
    anchor_P, momentum_P = torch.randn(2, 1000, generator=generator)
    return TrainingState(outer_step, bytes(range(32)), 7000, ("bob", "cat"), anchor_P, momentum_P)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = a_state()
    save_state(tmp_path / "new" / "folder", saved)
    loaded = load_state(tmp_path / "new" / "folder")
    assert loaded is not None
    assert (loaded.outer_step, loaded.lineage) == (saved.outer_step, saved.lineage)
    assert torch.equal(loaded.anchor_P, saved.anchor_P)
    assert torch.equal(loaded.momentum_P, saved.momentum_P)


def test_a_loaded_state_can_be_written_to_while_the_file_is_replaced(tmp_path: Path) -> None:
    save_state(tmp_path, a_state(3))
    loaded = load_state(tmp_path)
    assert loaded is not None
    loaded.anchor_P.zero_()
    save_state(tmp_path, a_state(4))
    again = load_state(tmp_path)
    assert again is not None
    assert torch.equal(again.anchor_P, a_state(4).anchor_P)
    assert not loaded.anchor_P.any()


def test_an_empty_or_missing_folder_has_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "missing") is None


def test_nothing_but_the_state_is_left_behind(tmp_path: Path) -> None:
    save_state(tmp_path, a_state(3))
    save_state(tmp_path, a_state(4))
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, a_state(3))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, a_state(4))
    loaded = load_state(tmp_path)
    assert loaded is not None
    assert loaded.outer_step == 3
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_torn_file_is_named(tmp_path: Path, kept: float) -> None:
    save_state(tmp_path, a_state())
    file = tmp_path / STATE_FILE
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ConfigError, match=STATE_FILE):
        load_state(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path, a_state())
    file = tmp_path / STATE_FILE
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="does not match its digest"):
        load_state(tmp_path)


def test_somebody_elses_safetensors_file_is_named(tmp_path: Path) -> None:
    save_file({"anchor": torch.zeros(3)}, tmp_path / STATE_FILE)
    with pytest.raises(ConfigError, match="its format is None"):
        load_state(tmp_path)
