"""The dashboard with many members and a commit a second: how long an update takes, here and in the browser, and memory.

    python benchmarks/dashboard.py [--members 200] [--minutes 10] [--past 300]

Needs the extra [monitor], playwright, and a Chromium. An update is from the answer's last byte to the painted frame.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from made_up_run import MadeUpRun

from runtime.log import Event

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OBSERVE = """() => {
    window.updates = [];
    new PerformanceObserver((list) => window.updates.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "measure" });
    window.asked = [];
    new PerformanceObserver((list) => window.asked.push(...list.getEntriesByType("resource")
        .filter((entry) => entry.name.includes("/data/run")).map((entry) => [entry.duration, entry.decodedBodySize])))
        .observe({ type: "resource" });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--past", type=int, default=300, help="outer steps before the page is opened")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_made_up(options.members, options.past)
    else:
        measure(options.members, options.past, 60 * options.minutes)


def serve_made_up(n_members: int, n_past: int) -> None:
    """The server's side. Each line on standard output is the seconds that an answer took to make."""
    from runtime.monitor.dashboard.board import Board
    from runtime.monitor.dashboard.server import address_of, listen, serve
    from runtime.monitor.source import Watched

    watched = Watched()
    made = Board.run

    def timed(board: Board, since: str) -> bytes:
        began = time.perf_counter()
        answer = made(board, since)
        print(time.perf_counter() - began, flush=True)
        return answer

    Board.run = timed  # type: ignore[assignment, method-assign]

    async def told() -> None:
        run = MadeUpRun(n_members, step_s=1.0, steadily=True)
        see: list[Event] = list(run.past(n_past, time.time()))
        for event in see:
            watched.see(event)
        await run.live(watched.see, time.time)

    listening = listen("127.0.0.1", 0)
    asyncio.run(serve(watched, told(), listening, lambda: print(address_of(listening), flush=True)))


def measure(n_members: int, n_past: int, seconds: float) -> None:
    from playwright.sync_api import sync_playwright

    with serving(n_members, n_past) as process, sync_playwright() as playwright:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        page.locator(".figures").wait_for()
        page.get_by_role("button", name="Show all").click()
        page.evaluate(OBSERVE)
        page.wait_for_timeout(10_000)
        memory = page.context.new_cdp_session(page)
        before = resident_mb(process.pid), heap_mb(memory)
        page.wait_for_timeout(1000 * seconds)
        after = resident_mb(process.pid), heap_mb(memory)
        updates, asked = page.evaluate("[window.updates, window.asked]")
        browser.close()
        process.terminate()
        made = [1e3 * float(line) for line in process.stdout]
    answers = [duration for duration, _ in asked]
    print(f"{n_members} members, one commit a second, {seconds / 60:g} minutes, {len(updates)} updates of a page\n")
    print("| | median | 95th percentile | longest |\n|---|--:|--:|--:|")
    rows = {"answer made by the server, ms": made, "answer as the browser has it, ms": answers, "update, ms": updates}
    for name, values in rows.items():
        print(f"| {name} | {median(values):.1f} | {quantiles(values, n=20)[-1]:.1f} | {max(values):.1f} |")
    print("\n| memory, MB | after ten seconds | in the end |\n|---|--:|--:|")
    for name, first, last in zip(("server, resident", "page, JavaScript heap"), before, after, strict=True):
        print(f"| {name} | {first:.1f} | {last:.1f} |")
    kb = median(size for _, size in asked) / 1e3
    print(f"\nAn answer has {kb:.0f} kB.")
    print(json.dumps({"benchmark": "dashboard", "members": n_members, "update_ms": median(updates), "kb": kb}))


@contextmanager
def serving(n_members: int, n_past: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__)), "--serve", "--members", str(n_members), "--past", str(n_past)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def heap_mb(session: Any) -> float:
    """After a collection: what stays."""
    session.send("HeapProfiler.collectGarbage")
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6


if __name__ == "__main__":
    main()
