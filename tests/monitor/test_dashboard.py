"""The dashboard in a browser, of a run whose events a test makes up: what shows, what is refused, for whom it works."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

pytest.importorskip("nicegui")
sync_api = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ANN, BOB = "12D3KooWAnnAnn", "12D3KooWBobBob"
DESKTOP, PHONE = (1440, 900), (390, 844)
WAIT_MS = 15_000


def commit(step: int, peers: list[str] | None = None, **more: Any) -> dict[str, Any]:
    peers = [ANN, BOB] if peers is None else peers
    figures = {"device": "cuda", "tokens_per_s": 1000, "trained_ms": 900, "waited_ms": 100, "up": 5, "down": 6}
    figures |= {"sent_bytes": 1000 * step, "received_bytes": 1000 * step, "error_ppm": 8700, "strikes": 0}
    return {
        "event": "outer_step_committed",
        "time": time.time() - 100 + step,
        "peer": ANN,
        "outer_step": step,
        "loss": 5.0 / step,
        "tokens": 3000 * step,
        "live": len(peers),
        "round_s": 0.1,
        "members": peers,
        "weights": [1000 + 10 * index for index in range(len(peers))],
        "losses": [5.0 / step] * len(peers),
        "figures": [figures] * len(peers),
        **more,
    }


class Told:
    """A dashboard in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("dashboard_process.py"))],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()

    def tell(self, *events: dict[str, Any]) -> None:
        self.write(*(json.dumps(event) for event in events))

    def write(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(line + "\n" for line in lines).encode())
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def told() -> Iterator[Told]:
    dashboard = Told()
    yield dashboard
    dashboard.end()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


Scheme = Literal["light", "dark"]
Open = Callable[..., "Page"]


