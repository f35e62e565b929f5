"""What it costs a peer to be looked at: CPU and wall of a toy run while it is, against the same run while it is not.

    python benchmarks/monitoring.py [metrics] [parts] [--quick]

``metrics``: two peers, each alone in a run of its own, with --metrics-port; each is scraped once a second for some
outer steps and then left alone for as many, in turns. ``parts``: one answer, one event and one look by themselves.
Prints Markdown tables, and JSON at the end.
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from cpu import cpu_s
from parts import run_parts

from runtime.config import RunConfig
from runtime.demo.processes import PeerProcess, end_all
from runtime.log import commits
from runtime.metrics import Metrics, serve
from runtime.runfile import render_run_file

SCRAPE_S, POLL_S, STALL_S = 1.0, 0.005, 60.0
# Some three seconds on a shared core: several scrapes, and little time for the machine to change.
BLOCK = 4
N_MEMBERS = 16
PEER = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKxtf"
FETCH = "import sys, urllib.request as r\nfor _ in range(int(sys.argv[2])): r.urlopen(sys.argv[1]).read()"


def metrics(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """A toy run scraped against the same run left alone."""
    folder = Path(tempfile.mkdtemp(prefix="atoll-monitoring-"))
    peers = [Lone(folder / name, scraped=name == "one") for name in ("one", "other")]
    stack.callback(lambda: end_all([peer.process for peer in peers]))
    ends_at, stalled_at = None, time.monotonic() + STALL_S
    while ends_at is None or time.monotonic() < ends_at:
        for peer in peers:
            peer.look()
        if ends_at is None and all(peer.blocks for peer in peers):
            ends_at = time.monotonic() + (20.0 if quick else 240.0)
        if ends_at is None and time.monotonic() > stalled_at:
            raise SystemExit(f"no outer steps within {STALL_S:.0f} s; logs: {folder}")
        time.sleep(POLL_S)
    results = {}
    print(
        "\n| of an outer step | blocks | not scraped | scraped: median more | mean more | its standard error | wanted |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for what in ("cpu_s", "wall_s"):
        more = [one for peer in peers for one in _more([(b.scraped, getattr(b, what)) for b in peer.blocks])]
        usual_s = median(getattr(block, what) for peer in peers for block in peer.blocks if not block.scraped)
        error = stdev(more) / len(more) ** 0.5
        words = f"{usual_s:.3f} s | {median(more):+.2%} | {mean(more):+.2%} | {error:.2%}"
        print(f"| {what.removesuffix('_s')} | {len(more)} | {words} | at most 1% |", flush=True)
        results[what] = {"usual_s": usual_s, "more": more, "median_more": median(more), "standard_error": error}
    return results


def parts(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """What this process spends on one answer over HTTP, on an outer step of a large group, and on a look."""
    made, calls = Metrics(), 100 if quick else 1000
    made.enter("0" * 40, PEER)
    members, figures = [PEER, *map(str, range(N_MEMBERS - 1))], [{"up": 1, "down": 1}] * N_MEMBERS
    event = {
        "event": "outer_step_committed",
        "peer": PEER,
        "outer_step": 1,
        "members": members,
        "weights": [1] * N_MEMBERS,
        "figures": figures,
        "loss": 1.0,
        "tokens": 1,
        "round_s": 0.1,
        "forming_s": 0.1,
        "quantisation_error": 0.01,
        "state_bytes_sent": 0,
    }

    def look() -> None:
        made.look(members=3, inner_steps=4, round_bytes=(5, 6), spent_s=(7.0, 8.0), watchers=9)

    event_s, look_s = _each_s(lambda: made.add(event), calls), _each_s(look, calls)
    port = _free_port()
    close = serve(made, port)
    stack.callback(close)
    before = time.process_time()
    subprocess.run([sys.executable, "-c", FETCH, f"http://127.0.0.1:{port}/metrics", str(calls)], check=True)
    answer_s = (time.process_time() - before) / calls
    print("\n| CPU of an answer, ms | of an outer step of 16, µs | of a look, µs |\n|--:|--:|--:|")
    print(f"| {1e3 * answer_s:.2f} | {1e6 * event_s:.1f} | {1e6 * look_s:.1f} |", flush=True)
    return {"answer_s": answer_s, "event_s": event_s, "look_s": look_s}


def _each_s(work: Callable[[], None], calls: int) -> float:
    before = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - before) / calls


def _more(blocks: list[tuple[bool, float]]) -> list[float]:
    """Of each scraped block between two that are not, over the mean of these, less 1: what drifts cancels out."""
    return [
        2 * here / (before + after) - 1
        for (_, before), (scraped, here), (_, after) in zip(blocks, blocks[1:], blocks[2:], strict=False)
        if scraped
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Block:
    """Some outer steps in a row, and what one of them took."""

    scraped: bool
    cpu_s: float
    wall_s: float


class Lone:
    """A peer alone in its run, scraped in every other block."""

    def __init__(self, folder: Path, scraped: bool) -> None:
        folder.mkdir()
        defaults = RunConfig()
        data, outer = replace(defaults.data, source="files"), replace(defaults.outer, steps=1_000_000)
        (folder / "run.toml").write_text(render_run_file(replace(defaults, data=data, outer=outer)))
        text = folder / "text.txt"
        text.write_text("".join(f"{number} times {number} is {number * number}.\n" for number in range(5000)))
        port = _free_port()
        flags = ("--host", "127.0.0.1", "--data", str(text), "--metrics-port", str(port))
        self.process = PeerProcess("lone", folder / "peer", ("start", str(folder / "run.toml")), flags=flags)
        self.blocks: list[Block] = []
        self._url, self._due, self._scraped = f"http://127.0.0.1:{port}/metrics", 0.0, scraped
        self._n_steps = 0
        self._began: tuple[float, float] | None = None
        """Of the block: Unix time and CPU-seconds."""

    def look(self) -> None:
        """Take in what the peer has logged, and scrape it if that is due."""
        if self.process.exit_code is not None:
            raise SystemExit(f"a peer has ended: {self.process.output()[-1:]}")
        for event in commits(self.process.read_events()):
            self._n_steps += 1
            if self._n_steps % BLOCK == 0:
                self._end_block(float(event["time"]), cpu_s([self.process.pid]))
        if self._scraped and self._began and time.monotonic() >= self._due:
            self._due = time.monotonic() + SCRAPE_S
            with urllib.request.urlopen(self._url, timeout=5) as answer:
                answer.read()

    def _end_block(self, now: float, used_s: float) -> None:
        if self._began is not None:
            began, used_before_s = self._began
            self.blocks.append(Block(self._scraped, (used_s - used_before_s) / BLOCK, (now - began) / BLOCK))
            self._scraped = not self._scraped
        self._began = now, used_s


if __name__ == "__main__":
    run_parts("monitoring", __doc__, [metrics, parts])
