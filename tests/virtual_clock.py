"""An event loop on a virtual clock, in which the code of one peer can be stopped as SIGSTOP stops a process.

Time jumps to the next thing due. Which peer a task, timer or callback belongs to is in its context: whatever a peer
starts inherits it. What belongs to a frozen peer is kept until it is thawed, and its timers then fire late.
"""

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
PEER: ContextVar[str] = ContextVar("peer")


class _JumpingSelector:
    """Waits for nothing: where a real selector would sleep, the clock jumps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits for something that nobody will do")
        self.now += max(timeout, 0.0)
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        if not (self._loop.held_back and self._loop.holds_back(self)):  # type: ignore[attr-defined]
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    def _run(self) -> None:
        if not (self._loop.held_back and self._loop.holds_back(self)):  # type: ignore[attr-defined]
            super()._run()


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` passes only when nothing is left to do."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        self.held_back: dict[str, list[asyncio.Handle]] = {}
        super().__init__(self._virtual)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._virtual.now

    def freeze(self, peer: str) -> None:
        """From the next callback on, nothing of this peer runs."""
        self.held_back.setdefault(peer, [])

    def thaw(self, peer: str) -> None:
        """All that came due meanwhile runs now, in the order in which it did."""
        waiting = self.held_back.pop(peer, [])
        self._ready.extend(handle for handle in waiting if not handle.cancelled())  # type: ignore[attr-defined]

    def frozen(self, peer: str) -> bool:
        return peer in self.held_back

    def holds_back(self, handle: asyncio.Handle) -> bool:
        waiting = self.held_back.get(handle._context.get(PEER, ""))  # type: ignore[attr-defined]
        if waiting is None:
            return False
        waiting.append(handle)
        return True

    def _call_soon(self, callback: Callable[..., Any], args: Any, context: Context | None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)
