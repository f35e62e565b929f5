"""What the demo shows while it runs: a live table on a terminal, plain lines anywhere else."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime.demo.processes import PeerProcess

REFRESH_S = 0.25
SHOWN_MESSAGES = 6


class DemoView:
    def __init__(self, console: Console, outer_steps: int) -> None:
        self._console = console
        self._outer_steps = outer_steps
        self._messages: list[str] = []
        self._next_refresh = 0.0
        # Refreshed from the demo's own loop: a thread of rich's would read the peers while they change.
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "DemoView":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            # The table goes, what happened stays.
            for message in self._messages:
                self._console.print(message, markup=False, highlight=False)

    def say(self, message: str) -> None:
        """Something the demo did or saw."""
        self._messages.append(message)
        if not self._live:
            self._console.print(message, markup=False, highlight=False)

    def committed(self, outer_step: int, members: int, loss: float | None) -> None:
        """An outer step that nobody had committed before."""
        if not self._live:
            self._console.print(
                f"outer step {outer_step} of {self._outer_steps}: {members} peers, train loss {_loss_words(loss)}",
                highlight=False,
            )

    def refresh(self, peers: Sequence[PeerProcess]) -> None:
        """Draw the table again, at most four times a second."""
        if not self._live or time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + REFRESH_S
        table = Table(box=None, pad_edge=False)
        for header in ("peer", "outer step", "train loss", ""):
            table.add_column(header)
        for peer in peers:
            done = peer.outer_step
            bar = "#" * (20 * done // self._outer_steps)
            table.add_row(peer.name, f"{done:>4} {bar:<20}", _loss(peer), _state(peer, done, self._outer_steps))
        self._live.update(Group(table, *map(Text, self._messages[-SHOWN_MESSAGES:])), refresh=True)


def _loss(peer: PeerProcess) -> str:
    losses = (event["loss"] for event in reversed(peer.events) if event["event"] == "outer_step_committed")
    return _loss_words(next(losses, None))


def _loss_words(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _state(peer: PeerProcess, done: int, outer_steps: int) -> str:
    if peer.killed:
        return "killed"
    if peer.exit_code is not None:
        return "done" if peer.exit_code == 0 else f"exited with code {peer.exit_code}"
    if not peer.is_member:
        return "starting"
    return "training" if done < outer_steps else "leaving"
