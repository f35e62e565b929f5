"""A peer that leads others to each other: the DHT, and neither a run's state nor PyTorch."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.discovery import DhtDiscovery
from peers.errors import NetworkError
from peers.p2pd import P2pdTransport
from peers.transport import Stream
from runtime.folder import lock
from runtime.invite import MOST_INVITING, Invite, format_invite, nearest_last
from runtime.manifest import MANIFEST_PROTOCOL

EXIT_INTERRUPTED = 130
# Addresses that others have seen this peer at come late, from behind some routers.
LOOK_S = 30.0


async def lead(key: Path, host: str, port: int, peers: Sequence[str], invite: Invite | None) -> int:
    """Be there until a signal comes. The exit code of the process.

    Args: peers and the invite have addresses of others in the DHT; that they are dead is no error, they may come back.
    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    async with AsyncExitStack() as stack:
        stack.callback(lock(key))
        known = (*peers, *(invite.addresses if invite is not None else ()))
        p2pd = await P2pdTransport.create(key, listen=[f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"])
        stack.push_async_callback(p2pd.close)
        await p2pd.serve(MANIFEST_PROTOCOL, _has_none)
        discovery = await DhtDiscovery.create(p2pd, known)
        stack.push_async_callback(discovery.close)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        for number, exit_code in ((signal.SIGTERM, 0), (signal.SIGINT, EXIT_INTERRUPTED)):
            loop.add_signal_handler(number, _end, ended, exit_code)
        failed = loop.create_task(p2pd.wait_failed())
        beside = [loop.create_task(one) for one in (discovery.keep_looking(), _keep_printing(p2pd, invite))]
        waited_for: list[asyncio.Future[Any]] = [ended, failed, *beside]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise NetworkError(failed.result())
            for task in beside:
                if task.done():
                    task.result()
            return ended.result()
        finally:
            for one in waited_for:
                one.cancel()
            await asyncio.wait(waited_for)


def _end(ended: "asyncio.Future[int]", exit_code: int) -> None:
    if not ended.done():
        ended.set_result(exit_code)


async def _has_none(stream: Stream) -> None:
    """Whoever asks for a manifest is to know that this peer has none, and is not to ask again."""
    await stream.send(b"")
    await stream.receive(1)


async def _keep_printing(p2pd: P2pdTransport, invite: Invite | None) -> None:
    """Each address once, when it is known, and with them the invite."""
    printed: list[str] = []
    while True:
        new = [address for address in nearest_last(await p2pd.addresses()) if address not in printed]
        for address in new:
            print(f"address: {address}", flush=True)
        printed += new
        if new and invite is not None:
            addresses = dict.fromkeys((*nearest_last(printed), *invite.addresses))
            print(f"invite: {format_invite(replace(invite, addresses=tuple(addresses)[:MOST_INVITING]))}", flush=True)
        await asyncio.sleep(LOOK_S)
