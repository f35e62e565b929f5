"""What is not to be left half done when a peer ends."""

import asyncio
import subprocess
import sys
import threading

import pytest

from runtime.tasks import Background, abandonable, ungrouped, until_abandoned_end, whole


@pytest.mark.parametrize("times", [1, 3])
def test_whoever_is_cancelled_ends_when_the_work_is_done(times: int) -> None:
    async def main() -> list[str]:
        told, begun, may_end = list[str](), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await may_end.wait()
            told.append("done")

        async def worker() -> None:
            try:
                await whole(work())
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        task = asyncio.create_task(worker())
        await begun.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.wait([task], timeout=0.01)
        assert told == []
        may_end.set()
        await asyncio.wait([task])
        assert task.cancelled()
        return told

    assert asyncio.run(main()) == ["done", "cancelled"]


def test_what_comes_of_the_work_comes_of_the_whole() -> None:
    async def main() -> None:
        assert await whole(asyncio.sleep(0, "result")) == "result"

        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await whole(fail())

    asyncio.run(main())


def test_what_alone_ends_a_group_is_raised_as_itself_and_two_stay_together() -> None:
    async def fail(*errors: Exception) -> None:
        if len(errors) == 1:
            raise errors[0]
        async with asyncio.TaskGroup() as tasks:
            for error in errors:
                tasks.create_task(fail(error))

    async def nested(*errors: Exception) -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(fail(*errors))

    with pytest.raises(ZeroDivisionError), ungrouped():
        asyncio.run(nested(ZeroDivisionError()))
    with pytest.raises(BaseExceptionGroup), ungrouped():
        asyncio.run(nested(ZeroDivisionError(), ValueError()))


def test_work_that_is_abandoned_is_waited_for_by_nobody_and_its_result_or_failure_comes_as_it_is() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def read_much() -> str:
        may_end.wait()
        ended.set()
        return "all of it"

    async def main() -> None:
        reading = asyncio.create_task(abandonable(read_much))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not ended.is_set()
        with pytest.raises(ZeroDivisionError):
            await abandonable(lambda: 1 // 0)
        assert await abandonable(lambda: "result") == "result"
        waiting = asyncio.create_task(until_abandoned_end())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        may_end.set()
        await asyncio.wait_for(waiting, 30)
        assert ended.is_set()

    asyncio.run(main())


# Abandoned in the middle of PyTorch, as validation by Ctrl-C.
ABANDONS = """
import asyncio, torch
from runtime import cli
from runtime.tasks import abandonable

def work():
    while True:
        torch.randn(300, 300) @ torch.randn(300, 300)

async def main():
    task = asyncio.create_task(abandonable(work))
    await asyncio.sleep(0.2)
    task.cancel()

def app(prog_name):
    asyncio.run(main())
    print("saved")
    raise SystemExit(3)

cli.app = app
cli.main()
"""


def test_a_process_whose_thread_is_still_at_work_ends_with_its_own_exit_code() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", ABANDONS], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (3, "saved\n", "")


def test_what_runs_beside_ends_with_its_peer_or_with_all() -> None:
    async def main() -> list[str]:
        background, ended = Background(), list[str]()

        async def work(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        async with asyncio.TaskGroup() as tasks:
            background.begin(tasks)
            for name in ("ann", "bob"):
                background.spawn(work(name), name)
            await asyncio.sleep(0)
            background.lost("ann")
            await asyncio.sleep(0)
            assert ended == ["ann"]
            background.end()
            background.spawn(work("late"), "bob")
        return ended

    assert asyncio.run(main()) == ["ann", "bob"]