@pytest.fixture
def look(browser: "Browser", told: Told) -> Iterator[Open]:
    """Opens a page. In the end: no error on any console, and no request to anyone but the dashboard."""
    troubles: list[str] = []
    hosts: set[str] = set()
    contexts = []

    def opened(path: str = "/", size: tuple[int, int] = DESKTOP, scheme: "Scheme" = "light", **more: Any) -> "Page":
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: troubles.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(told.address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
    assert hosts - {""} <= {urlsplit(told.address).netloc}


def shows(page: "Page", text: str | re.Pattern[str], within: str = "body") -> None:
    page.locator(within).get_by_text(text).first.wait_for(state="visible")


def reaches(page: "Page", outer_step: int) -> None:
    page.get_by_role("img", name=re.compile(rf"^Training loss: .* at outer step {outer_step}\.")).wait_for()


def painted(page: "Page", chart: str) -> str:
    """What a chart has on its canvas."""
    canvas = page.get_by_role("img", name=chart).locator("canvas").first
    return str(canvas.evaluate("canvas => canvas.toDataURL()"))


def test_before_the_first_data_the_page_says_what_it_waits_for(told: Told, look: Open) -> None:
    page = look()
    shows(page, "No member has told anything yet")
    told.write("trouble no member answers (refused); trying again in 5 s")
    shows(page, "No member answers (refused); trying again in 5 s.")
    told.write("trouble ")
    told.tell({"event": "member_up", "time": time.time(), "peer": ANN, "member": BOB})
    shows(page, "Waiting for the first outer step")
    shows(page, re.compile("1.member is here"))


def test_the_curve_grows_and_a_killed_member_is_shown_as_gone(told: Told, look: Open) -> None:
    told.tell(*map(commit, range(1, 6)))
    page = look()
    page.get_by_role("img", name=re.compile("^Training loss: 5.000 at outer step 1, 1.000 at outer step 5")).wait_for()
    before = painted(page, "Training loss")
    told.tell(commit(6), {"event": "validated", "time": time.time(), "peer": ANN, "outer_step": 6, "val_loss": 0.9})
    page.get_by_role("img", name=re.compile("0.833 at outer step 6")).wait_for()
    shows(page, "validation 0.900")
    assert painted(page, "Training loss") != before
    told.tell({"event": "member_down", "time": time.time(), "peer": ANN, "member": BOB, "reason": "end of stream"})
    shows(page, re.compile("is gone: end of stream"), ".news")
    shows(page, re.compile("1.peer lost"), ".news")
    gone = page.locator(".row.gone")
    assert gone.count() == 1
    assert "BobBob" in gone.inner_text()
    assert "gone" in gone.inner_text()


def test_every_axis_and_every_panel_has_something_to_show(told: Told, look: Open) -> None:
    told.tell(*map(commit, range(1, 30)))
    doing = {ANN: {"doing": "training", "outer_step": 29, "progress": 9}}
    doing[BOB] = {"doing": "ready", "outer_step": 29, "progress": 10}
    told.tell({"event": "members", "time": time.time() - 70, "peer": ANN, "members": doing})
    page = look()
    shows(page, re.compile("Waits for 1.member"))
    assert page.locator(".lane.waited").inner_text() == "AnnAnn"
    seen = set()
    for axis in ("tokens", "time", "steps"):
        page.get_by_label(axis, exact=True).check(force=True)
        page.wait_for_timeout(300)
        seen.add(painted(page, "Training loss"))
    assert len(seen) == 3
    for panel in ("Throughput", "Members", "Round time", "Bytes", "Utilisation", "Quantisation error"):
        assert "nothing yet" not in str(page.get_by_role("img", name=f"{panel}:").get_attribute("aria-label"))


def test_old_figures_do_not_look_new(told: Told, look: Open) -> None:
    told.tell(commit(1), commit(2))
    page = look()
    page.locator(".status.live").wait_for()
    shows(page, re.compile(r"no data since \d+.s"), ".status.silent")
    assert page.title().startswith("no data")
    assert float(page.locator(".figures dd").first.evaluate("element => getComputedStyle(element).opacity")) < 1
    told.tell(commit(3))
    page.locator(".status.live").wait_for()
    assert page.locator(".stale").count() == 0


def test_hostile_figures_make_an_error_line_and_nothing_else(told: Told, look: Open) -> None:
    markup = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    told.tell(*map(commit, range(1, 6)))
    page = look()
    reaches(page, 5)
    told.tell(
        commit(6, members=[markup, BOB], weights=[1, 1]),
        commit(7, loss=1e300),
        commit(8, tokens="x" * 1_000_000),
        commit(9, figures=[{"device": markup}] * 2),
        {"event": "members", "time": time.time(), "peer": ANN, "members": {ANN: {"doing": 3}}},
    )
    told.write('{"event": "outer_step_committed", "time": NaN, "loss": NaN}', '{"event": "x"' * 1000)
    told.tell(
        {"event": "strike", "time": time.time(), "peer": ANN, "member": BOB, "reason": markup + "y" * 100_000},
        {"event": "members", "time": time.time(), "peer": ANN, "members": {BOB: {"doing": markup, **PLACE}}},
        {"event": "refused", "time": time.time(), "peer": ANN, "reason": markup},
        commit(10),
    )
    reaches(page, 10)
    shows(page, re.compile("4.events were not what events are, and left out"), ".alert")
    # It is there, as text.
    shows(page, re.compile("strike: <img src=x"), ".news")
    assert page.evaluate("[window.hacked, document.querySelectorAll('.page img, .page script').length]") == [None, 0]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    peer = look(f"/peer/{BOB}")
    shows(peer, re.compile("strike: <img src=x"))
    assert peer.evaluate("[window.hacked, document.querySelectorAll('.page img').length]") == [None, 0]


PLACE = {"outer_step": 1, "progress": 1}


@pytest.mark.parametrize("n_members", [1, 200])
@pytest.mark.parametrize("path", ["/", "/peer/12D3KooWx0"])
def test_nothing_lies_beside_a_phone(told: Told, look: Open, n_members: int, path: str) -> None:
    peers = [f"12D3KooWx{number}" for number in range(n_members)]
    told.tell(*(commit(step, peers) for step in range(1, 20)))
    said = {peer: {"doing": "training", "outer_step": 19, "progress": 1} for peer in peers}
    told.tell({"event": "members", "time": time.time() - 70, "peer": peers[0], "members": said})
    page = look(path, size=PHONE)
    page.locator(".figures").wait_for()
    if path == "/" and n_members > 20:
        page.get_by_role("button", name="Show all 200").click()
        assert page.locator(".members .row:not(.head)").count() == 200
        assert page.locator(".lanes canvas").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    wide = "[...document.querySelectorAll('.page *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.evaluate(f"{wide}.map(element => element.className)") == []


def contrast(page: "Page", selector: str) -> float:
    """Of a text against the page, as WCAG has it."""
    script = """element => [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor]
        .map(colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number))"""
    levels: list[float] = []
    for colour in page.locator(selector).first.evaluate(script):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return float((max(levels) + 0.05) / (min(levels) + 0.05))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_can_be_read_and_a_choice_is_kept(told: Told, look: Open, scheme: "Scheme") -> None:
    told.tell(*map(commit, range(1, 6)), {"event": "strike", "time": time.time(), "peer": ANN, "member": BOB})
    page = look(scheme=scheme)
    page.locator(".figures").wait_for()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 3 * 128) == (scheme == "dark")
    for selector in (".figures dd", ".figures dt", ".note", ".row.head", ".legend li", ".struck"):
        assert contrast(page, selector) >= 4.5, selector
    before = painted(page, "Training loss")
    other = "dark" if scheme == "light" else "light"
    page.get_by_label(other, exact=True).check(force=True)
    page.wait_for_function("ground => getComputedStyle(document.body).backgroundColor !== ground", arg=ground)
    page.wait_for_timeout(300)
    assert painted(page, "Training loss") != before
    page.reload()
    page.locator(".figures").wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(told: Told, look: Open) -> None:
    told.tell(*map(commit, range(1, 6)))
    page = look()
    page.locator(".figures").wait_for()
    # Of a group of radio buttons the chosen one is the stop; arrow keys move in it.
    stops = page.evaluate("""[...document.querySelectorAll('.page :is(a, button, input:checked, [tabindex="0"])')]
        .map((element, index) => (element.dataset.stop = index))""")
    reached = []
    for _ in stops:
        page.keyboard.press("Tab")
        reached.append(int(page.evaluate("document.activeElement.dataset.stop ?? -1")))
        marked = """(() => {
            const at = document.activeElement, shown = at.matches('input') ? at.nextElementSibling : at;
            return getComputedStyle(shown).outlineStyle; })()"""
        assert page.evaluate(marked) == "solid"
    assert reached == stops
    page.get_by_label("steps", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("tokens", exact=True).is_checked()
    page.get_by_role("img", name="Training loss").focus()
    page.keyboard.press("ArrowLeft")
    shows(page, "loss 1.000", ".tip")


def test_who_wants_no_motion_sees_none(told: Told, look: Open) -> None:
    told.tell(commit(1))
    moving = "document.querySelector('.status i').getAnimations().length"
    for motion, moves in (("reduce", 0), ("no-preference", 1)):
        told.tell(commit(2))
        page = look(reduced_motion=motion)
        page.locator(".status.live").wait_for()
        assert page.evaluate(moving) == moves


def test_ctrl_c_ends_it_within_a_second_whoever_looks(browser: "Browser", tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(commit(step)) + "\n" for step in range(1, 9)))
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "dashboard", "--replay", str(tmp_path), "--port", "0", "--speed", "1e6"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        page = browser.new_page()
        page.goto(process.stdout.readline().split()[4])
        shows(page, "The replay has ended")
        shows(page, "The log ends here.")
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - began < 1.0
        assert (process.returncode, said) == (130, "")
        shows(page, "The dashboard itself does not answer")
        page.close()
    finally:
        process.kill()
        process.communicate()


def test_each_peer_has_a_page(told: Told, look: Open) -> None:
    told.tell(*map(commit, range(1, 6)))
    page = look()
    page.locator(".members").get_by_role("link", name="BobBob").click()
    shows(page, BOB)
    page.get_by_role("img", name=re.compile("^Loss: 5.000 at outer step 1, 1.000 at outer step 5")).wait_for()
    assert page.get_by_role("img", name="5 of 5").count() == 1
    page.get_by_role("link", name="Back to the run").click()
    shows(page, "Contributors")
    shows(look("/peer/nobody"), "No such peer")
