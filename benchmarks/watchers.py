"""So many observers of one run in one process, for ``observers.py``; they leave at the end of the standard input.

python benchmarks/watchers.py COUNT RUN_ID ADDRESS...
"""

import argparse
import asyncio
import sys
from contextlib import aclosing

from peers.observer import Frame, follow
from runtime.monitor.feed import WATCH_PROTOCOL, greeting

# A hundred starts at once are no hundred who watch.
STAGGER_S = 0.1


async def watch(count: int, run_id: str, addresses: list[str]) -> None:
    """Follow a run so many times at once; says when all do."""
    following = 0

    async def one() -> None:
        nonlocal following
        is_first = True
        async with aclosing(follow(run_id, addresses, WATCH_PROTOCOL, lambda: greeting(run_id, 0))) as seen:
            async for told in seen:
                if isinstance(told, Frame) and is_first:
                    is_first, following = False, following + 1
                    if following == count:
                        print("all follow", flush=True)

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(STAGGER_S)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("run_id")
    parser.add_argument("addresses", nargs="+")
    options = parser.parse_args()
    asyncio.run(watch(options.count, options.run_id, options.addresses))
