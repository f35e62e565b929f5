"""The pages and what they ask for. What a page shows is in static/, as components of the Vue that NiceGUI serves."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from nicegui import app as nicegui_app
from nicegui import ui
from nicegui.element import Element

from runtime.monitor.dashboard.board import MOST_PEER_ID, Board

STATIC = Path(__file__).parent / "static"
HEAD = """
<link rel="stylesheet" href="/assets/style.css">
<meta name="color-scheme" content="light dark">
<script>
  document.documentElement.lang = "en";
  try {
    document.documentElement.dataset.theme = localStorage.getItem("atoll-theme") ?? "auto";
  } catch {}
</script>
"""


# A ring of islands.
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="11" fill="none"'
    ' stroke="#1b8aa2" stroke-width="5" stroke-dasharray="30 6 14 6 7 6.1" transform="rotate(-60 16 16)"/></svg>'
)


class RunPage(Element, component="static/board.js"):
    pass


class PeerPage(Element, component="static/peer.js"):
    def __init__(self, peer: str) -> None:
        super().__init__()
        self._props["peer"] = peer


def add_pages(app: FastAPI, board: Board) -> None:
    """The run's page at ``/``, each peer's at ``/peer/PEER_ID``, and their data as JSON."""

    def run_page() -> None:
        ui.add_head_html(HEAD)
        RunPage()

    def peer_page(peer: str) -> None:
        ui.add_head_html(HEAD)
        PeerPage(peer[:MOST_PEER_ID])

    # Coroutines, so that they run where the picture is made and not in a thread beside it.
    async def run_data(since: str = "") -> Response:
        return _json(board.run(since))

    async def peer_data(peer: str) -> Response:
        return _json(board.peer(peer))

    ui.page("/")(run_page)
    ui.page("/peer/{peer}")(peer_page)
    app.get("/data/run")(run_data)
    app.get("/data/peer/{peer}")(peer_data)
    nicegui_app.add_exception_handler(404, _no_such_page)
    nicegui_app.add_static_files("/assets", STATIC, max_cache_age=0)


def _no_such_page(request: Request, error: Exception) -> Response:
    return Response("There is no such page: the run is at /, a peer at /peer/ID\n", 404, media_type="text/plain")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
