"""What the user of this machine wants of its peer, however they say it: flags, signals, the clock, the local socket.

There is one for each process. A peer that pauses leaves its run and comes back; this stays.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, get_type_hints

from runtime.config import CHANGEABLE, PeerConfig, as_flag, limits_in_force, validate
from runtime.control import serve_control
from runtime.disk import folder_bytes
from runtime.errors import EXIT_INTERRUPTED, EXIT_NOT_NOW, ConfigError
from runtime.limits import limit_words
from runtime.machine import Machine
from runtime.manifest import Manifest
from runtime.pausing import Busy, Look, reason_to_pause
from runtime.peerfile import PEER_FILE, save_settings
from runtime.progress import Progress
from runtime.runfile import typed
from runtime.running import note_running
from runtime.tasks import end
from runtime.view import View

REQUESTS = ("status", "limits", "pause", "resume", "leave")
# A phase in which no inner step ends for so long hangs: a model that slow is not worth a machine's while.
STILL_S = 600.0
# A pause takes longer to be carried out than to be noticed.
LOOK_S = 2.0


class User:
    """All of it happens in the event loop's thread.

    Args: config has what they said when the process began.
    """

    def __init__(self, config: PeerConfig, view: View) -> None:
        self.config, self.limits, self.view = config, config.limits, view
        self.stop = asyncio.Event()
        """The peer is to leave the run now: for good, or until ``may_take_part`` returns again."""
        self.stop_reason = ""
        self.exit_code: int | None = None
        """Of the process, once they want it to end."""
        self.paused: str | None = None
        """Why the peer is not to take part, None if it may."""
        self.manifest: Manifest | None = None
        self.peer = ""
        self.progress: Progress | None = None
        """How far the peer is; None while it is not that far."""
        self.alone = False
        """Whether, as far as is known, nobody else has a state of the run that this peer has opened."""
        self.has_entered = False
        """Whether the others may know of it, and are to hear a goodbye."""
        self.printed_invite = ""
        self._at_work = False
        self._asked, self._busy, self._too_large = False, Busy(), 0
        self._machine = Machine()
        self._folder_number = config.folder.stat().st_ino if config.folder.exists() else None
        self._look = Look(0)
        self._news, self._ending = asyncio.Event(), asyncio.Event()
        self._looking: asyncio.Task[None]

    async def listen(self, stack: AsyncExitStack) -> None:
        """From now on they are heard, until ``stack`` is undone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.leave, "interrupted", EXIT_INTERRUPTED)
        loop.add_signal_handler(signal.SIGTERM, self.leave, "told to end", 0)
        # Under nohup it is ignored, and stays so.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.leave, "its terminal was closed", 0)
        if self.config.exit_with_stdin:
            threading.Thread(target=self._wait_for_end, args=(loop,), name="stdin", daemon=True).start()
        if await serve_control(stack, self.config.folder, self.answer):
            stack.callback(note_running(self.config.folder))
        else:
            self.view.say("no local socket can be made here: atoll status, pause and leave do not reach this peer")
        self._take(await asyncio.to_thread(self._machine.look), loop.time())
        self._looking = asyncio.create_task(self._keep_looking())
        stack.push_async_callback(end, self._looking)

    async def may_take_part(self) -> bool:
        """Wait while there is a reason to pause. False once the process is to end."""
        self._at_work = False
        while self.paused is not None and not self._ending.is_set():
            self._news.clear()
            with self.view.pausing(self.paused):
                news = asyncio.ensure_future(self._news.wait())
                await self._first(news)
                await end(news)
            if self._ending.is_set():
                self.view.say(f"goodbye: {self.stop_reason}")
        if self._ending.is_set():
            return False
        # Not before: whatever waits for it in a peer that is leaving is to find it set.
        self.stop.clear()
        self._at_work, self.has_entered = True, False
        return True

    async def turn(self, taking_part: Coroutine[Any, Any, int | None]) -> int | None:
        """Take part once; the exit code of the process, None for a pause.

        A peer that has entered its run leaves it by itself when it is to stop; before that it is just taken apart.
        """
        task, stop = asyncio.ensure_future(taking_part), asyncio.ensure_future(self.stop.wait())
        try:
            await self._first(task, stop)
            if not task.done() and not self.has_entered:
                await end(task)
            return self.exit_code if task.cancelled() else await task
        finally:
            for one in (task, stop):
                await end(one)

    async def _first(self, *those: asyncio.Future[Any]) -> None:
        """Wait for one of them. A peer that does not see any more what its limits ask for goes no further."""
        await asyncio.wait([*those, self._looking], return_when=asyncio.FIRST_COMPLETED)
        if self._looking.done():
            self._looking.result()

    async def unless_ending(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, but leave it undone once the process is to end."""
        task, ending = asyncio.ensure_future(work), asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait([task, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (task, ending):
                await end(one)

    def leave(self, reason: str, exit_code: int) -> None:
        """End the process, after a goodbye."""
        self.stop_reason, self.exit_code = reason, exit_code
        for event in (self.stop, self._news, self._ending):
            event.set()

    def answer(self, request: Mapping[str, Any]) -> dict[str, object]:
        """What they ask over the local socket.

        Raises: ConfigError for what makes no sense.
        """
        match request.get("do"):
            case "status":
                return self.status()
            case "limits":
                self._change(request.get("change", {}), bool(request.get("save")))
                return self.status()
            case "pause":
                self._asked = True
            case "resume":
                self._asked, self._too_large = False, 0
            case "leave":
                self.leave("told to leave", 0)
                return self.status()
            case other:
                raise ConfigError(f"a peer can do no {str(other)[:40]!r}: it knows {', '.join(REQUESTS)}")
        self._decide()
        return self.status()

    def status(self) -> dict[str, object]:
        """For `atoll status`; docs/events.md has what each means."""
        progress, config = self.progress, self.manifest and self.manifest.config
        if self.exit_code is not None:
            doing = "leaving"
        elif self.paused is not None:
            doing = "pausing" if self._at_work else "paused"
        else:
            doing = "starting" if progress is None else progress.doing or "joining"
        return {
            "run": config.name if config else None,
            "run_id": self.manifest.run_id if self.manifest else None,
            "peer": self.peer or None,
            "folder": str(self.config.folder.absolute()),
            "pid": os.getpid(),
            "healthy": progress is None or progress.still_s < STILL_S,
            "doing": doing,
            "paused": self.paused,
            **(progress.figures() if progress else {}),
            "memory_bytes": self._look.memory_bytes,
            "disk_bytes": folder_bytes(self.config.folder),
            "limits": limits_in_force(self.config),
        }

    def _change(self, wanted: object, save: bool) -> None:
        """Raises: ConfigError; nothing is changed then."""
        if not isinstance(wanted, Mapping):
            raise ConfigError("the limits to change are an object, by their names")
        types, known, changes = get_type_hints(PeerConfig), {as_flag(field): field for field in CHANGEABLE}, {}
        for name, value in wanted.items():
            if name not in known:
                raise ConfigError(f"a running peer cannot change {str(name)[:40]!r}: it can {', '.join(known)}")
            changes[known[name]] = typed(value, types[known[name]], "limits", name)
        changed = replace(self.config, **changes)
        validate(changed, "limits")
        if save:
            save_settings(self.config.config or self.config.folder / PEER_FILE, changes)
        if changes:
            words = ", ".join(f"{as_flag(field)} {limit_words(value)}" for field, value in changes.items())
            self.view.say(f"limits changed: {words}")
        self.config, self.limits = changed, changed.limits
        self._decide()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            look, there = await asyncio.to_thread(self._machine.look), await asyncio.to_thread(self._folder_is_there)
            if not there and self.exit_code is None:
                self.view.say(f"{self.config.folder} is not there any more: this peer ends")
                self.leave("its folder was deleted", EXIT_NOT_NOW)
            self._take(look, asyncio.get_running_loop().time())

    def _folder_is_there(self) -> bool:
        """The same as in the beginning: under its name another may have been made by now."""
        try:
            return self.config.folder.stat().st_ino == self._folder_number
        except FileNotFoundError:
            return False
        except OSError:
            # A disk that is away for a moment.
            return True

    def _take(self, look: Look, now: float) -> None:
        self._look = look
        self._busy.look(now, look.others_share)
        if self._at_work and self.paused is None and 0 < self.limits.memory_bytes < look.memory_bytes:
            self._too_large = look.memory_bytes
        self._decide()

    def _decide(self) -> None:
        why = reason_to_pause(
            self.limits, self._look, asked=self._asked, busy=self._busy.is_busy, too_large_bytes=self._too_large
        )
        if why == self.paused or self.exit_code is not None:
            return
        self.paused = why
        self.view.say("resumed" if why is None else f"paused: {why}")
        if why is not None:
            self.stop_reason = f"paused: {why}"
            self.stop.set()
        self._news.set()

    def _wait_for_end(self, loop: asyncio.AbstractEventLoop) -> None:
        # Unbuffered: a daemon thread that holds the buffer's lock at exit would abort the process.
        while os.read(0, 4096):
            pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self.leave, "its parent ended", 0)
