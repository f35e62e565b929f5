"""An event loop on a virtual clock, in which the code of one peer can be stopped as SIGSTOP stops a process.

Time jumps to the next thing due. Which peer a task, timer or callback belongs to is in its context: whatever a peer
starts inherits it. What belongs to a frozen peer is kept until it is thawed, and its timers then fire late.
"""

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")
PEER: ContextVar[str] = ContextVar("peer")


class _Due:
    """A callback and its context, without what asyncio's own handle has beside them: a seed has forty thousand."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_source_traceback", "_when")

    def __init__(self, callback: Callable[..., Any], args: Any, context: Context | None, when: float) -> None:
        self._callback, self._args, self._cancelled, self._when = callback, args, False, when
        self._context = copy_context() if context is None else context
        self._source_traceback = None

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` passes only when nothing is left to do; it has no files and no threads.

    What is to be done in a thread is done at one moment, a while after it was asked for, and known a while later:
    whatever else happens in the meantime comes before or after it.
    """

    _ready: deque[_Due]

    def __init__(self) -> None:
        super().__init__()
        self.held_back: dict[str, list[_Due]] = {}
        self._now = 0.0
        self._timers: list[tuple[float, int, _Due]] = []
        self._order = itertools.count()
        dice = random.Random(0)
        self.thread_s: Callable[[], float] = lambda: dice.choice((0.0, 0.0, 0.01, 0.2)) * dice.random()
        """How long what is done in a thread waits, and then is not known to be done."""
        self._in_threads = dict[asyncio.Future[Any], str]()

    def time(self) -> float:
        return self._now

    def freeze(self, peer: str) -> None:
        """From the next callback on, nothing of this peer runs."""
        self.held_back.setdefault(peer, [])

    def thaw(self, peer: str) -> None:
        """All that came due meanwhile runs now, in the order in which it did."""
        self._ready.extend(self.held_back.pop(peer, []))

    def frozen(self, peer: str) -> bool:
        return peer in self.held_back

    def kill(self, peer: str) -> None:
        """Nothing that this peer is having done in threads comes to an end that anybody hears of."""
        for done in [done for done, whose in self._in_threads.items() if whose == peer]:
            done.cancel()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        due = _Due(callback, args, context, self._now)
        self._ready.append(due)
        return due  # type: ignore[return-value]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        due = _Due(callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._order), due))
        return due  # type: ignore[return-value]

    def run_in_executor(self, executor: Any, work: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        done: asyncio.Future[T] = self.create_future()
        self._in_threads[done] = PEER.get("")
        done.add_done_callback(self._in_threads.pop)

        def tell(result: T | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            if done.cancelled():
                return
            try:
                told: tuple[T | None, Exception | None] = work(*args), None
            except Exception as error:
                told = None, error
            self.call_later(self.thread_s(), tell, *told)

        self.call_later(self.thread_s(), run)
        return done

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while not ready:
            if not timers:
                raise RuntimeError("deadlock: every task waits for something that nobody will do")
            when, _, timer = heapq.heappop(timers)
            if not timer._cancelled:
                self._now = max(self._now, when)
                ready.append(timer)
        for _ in range(len(ready)):
            due = ready.popleft()
            if not (due._cancelled or (self.held_back and self._holds_back(due))):
                due._context.run(due._callback, *due._args)

    def _holds_back(self, due: _Due) -> bool:
        waiting = self.held_back.get(due._context.get(PEER, ""))
        if waiting is None:
            return False
        waiting.append(due)
        return True


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)
