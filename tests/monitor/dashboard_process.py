"""A dashboard whose run is told by whoever started it: each line of standard input is an event."""

import asyncio
import sys

from runtime.log import parse_events
from runtime.monitor.dashboard.server import address_of, listen, serve
from runtime.monitor.source import Watched


async def told(watched: Watched) -> None:
    lines = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        if line.startswith(b"trouble "):
            watched.say(line.decode().removeprefix("trouble ").strip())
        elif line == b"end\n":
            return
        for event in parse_events(line):
            watched.see(event)
    # Whoever started this is gone.
    sys.exit(0)


def main() -> None:
    listening = listen("127.0.0.1", 0)
    watched = Watched()
    asyncio.run(serve(watched, told(watched), listening, lambda: print(address_of(listening), flush=True)))


if __name__ == "__main__":
    main()
