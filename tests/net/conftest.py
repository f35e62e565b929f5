"""What tests of libp2p begin with."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from peers.identity import Identity


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_to_its_end(main: Any) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main, 30))

    return run_to_its_end


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    Identity.generate().save(path)
    return path
