"""Ending what runs beside, or letting it end."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_ABANDONABLE = "abandonable"
_LOOK_S = 0.1


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])


async def abandonable(work: Callable[[], T]) -> T:
    """What ``work`` returns, done in a thread that nobody waits for once this is cancelled, nor a process that ends."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=_ABANDONABLE, daemon=True).start()
    return await asyncio.wrap_future(done)


def is_any_abandoned() -> bool:
    """Whether a thread is at work of ``abandonable``."""
    return any(thread.name == _ABANDONABLE for thread in threading.enumerate())


async def until_abandoned_end() -> None:
    """Wait for all work of ``abandonable``, also what nobody waits for any more: it has memory until then."""
    # Of its end nobody is told.
    while is_any_abandoned():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


class Background:
    """Tasks that run beside, each for one peer, until they end, or that peer is lost, or all is over."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[asyncio.Task[None], str] = {}

    def begin(self, group: asyncio.TaskGroup) -> None:
        """From now on; whatever fails ends the group."""
        self._group = group

    def spawn(self, work: Coroutine[Any, Any, None], peer: str) -> None:
        if self._group is None:
            # It is over; others may send a moment longer.
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks[task] = peer
        task.add_done_callback(self._tasks.pop)

    def lost(self, peer: str) -> None:
        for task in [task for task, whose in self._tasks.items() if whose == peer]:
            task.cancel()

    def end(self) -> None:
        self._group = None
        for task in self._tasks:
            task.cancel()


@contextmanager
def ungrouped() -> Iterator[None]:
    """What alone has ended a group of tasks is raised as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns. If this is cancelled meanwhile, that is so once the work is done, and not before."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
