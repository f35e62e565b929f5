"""The local socket of a peer, on which its user asks things of it while it runs: one JSON object a line, each way.

It lies in the peer's folder. Where the name would be too long for a socket, or the file system has none, it lies among
the temporary files, in a folder that only the user may enter, and a link in the peer's folder leads there.
Only the user of the peer, and root, is answered: the socket has mode 0600, and both ends look who the other one is.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from peers.daemon import make_socket_folder
from peers.errors import NetworkError
from runtime.errors import ConfigError

SOCKET = "control.sock"
# sockaddr_un holds 104 bytes on macOS and 108 on Linux, with the final zero.
MOST_PATH_BYTES = 100
MOST_LINE_BYTES = 1 << 16
MOST_CLIENTS = 16
# Who connects says something within this time, and takes the answer.
IDLE_S = 10.0
# The event loop of a peer is never away for so long.
ANSWER_S = 5.0

Answer = Callable[[Mapping[str, Any]], Mapping[str, object]]


class NotRunningError(Exception):
    """No peer has this folder now."""


class NoAnswerError(Exception):
    """One has it, and says nothing."""


async def serve_control(stack: AsyncExitStack, folder: Path, answer: Answer) -> bool:
    """Answer until ``stack`` is undone. Whoever calls this has the folder to itself: a socket in it is an old one.

    Args: answer raises ConfigError for what makes no sense.
    Returns: whether there is a socket. A peer without one does all else.
    """
    clients = set[asyncio.Task[None]]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            with suppress(TimeoutError, OSError):
                if len(clients) > MOST_CLIENTS:
                    await _send(writer, {"error": "too many are asking: try again"})
                elif not may_ask(_user_of(writer.get_extra_info("socket")), os.getuid()):
                    await _send(writer, {"error": "this is another user's peer"})
                else:
                    await _converse(reader, writer, answer)
        finally:
            clients.discard(task)
            writer.close()

    try:
        listening = _bind(folder)
    except (OSError, NetworkError):
        return False
    stack.callback(_remove, folder / SOCKET)
    server = await asyncio.start_unix_server(handle, sock=listening, limit=MOST_LINE_BYTES)

    async def close() -> None:
        server.close()
        for task in clients:
            task.cancel()
        if clients:
            await asyncio.wait(clients)

    stack.push_async_callback(close)
    return True


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    """One request after the other, until its end, silence, or a line that is too long."""
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                line = await reader.readline()
        except ValueError:
            await _send(writer, {"error": f"a request has at most {MOST_LINE_BYTES} bytes"})
            return
        if not line.endswith(b"\n"):
            return
        try:
            reply = answer(_object(line))
        except ConfigError as error:
            reply = {"error": str(error)}
        await _send(writer, reply)


def _object(line: bytes) -> Mapping[str, Any]:
    """Raises: ConfigError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError("a request is one JSON object on a line") from None
    if not isinstance(request, dict):
        raise ConfigError("a request is one JSON object on a line")
    return request


async def _send(writer: asyncio.StreamWriter, reply: Mapping[str, object]) -> None:
    async with asyncio.timeout(IDLE_S):
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()


def may_ask(user: int | None, own: int) -> bool:
    """Whether the process at the other end is the user's own or root's; where nobody says whose, the mode keeps others
    out."""
    return user is None or user in (0, own)


def _user_of(connection: socket.socket) -> int | None:
    """The user of the process at the other end, None where the operating system does not say."""
    if sys.platform != "linux":
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _process, user, _group = struct.unpack("3i", credentials)
    return int(user)


def _bind(folder: Path) -> socket.socket:
    """A socket for a peer's folder, to which nobody can connect before others are kept out.

    Raises: OSError, NetworkError.
    """
    path = Path(os.path.realpath(folder)) / SOCKET
    _remove(path)
    if len(os.fsencode(path)) <= MOST_PATH_BYTES:
        # Some file systems have no sockets, such as those that a container shares with another system.
        with suppress(OSError):
            return _bound(path)
    elsewhere = make_socket_folder() / SOCKET
    try:
        path.symlink_to(elsewhere)
        return _bound(elsewhere)
    except OSError:
        _remove(path)
        with suppress(OSError):
            elsewhere.parent.rmdir()
        raise


def _bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(0o600)
    except OSError:
        listening.close()
        with suppress(OSError):
            path.unlink()
        raise
    return listening


def _remove(path: Path) -> None:
    """A socket of a peer that has ended, wherever it is."""
    with suppress(OSError):
        if path.is_symlink():
            elsewhere = path.readlink()
            elsewhere.unlink()
            elsewhere.parent.rmdir()
    with suppress(OSError):
        path.unlink()


# The other end, which waits: a command has nothing else to do.


def is_running(folder: Path) -> bool:
    """Whether a peer listens in this folder, also if it is too busy to answer."""
    try:
        _connect(folder).close()
    except NotRunningError:
        return False
    except NoAnswerError:
        return True
    return True


def ask(folder: Path, request: Mapping[str, object]) -> dict[str, Any]:
    """What the peer of a folder answers.

    Raises: NotRunningError; NoAnswerError if there is none within 5 s; ConfigError with the peer's words if it refuses.
    """
    deadline, received, part = time.monotonic() + ANSWER_S, b"", b"begun"
    with _connect(folder) as connection:
        try:
            # Who refuses to listen says why, and has hung up by now.
            with suppress(BrokenPipeError):
                connection.sendall(json.dumps(request).encode() + b"\n")
            while part and not received.endswith(b"\n"):
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(MOST_LINE_BYTES)
                received += part
            reply = _object(received)
        except (OSError, ConfigError):
            raise NoAnswerError(f"the peer in {folder} has given no answer for {ANSWER_S:.0f} s") from None
    if "error" in reply:
        raise ConfigError(f"the peer in {folder} says: {reply['error']}")
    return dict(reply)


def _connect(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_S)
    try:
        # As `_bind` has it, by whatever name the folder is called: a longer one would not do.
        path = Path(os.path.realpath(folder)) / SOCKET
        connection.connect(str(path.readlink() if path.is_symlink() else path))
        if os.getuid() != 0 and not may_ask(_user_of(connection), os.getuid()):
            raise PermissionError("another user's")
    except (TimeoutError, BlockingIOError):
        connection.close()
        raise NoAnswerError(f"the peer in {folder} takes no requests") from None
    except OSError:
        connection.close()
        raise NotRunningError(f"no peer of yours runs in {folder} now") from None
    return connection
