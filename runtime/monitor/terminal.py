"""A run in a terminal: a view that is drawn again four times a second, or plain lines where there is no terminal."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runtime.monitor.screen import Showing, title, view_lines
from runtime.monitor.words import clock_words, mark_words, number_words, plain, several, short, time_words

REFRESH_S = 0.25
# For terminals that have no Unicode, sign for sign.
ASCII = str.maketrans("█▓░▒·…▁▂▃▄▅▆▇", "#=-~.~__.--^^")


async def show(showing: Showing, telling: Coroutine[Any, Any, None], console: Console) -> None:
    """Show a run while it is told, on an alternate screen that goes when it is over; elsewhere as plain lines."""
    if not console.is_terminal or console.is_dumb_terminal:
        lines = PlainLines(showing, lambda line: console.print(Text(line), soft_wrap=True))
        showing.watched.changed = lines.changed
        await telling
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        task = asyncio.create_task(telling)
        try:
            while not task.done():
                live.update(view(showing, console, console.height), refresh=True)
                await asyncio.wait({task}, timeout=REFRESH_S)
        finally:
            task.cancel()
            await asyncio.wait({task})
    task.result()
    showing.over = True
    console.print(view(showing, console, console.height - 1))


def view(showing: Showing, console: Console, height: int) -> Group:
    """What fits the console's width and so many lines."""
    lines = view_lines(showing, console.width, height)
    if console.options.ascii_only:
        for line in lines:
            line.plain = line.plain.translate(ASCII)
    return Group(*lines)


class PlainLines:
    """A line for each outer step and each event, as they happen; of the past of a live run only where it stands."""

    def __init__(self, showing: Showing, say: Callable[[str], None]) -> None:
        self._showing, self._say = showing, say
        self._step = 0
        self._mark: object = None
        self._trouble = ""
        self._began = bool(showing.folder)

    def changed(self) -> None:
        watched = self._showing.watched
        picture, last = watched.picture, watched.picture.last
        if watched.trouble != self._trouble:
            self._trouble = watched.trouble
            self._say(plain(watched.trouble) or f"told by {short(plain(watched.following))}")
        if not self._began:
            self._began = picture.live
            if self._began:
                self._say(title(self._showing, 200).plain)
                self._step = last.outer_step - 1 if last else 0
                self._mark = picture.marks[-1] if picture.marks else None
        if not self._began:
            return
        new = []
        for mark in reversed(picture.marks):
            if mark is self._mark:
                break
            new.append(mark)
        self._mark = picture.marks[-1] if picture.marks else None
        for mark in reversed(new):
            self._say(f"{clock_words(mark.time)} {mark_words(mark)}")
        if last and last.outer_step > self._step:
            self._step = last.outer_step
            round_s = "" if last.round_s is None else f", round {time_words(last.round_s)}"
            loss, took_part = number_words(last.loss), f"{several(last.n_members, 'member')} took part"
            self._say(f"{clock_words(last.time)} outer step {last.outer_step}: loss {loss}, {took_part}{round_s}")
