"""Arithmetic on whole vectors, beside the event loop.

With a billion parameters it takes seconds, and a peer that says nothing for so long is taken for dead.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def keep_to_one_core() -> None:
    """From now on this thread's arithmetic takes no other; what others set is theirs alone."""
    torch.set_num_threads(1)
    # Makes this thread take the number over now: at its first use of it, it would take what was set last anywhere.
    torch.get_num_threads()


# What a peer does of this comes one after the other.
_thread = ThreadPoolExecutor(1, "arithmetic", keep_to_one_core)


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns, done in a thread. Once begun it is done to its end, also if this is cancelled."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
