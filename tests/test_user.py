"""What a user wants of the peer, without a peer: pauses, changed limits and the end, in whatever order they come."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from runtime.config import PeerConfig
from runtime.control import SOCKET
from runtime.errors import ConfigError
from runtime.user import User
from runtime.view import View


class Said:
    def __init__(self) -> None:
        self._file = io.StringIO()
        self.view = View(Console(file=self._file, width=200))

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


def with_user(folder: Path, use: Callable[[User], Awaitable[None]], **settings: object) -> list[str]:
    """What is said meanwhile."""
    said = Said()

    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(20.0):
            config = replace(PeerConfig(folder, folder / "key"), **settings)  # type: ignore[arg-type]
            user = User(config, said.view)
            await user.listen(stack)
            await use(user)

    asyncio.run(main())
    assert not (folder / SOCKET).exists()
    return said.lines


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


async def take_part(user: User) -> int | None:
    """As a peer does that has entered its run."""
    user.has_entered = True
    await user.stop.wait()
    return user.exit_code


def test_a_turn_ends_with_a_pause_and_the_next_begins_with_the_last_reason_gone(tmp_path: Path) -> None:
    async def use(user: User) -> None:
        assert await user.may_take_part()
        turn = asyncio.ensure_future(user.turn(take_part(user)))
        await asyncio.sleep(0)
        assert user.answer({"do": "pause"})["doing"] == "pausing"
        assert await turn is None
        assert user.stop_reason == "paused: as you said"
        waiting = asyncio.ensure_future(user.may_take_part())
        await asyncio.sleep(0.05)
        assert user.answer({"do": "status"})["doing"] == "paused"
        assert not waiting.done()
        assert user.answer({"do": "resume"})["paused"] is None
        assert await waiting
        assert not user.stop.is_set()
        turn = asyncio.ensure_future(user.turn(take_part(user)))
        await asyncio.sleep(0)
        assert user.answer({"do": "leave"})["doing"] == "leaving"
        assert await turn == 0
        assert not await user.may_take_part()

    assert with_user(tmp_path, use) == ["paused: as you said", "resumed"]


def test_a_reason_that_comes_and_goes_still_ends_the_turn(tmp_path: Path) -> None:
    async def use(user: User) -> None:
        assert await user.may_take_part()
        user.answer({"do": "pause"})
        user.answer({"do": "resume"})
        assert user.stop.is_set(), "a peer that is leaving is not to find half of it undone"
        assert await user.turn(take_part(user)) is None
        assert await user.may_take_part()

    with_user(tmp_path, use)


def test_before_a_peer_has_entered_its_run_it_is_just_taken_apart(tmp_path: Path) -> None:
    undone = []

    async def build() -> int | None:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(True)
        return None

    async def use(user: User) -> None:
        assert await user.may_take_part()
        turn = asyncio.ensure_future(user.turn(build()))
        await asyncio.sleep(0)
        user.leave("interrupted", 130)
        assert await turn == 130

    with_user(tmp_path, use)
    assert undone


def test_outside_its_hours_a_peer_waits_and_can_still_be_ended(tmp_path: Path) -> None:
    later = datetime.now() + timedelta(hours=2)
    hours = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"

    async def use(user: User) -> None:
        waiting = asyncio.ensure_future(user.may_take_part())
        await asyncio.sleep(0.05)
        assert user.answer({"do": "resume"})["paused"] == f"outside {hours}, again at {later:%H:%M}"
        user.leave("told to end", 0)
        assert not await waiting

    lines = with_user(tmp_path, use, hours=hours)
    assert lines == [f"paused: outside {hours}, again at {later:%H:%M}", "goodbye: told to end"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"do": "limits", "change": {"up": "fast"}}, "limits: up is 'fast', but must be a rate"),
        ({"do": "limits", "change": {"up": "2MB/s", "threads": "two"}}, "threads is 'two', but must be a whole number"),
        ({"do": "limits", "change": {"threads": True}}, "threads is True, but must be a whole number"),
        ({"do": "limits", "change": {"folder": "/"}}, "cannot change 'folder'"),
        ({"do": "limits", "change": {"key": "x"}, "save": True}, "cannot change 'key'"),
        ({"do": "limits", "change": []}, "an object, by their names"),
        ({"do": "dance"}, "can do no 'dance'"),
        ({"do": ["status"]}, "can do no"),
        ({}, "can do no 'None'"),
    ],
)
def test_what_makes_no_sense_changes_nothing(tmp_path: Path, request_: dict[str, object], said: str) -> None:
    async def use(user: User) -> None:
        before = user.config, user.limits
        with pytest.raises(ConfigError) as caught:
            user.answer(request_)
        assert said in str(caught.value)
        assert (user.config, user.limits) == before

    assert with_user(tmp_path, use) == []
    assert not (tmp_path / "peer.toml").exists()


def test_limits_that_cannot_be_saved_do_not_change_either(tmp_path: Path) -> None:
    (tmp_path / "peer.toml").write_text("up = [")

    async def use(user: User) -> None:
        with pytest.raises(ConfigError, match="not valid TOML"):
            user.answer({"do": "limits", "change": {"up": "2MB/s"}, "save": True})
        assert user.config.up == "off"
        user.answer({"do": "limits", "change": {"up": "2MB/s", "pause-when-busy": True}})
        assert user.limits.caps.up == 2_000_000
        assert user.limits.pause_when_busy

    assert with_user(tmp_path, use) == ["limits changed: up 2MB/s, pause-when-busy on"]
