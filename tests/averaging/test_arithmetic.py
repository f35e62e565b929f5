"""Arithmetic beside the event loop: others are heard meanwhile, and it keeps to one core."""

import asyncio
import threading

import torch

from runtime.averaging.arithmetic import in_thread


def test_the_event_loop_goes_on_meanwhile_and_work_that_has_begun_is_done_whoever_is_cancelled() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(10.0)
        done.set()

    async def main() -> None:
        task = asyncio.create_task(in_thread(work))
        assert await asyncio.to_thread(begun.wait, 10.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not done.is_set()
        may_end.set()
        # One after the other.
        await in_thread(lambda: None)
        assert done.is_set()

    asyncio.run(main())


def test_it_keeps_to_one_core_whatever_the_training_thread_has() -> None:
    before = torch.get_num_threads()

    def train() -> None:
        torch.set_num_threads(4)
        torch.ones(1 << 20).add_(1.0)

    try:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert asyncio.run(in_thread(torch.get_num_threads)) == 1
    finally:
        torch.set_num_threads(before)
