"""Two peers of one process that talk over libp2p."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from peers.identity import Identity
from peers.p2pd import P2pdTransport
from peers.transport import Stream

LIMIT_BYTES = 1 << 20


@contextlib.asynccontextmanager
async def two_peers(folder: Path) -> AsyncIterator[tuple[P2pdTransport, P2pdTransport]]:
    for name in ("server", "client"):
        Identity.generate().save(folder / name)
    server = await P2pdTransport.create(folder / "server")
    try:
        client = await P2pdTransport.create(folder / "client")
        try:
            yield server, client
        finally:
            await client.close()
    finally:
        await server.close()


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT_BYTES))
