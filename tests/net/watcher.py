"""One who watches a run, in a process of its own, since py-libp2p and hivemind cannot be in one.

Says in lines of JSON what it sees, first ``Ready`` and last ``Left`` with what it has left behind. It leaves at the end
of its standard input.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
from contextlib import aclosing, suppress
from pathlib import Path

from peers.observer import Followed, Frame, LostMember, Nobody, Seen, follow


def say(kind: str, **fields: object) -> None:
    print(json.dumps({"event": kind, **fields}), flush=True)


def show(seen: Seen) -> None:
    match seen:
        case Followed(peer):
            say("Followed", peer=peer)
        case Frame(peer, body):
            say("Frame", peer=peer, bytes=len(body), body=body[:64].decode("latin-1"))
        case LostMember(peer, reason):
            say("LostMember", peer=peer, reason=reason)
        case Nobody(reason, retry_s):
            say("Nobody", reason=reason, retry_s=retry_s)


def sockets() -> int:
    """How many this process has, as far as the system tells."""
    count = 0
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def watch(options: argparse.Namespace) -> None:
    streams = 0

    def greeting() -> bytes:
        nonlocal streams
        streams += 1
        if streams > options.greetings:
            raise ArithmeticError("no more greetings")
        return f"greeting {streams}".encode()

    async with aclosing(follow(options.run_id, options.addresses, "atoll-watch-1", greeting)) as run:
        async for seen in run:
            show(seen)
            if isinstance(seen, Frame) and options.idle:
                await asyncio.Event().wait()
            if isinstance(seen, Frame) and options.one:
                break


async def main(options: argparse.Namespace) -> None:
    before = sockets()
    heavy = [name for name in ("torch", "hivemind", "numpy") if name in sys.modules]
    say("Ready", heavy=heavy)
    watching = asyncio.create_task(watch(options))
    loop = asyncio.get_running_loop()

    def leave_at_end() -> None:
        while os.read(0, 4096):
            pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(watching.cancel)

    threading.Thread(target=leave_at_end, name="stdin", daemon=True).start()
    error = ""
    try:
        await watching
    except asyncio.CancelledError:
        error = "cancelled"
    except ArithmeticError as raised:
        error = str(raised)
    threads = [thread.name for thread in threading.enumerate() if thread.name not in ("MainThread", "stdin")]
    say("Left", threads=threads, sockets=sockets() - before, error=error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_id")
    parser.add_argument("addresses", nargs="*")
    parser.add_argument("--greetings", type=int, default=1 << 30, help="after so many the greeting raises")
    parser.add_argument("--idle", action="store_true", help="take nothing after the first frame")
    parser.add_argument("--one", action="store_true", help="leave after the first frame")
    asyncio.run(main(parser.parse_args()))
