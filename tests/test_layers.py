"""Who may import whom, as the design has it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("runtime", "peers") for path in (ROOT / folder).rglob("*.py")
)

IO = {"asyncio", "socket", "threading", "time", "random", "hivemind", "uvloop"}
PURE = {
    *(f"peers/{name}.py" for name in ("membership", "records", "election", "wire", "messages", "identity", "tunnel")),
    *(f"peers/observer_{name}.py" for name in ("dht", "members")),
    *(f"runtime/averaging/{name}.py" for name in ("messages", "events", "reduce", "shards")),
    *(f"runtime/averaging/{name}.py" for name in ("round", "step", "leader", "reducer", "commits", "histories")),
    *(f"runtime/averaging/{name}.py" for name in ("following", "roster", "pace", "plan", "lineage", "rates")),
    *(
        f"runtime/{name}.py"
        for name in ("training/outer", "config", "runfile", "invite", "demo/report", "progress", "presets", "planning")
    ),
    *(f"runtime/{name}.py" for name in ("limits", "pausing", "peerfile")),
    *(f"runtime/doctor/{name}.py" for name in ("check", "outside", "packages")),
}
# Third party -> the files that may import it.
ONLY_IN = {
    "hivemind": {"peers/hivemind_parts.py"},
    "libp2p": {"peers/observer_link.py"},
    "trio": {"peers/observer.py", "peers/observer_link.py"},
    "nicegui": {"runtime/monitor/dashboard/page.py", "runtime/monitor/dashboard/server.py"},
    "fastapi": {"runtime/monitor/dashboard/page.py", "runtime/monitor/dashboard/server.py"},
    "uvicorn": {"runtime/monitor/dashboard/server.py"},
    "uvloop": {"runtime/commands/peer.py"},
    "psutil": {"runtime/machine.py", "runtime/doctor/resources.py", "runtime/running.py"},
    "prometheus_client": {"runtime/metrics.py"},
    "segno": {"runtime/qr.py"},
    "msgpack": {
        "peers/wire.py",
        "peers/messages.py",
        "peers/observer_dht.py",
        "runtime/averaging/messages.py",
        "runtime/manifest.py",
    },
}
# Folder -> what nothing in it may import.
NEVER = {
    "runtime/training/": {"runtime.averaging", "runtime.monitor", "runtime.app", "peers"},
    "runtime/averaging/": {"runtime.training", "runtime.monitor", "runtime.app"},
    "peers/": {"runtime", "torch"},
}
# The files of runtime that touch the network: the implementations of transport and discovery are theirs alone.
NETWORK = {
    "peers.p2pd",
    "peers.discovery",
    "peers.direct",
    "peers.relay",
    "peers.reaching",
    "peers.observer",
    "peers.observer_link",
    "peers.service",
    "socket",
}
MAY_USE_NETWORK = (
    "runtime/peer.py",
    "runtime/bootstrap.py",
    # A local socket, which nobody else can reach.
    "runtime/control.py",
    "runtime/finding.py",
    "runtime/doctor/online.py",
    "runtime/averaging/driver.py",
    "runtime/averaging/post.py",
    "runtime/averaging/statesync.py",
    "runtime/monitor/",
)


def imports(file: str) -> set[str]:
    """Every module that a file imports, at its top or inside a function, with all the packages that it lies in."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[: n + 1]) for name in names for n in range(name.count(".") + 1)}


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_layer_may(file: str) -> None:
    found = imports(file)
    for folder, forbidden in NEVER.items():
        if file.startswith(folder):
            assert not found & forbidden
    for package, allowed in ONLY_IN.items():
        assert package not in found or file in allowed
    if file in PURE:
        assert not found & IO
    if file.startswith("runtime/") and not file.startswith(MAY_USE_NETWORK):
        assert not found & NETWORK
    if file not in ("runtime/cli.py", "runtime/script.py"):
        assert "runtime.cli" not in found
    if file not in ("runtime/commands/peer.py", "runtime/app.py"):
        assert "runtime.app" not in found


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("__init__.py")])
def test_a_package_is_a_docstring_and_no_more(file: str) -> None:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
