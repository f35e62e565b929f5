"""A peer that leads others to each other: the DHT, and neither a run's state nor PyTorch."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from peers.discovery import DhtDiscovery
from peers.errors import NetworkError
from peers.p2pd import P2pdTransport
from peers.records import is_own
from runtime.errors import EXIT_INTERRUPTED
from runtime.finding import give_manifest
from runtime.folder import lock
from runtime.invite import MOST_INVITING, Invite, format_invite, nearest_last
from runtime.manifest import MANIFEST_PROTOCOL
from runtime.tasks import end

# Addresses that others have seen this peer at come late, from behind some routers.
LOOK_S = 30.0


async def lead(key: Path, host: str, port: int, peers: Sequence[str], invite: Invite | None) -> int:
    """Be there until a signal comes. The exit code of the process.

    Args: peers and the invite have addresses of others in the DHT; that they are dead is no error, they may come back.
    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    # Before anything is begun that takes seconds, and that has to be taken apart.
    for number, exit_code in ((signal.SIGTERM, 0), (signal.SIGINT, EXIT_INTERRUPTED)):
        loop.add_signal_handler(number, _stop, ended, exit_code)
    leading = asyncio.create_task(_keep_leading(key, host, port, peers, invite))
    waited_for: list[asyncio.Future[Any]] = [ended, leading]
    try:
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else await leading
    finally:
        await end(leading)


async def _keep_leading(key: Path, host: str, port: int, peers: Sequence[str], invite: Invite | None) -> NoReturn:
    """As long as p2pd lives. Raises: as ``lead``."""
    async with AsyncExitStack() as stack:
        stack.callback(lock(key))
        known = (*peers, *(invite.addresses if invite is not None else ()))
        p2pd = await P2pdTransport.create(key, listen=[f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"])
        stack.push_async_callback(p2pd.close)
        await p2pd.serve(MANIFEST_PROTOCOL, partial(give_manifest, sealed=b""))
        discovery = await DhtDiscovery.create(p2pd, known, belongs=is_own)
        stack.push_async_callback(discovery.close)
        failed = asyncio.create_task(p2pd.wait_failed())
        beside = [asyncio.create_task(one) for one in (discovery.keep_looking(), _keep_printing(p2pd, invite))]
        for task in (failed, *beside):
            stack.push_async_callback(end, task)
        done, _ = await asyncio.wait([failed, *beside], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise NetworkError(failed.result())


def _stop(ended: "asyncio.Future[int]", exit_code: int) -> None:
    if not ended.done():
        ended.set_result(exit_code)


async def _keep_printing(p2pd: P2pdTransport, invite: Invite | None) -> None:
    """Each address once, when it is known, and with them the invite."""
    printed: list[str] = []
    while True:
        try:
            here = await p2pd.addresses()
        except NetworkError:
            # Too many streams at once, say. That p2pd has ended is seen elsewhere.
            here = ()
        new = [address for address in nearest_last(here) if address not in printed]
        for address in new:
            _say(f"address: {address}")
        printed += new
        if new and invite is not None:
            addresses = dict.fromkeys((*nearest_last(printed), *invite.addresses))
            _say(f"invite: {format_invite(replace(invite, addresses=tuple(addresses)[:MOST_INVITING]))}")
        await asyncio.sleep(LOOK_S)


def _say(line: str) -> None:
    """On standard output. That nobody reads there any more is no reason to lead nobody."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Else what is left in the buffer fails once more when the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
