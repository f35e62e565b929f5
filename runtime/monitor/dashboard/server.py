"""The web server of the dashboard, for this machine alone unless told otherwise. What is asked changes nothing."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from nicegui import ui

from runtime.errors import ConfigError
from runtime.monitor.dashboard.board import Board
from runtime.monitor.dashboard.page import FAVICON, add_pages
from runtime.monitor.source import Watched

# Of the second that Ctrl-C may take.
GOODBYE_S = 0.5


def listen(host: str, port: int) -> socket.socket:
    """A socket that pages are served from.

    Raises: ConfigError if this machine has no such address, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host[:100]} is not known here: name an address of this machine") from None
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        opened.close()
        reason = f"port {port} of {host} cannot be listened on ({error.strerror})"
        raise ConfigError(f"{reason}: name another with --port or --host") from None
    return opened


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_private(listening: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


async def serve(
    watched: Watched,
    feed: Coroutine[Any, Any, None],
    listening: socket.socket,
    ready: Callable[[], None],
    replayed: bool = False,
    name: str = "localhost",
) -> None:
    """Serve pages of what ``feed`` makes of a run until cancelled; when the feed ends, of what it has become.

    Args: name is what this machine's user calls the address that is listened on.
    Raises: whatever ``feed`` raises.
    """
    board = Board(watched, replayed)
    app = FastAPI(openapi_url=None)
    if is_private(listening) and listening.family == socket.AF_INET:
        # A page of the web's that has its name lead here is not to read what only this machine's user may.
        own = ["localhost", "127.0.0.1", listening.getsockname()[0], name]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=own)
    add_pages(app, board)
    ui.run_with(
        app,
        title="Atoll",
        favicon=FAVICON,
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        message_history_length=0,
        binding_refresh_interval=None,
    )
    # Pages that are open are not waited for; what uvicorn would say of that is nothing for people.
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", access_log=False, server_header=False, timeout_graceful_shutdown=0
    )
    server = _Server(config, ready)
    following = asyncio.create_task(_follow(feed, board))
    # A feed that cannot even begin says so before there is a page.
    await asyncio.sleep(0)
    if following.done():
        following.result()
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        done, _ = await asyncio.wait((serving, following), return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        following.cancel()
        server.should_exit = True
        await asyncio.wait((serving, following), timeout=GOODBYE_S)


async def _follow(feed: Coroutine[Any, Any, None], board: Board) -> None:
    await feed
    board.ended = True


class _Server(uvicorn.Server):
    """Leaves signals alone, Ctrl-C cancels ``serve``; and says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
