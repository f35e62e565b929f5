"""The dashboard in a browser, of four real peers, one of which is killed: the one that tells it everything."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from swarm import environment, swarm

pytest.importorskip("nicegui")
sync_api = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACE = ("--inner-step-s", "0.1")
# Kept by the page: whether it has ever said that there is no data.
WATCH = """() => {
    window.wasSilent = false;
    setInterval(() => { window.wasSilent ||= document.querySelector(".status.silent") !== null; }, 50);
}"""


@contextmanager
def dashboard(home: Path, invite: str) -> Iterator[str]:
    """The address of one that follows a run."""
    command = [sys.executable, "-m", "runtime.cli", "dashboard", invite, "--port", "0"]
    process = subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[4]
    finally:
        process.terminate()
        process.communicate(timeout=10)


@contextmanager
def page_of(address: str) -> Iterator["Page"]:
    """In the end: no error on the console, and no request to anyone but the dashboard."""
    troubles, hosts = list[str](), set[str]()
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            )
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("console", lambda message: troubles.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(address)
        yield page
        browser.close()
    assert troubles == []
    assert hosts - {""} == {urlsplit(address).netloc}


def step_shown(page: "Page") -> int:
    """The last outer step of the loss curve, as its description has it."""
    curve = page.get_by_role("img", name=re.compile("^Training loss: .* at outer step"))
    curve.wait_for(timeout=20_000)
    return int(re.findall(r"at outer step (\d+)", str(curve.get_attribute("aria-label")))[-1])


def wait_for_step(page: "Page", step: int) -> None:
    deadline = time.monotonic() + 30.0
    while (shown := step_shown(page)) < step:
        assert time.monotonic() < deadline, f"the curve ends at {shown}"
        page.wait_for_timeout(100)


def test_a_live_run_is_shown_and_the_death_of_who_tells_of_it_is_news_and_no_gap(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=1000, quorum=2, inner_steps=5, options=PACE)
        others = [made.join(f"joiner-{number}", invite, *PACE) for number in range(3)]
        first.wait_for("outer_step_committed", lambda event: len(event["members"]) == 4)
        with dashboard(tmp_path, invite) as address, page_of(address) as page:
            page.locator(".status.live").wait_for(timeout=20_000)
            wait_for_step(page, step_shown(page) + 3)
            assert page.locator(".members .row:not(.head)").count() == 4
            page.evaluate(WATCH)
            # The invite has its address alone.
            first.kill()
            gone = page.locator(".row.gone")
            gone.wait_for(timeout=10_000)
            assert first.id[-6:] in gone.inner_text()
            wait_for_step(page, step_shown(page) + 5)
            assert page.locator(".status.live").count() == 1
            assert not page.evaluate("window.wasSilent")
        for peer in others:
            assert peer.process.poll() is None
