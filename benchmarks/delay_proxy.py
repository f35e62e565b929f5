"""Passes TCP connections on and holds every byte back for a while, each way: a long path on a short one.

    python benchmarks/delay_proxy.py HOST PORT DELAY_S

Prints the port that it listens at; ends with its standard input.
"""

import asyncio
import sys
from contextlib import suppress

# More than any path here has under way.
MOST_HELD_BYTES = 64 << 20


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_HELD_BYTES >> 16)

    async def let_go() -> None:
        while True:
            due, data = await held.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    letting_go = asyncio.create_task(let_go())
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            await held.put((loop.time() + delay_s, data))
    await held.put((loop.time() + delay_s, b""))
    with suppress(OSError):
        await letting_go


async def main(host: str, port: int, delay_s: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, back, delay_s), pump(there, writer, delay_s))

    server = await asyncio.start_server(serve, host, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
