"""Training and the event loop do not fight for the cores, and what ends the one is told by the other."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from runtime.config import PeerConfig, RunConfig
from runtime.errors import NotNowError
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
    with pytest.raises(NotNowError, match="cpu has no room for this run's model and batch: choose another --device"):
        asyncio.run(trainer.train(threading.Event()))
    with pytest.raises(NotNowError, match="has no room"):
        trainer.validation_loss()


def test_an_inner_step_that_outlasts_its_cancelled_phase_is_in_what_is_saved_once_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.trainer.LAST_INNER_STEP_S", 0.0)
    config = PeerConfig(tmp_path, tmp_path / "key", device="cpu", inner_step_s=1.0)

    async def main() -> None:
        trainer = ReplicaTrainer(RunConfig(), config, "peer-of-this-test", lambda: 1)
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell(module: object, inputs: object) -> None:
            loop.call_soon_threadsafe(begun.set)

        trainer.replica._model.register_forward_pre_hook(tell)
        training = asyncio.create_task(trainer.train(threading.Event()))
        await begun.wait()
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        assert trainer.inner_state() is None
        # Nobody waits for it: a peer that ends writes what there is when it has said goodbye.
        async with asyncio.timeout(30):
            while True:
                if saved := trainer.inner_state():
                    break
                await asyncio.sleep(0.01)
        assert saved.inner_steps == 1

    asyncio.run(main())
