"""Training and the event loop do not fight for the cores, and what ends the one is told by the other."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from runtime.config import PeerConfig, RunConfig
from runtime.errors import ConfigError
from runtime.trainer import ReplicaTrainer, share_threads


def test_the_loop_keeps_to_one_thread_whatever_the_training_thread_sets() -> None:
    before, seen = torch.get_num_threads(), list[int]()

    def train() -> None:
        torch.set_num_threads(3)
        torch.randn(1 << 20).abs().sum()
        seen.append(torch.get_num_threads())

    try:
        assert share_threads() == share_threads() == before, "the second time it is one by now"
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert seen == [3]
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_device_without_room_for_a_batch_is_one_sentence(tmp_path: Path) -> None:
    trainer = ReplicaTrainer(
        RunConfig(), PeerConfig(tmp_path, tmp_path / "key", device="cpu"), "peer-of-this-test", lambda: 1
    )

    def full(module: object, inputs: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    # There is no GPU to fill here: the model's first operation fails as it does on one.
    trainer.replica._model.register_forward_pre_hook(full)
    with pytest.raises(ConfigError, match="cpu has no room for this run's model and batch: choose another --device"):
        asyncio.run(trainer.train(threading.Event()))
    with pytest.raises(ConfigError, match="has no room"):
        trainer.validation_loss()
