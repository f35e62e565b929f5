"""The p2pd process, the watchdog that ends it with us, and the folder of their sockets."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peers.errors import NetworkError

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 2.0
# sockaddr_un holds 104 bytes on macOS and 108 on Linux, with the final zero; the file names take 12.
_MAX_FOLDER_BYTES = 90

# p2pd must end with us, SIGKILL included, and macOS has no PR_SET_PDEATHSIG: this shell blocks on a pipe whose other
# end only we hold, and the kernel closes it however we die. Its copies of p2pd's output are closed, so that the end
# of that output is the end of p2pd.
_WATCHDOG = """
folder=$1; shift
"$@" </dev/null &
child=$!
exec >/dev/null 2>&1
trap 'kill -9 "$child"; wait "$child"; rm -rf "$folder"' EXIT
trap exit HUP INT TERM
read -r _
"""

_GO_TIME = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ")

_lifelines: set[int] = set()


def _close_lifelines_after_fork() -> None:
    # A forked data loader would otherwise keep p2pd alive after we were killed.
    for descriptor in _lifelines:
        with contextlib.suppress(OSError):
            os.close(descriptor)


os.register_at_fork(after_in_child=_close_lifelines_after_fork)


class Daemon:
    """The p2pd process, its watchdog, and the folder of their sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ready = asyncio.Event()
        """p2pd has said who it is, or has ended."""
        self.ended = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=3)
        self._lifeline: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._reader_task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """The socket on which p2pd takes requests."""
        return str(self.folder / "p2pd.sock")

    @property
    def accept_path(self) -> str:
        """The socket to which p2pd brings incoming streams."""
        return str(self.folder / "in.sock")

    def start(self, arguments: Sequence[str]) -> None:
        """Start watchdog and p2pd; takes 1-3 ms. ``arguments`` begin with the program."""
        read_end, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        try:
            # Not the event loop's subprocess: uvloop's children inherit stray copies of the pipes, which never end.
            self._watchdog = subprocess.Popen(
                [
                    "/bin/sh",
                    "-c",
                    _WATCHDOG,
                    "p2pd-watchdog",
                    str(self.folder),
                    *arguments,
                    f"-listen=/unix{self.path}",
                ],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env={"GOLOG_LOG_LEVEL": "ERROR", **os.environ},
                # Ctrl-C in a terminal goes to its process group: p2pd has to outlive our goodbye.
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        self._reader_task = asyncio.create_task(self._read_output())

    def last_words(self) -> str:
        """The last lines that tell of trouble, for a sentence to the user."""
        return " ".join(self._last_lines) or "without a word"

    async def end(self) -> None:
        """Kill p2pd, wait until it and its watchdog are gone, and remove the folder. Bounded by 6 s."""
        self._cut_lifeline()
        if self._watchdog is not None:
            try:
                await asyncio.to_thread(self._watchdog.wait, _CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # Somebody stopped the shell; p2pd has ended by itself, 13 ms after hivemind's connection to it.
                logger.warning("p2pd_watchdog_silent", extra={"pid": self._watchdog.pid})
                self._watchdog.kill()
        if self._reader_task is not None:
            await asyncio.wait([self._reader_task], timeout=_CLOSE_TIMEOUT_S)
            await end_tasks([self._reader_task])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)
            self._lifeline = None

    async def _read_output(self) -> None:
        """Until its end, which is the end of p2pd; unread, a full pipe would stop p2pd.

        Not cancelled together with ``create``: uvloop would close the pipe behind the back of its file object.
        """
        assert self._watchdog is not None
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), self._watchdog.stdout
        )
        try:
            while line := await _next_line(output):
                logger.debug("p2pd", extra={"line": line})
                if not self.ready.is_set() or "ERROR" in line or "panic" in line:
                    self._last_lines.append(_GO_TIME.sub("", line))
                if line.startswith("Peer ID:"):
                    self._last_lines.clear()
                    self.ready.set()
        finally:
            transport.close()
            # The watchdog knows p2pd by its number, which is now free for others.
            self._cut_lifeline()
            self.ended.set()
            self.ready.set()


def daemon_arguments(
    daemon: Path, identity: Path, listen: Sequence[str], bootstrap: Sequence[str], client_mode: bool
) -> list[str]:
    """The command line of p2pd; the key file is ``identity``."""
    local = all("/127.0.0.1/" in address or "/::1/" in address for address in listen)
    arguments = [
        str(daemon),
        f"-id={identity.absolute()}",
        "-dhtClient=1" if client_mode else "-dhtServer=1",
        "-tls=1",
        "-noise=1",
        "-relay=1",
        "-autonat=1",
        "-connManager=1",
        f"-natPortMap={int(not local)}",
        f"-b={int(bool(bootstrap))}",
        # p2pd ends when hivemind's connection ends, or if none comes for this long: a second defence.
        "-idleTimeout=30s",
    ]
    if bootstrap:
        arguments.append(f"-bootstrapPeers={','.join(bootstrap)}")
    arguments.append(f"-hostAddrs={','.join(listen)}" if listen else "-noListenAddrs=1")
    return arguments


def startup_failure(said: str, bootstrap: Sequence[str]) -> str:
    """A sentence for the user, from what p2pd or we had to say."""
    if bootstrap and "address already in use" not in said:
        return (
            f"none of the peers at {', '.join(bootstrap)} can be reached ({said}): check that one of them is running "
            "and that this machine is online, or ask for a newer invite."
        )
    return f"the libp2p daemon p2pd does not start ({said}): check the listen addresses."


def make_socket_folder() -> Path:
    """A new folder that only we may enter, its name short enough for Unix sockets in it.

    Raises: NetworkError, a sentence for the user.
    """
    for parent in (None, "/tmp"):
        try:
            folder = tempfile.mkdtemp(prefix="atoll-", dir=parent)
        except OSError as error:
            raise NetworkError(f"no folder for sockets can be made ({error}): set TMPDIR to one of yours.") from error
        if len(os.fsencode(folder)) <= _MAX_FOLDER_BYTES:
            return Path(folder)
        Path(folder).rmdir()
    raise NetworkError("no folder for sockets has a short enough name: set TMPDIR to one under 80 characters.")


async def _next_line(output: asyncio.StreamReader) -> str:
    """Without its end; empty only at the end of the output, and never longer than 64 KiB."""
    while True:
        with contextlib.suppress(ValueError):  # too long; readline has dropped it
            raw = await output.readline()
            line = raw.decode(errors="replace").strip()
            if line or not raw:
                return line


async def end_tasks(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    """Cancel and await, for at most 2 s; how they ended is looked at, so that nothing warns of it later."""
    alive = [task for task in tasks if task is not None]
    for task in alive:
        task.cancel()
    if alive:
        done, _ = await asyncio.wait(alive, timeout=_CLOSE_TIMEOUT_S)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                logger.debug("task_ended", extra={"reason": repr(task.exception())})
