"""Whoever asks for a manifest and stays keeps no stream, which is a file descriptor, from others."""

import asyncio
import random

from virtual_clock import run_virtual

from peers.memory import MemoryNetwork
from peers.transport import Stream
from runtime.finding import ANSWER_S, give_manifest


def test_who_does_not_read_the_manifest_is_hung_up_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        network, over = MemoryNetwork(random.Random(0)), list[float]()

        async def give(stream: Stream) -> None:
            try:
                await give_manifest(stream, b"sealed")
            finally:
                over.append(loop.time() - began)

        await network.transport("server").serve("manifest", give)
        began = loop.time()
        stays = await network.transport("client").open("server", (), "manifest")
        goes = await network.transport("client").open("server", (), "manifest")
        assert await goes.receive(64) == await stays.receive(64) == b"sealed"
        goes.close()
        await asyncio.sleep(2 * ANSWER_S)
        gone_s, hung_up_s = over
        assert gone_s < 0.1
        assert ANSWER_S <= hung_up_s < ANSWER_S + 0.1

    run_virtual(main())
