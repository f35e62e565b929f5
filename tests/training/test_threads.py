"""Training and the event loop do not fight for the cores."""

import threading

import torch

from runtime.trainer import share_threads


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
