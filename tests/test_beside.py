"""What runs beside a peer and fails: it ends the peer, and nobody goes on without it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime import user as user_module
from runtime.config import PeerConfig
from runtime.peer import Peer
from runtime.user import User
from runtime.view import View


async def fail() -> None:
    await asyncio.sleep(0.01)
    raise ZeroDivisionError


async def end_well() -> None:
    await asyncio.sleep(0.01)


def test_a_peer_ends_with_what_failed_beside_it_and_not_with_what_is_done() -> None:
    peer = object.__new__(Peer)
    peer._beside = []

    async def main() -> None:
        peer.user = SimpleNamespace(stop=asyncio.Event())  # type: ignore[assignment]
        peer._p2pd = SimpleNamespace(wait_failed=asyncio.Event().wait)  # type: ignore[assignment]
        async with asyncio.timeout(5.0), AsyncExitStack() as stack:
            peer._begin(stack, end_well())
            assert await peer.until_leaving(asyncio.sleep(0.1, "done"), end_well()) == "done"
            with pytest.raises(ZeroDivisionError):
                await peer.until_leaving(asyncio.sleep(60.0), fail())
            peer._begin(stack, fail())
            with pytest.raises(ZeroDivisionError):
                await peer.until_leaving(asyncio.sleep(60.0))

    asyncio.run(main())


@pytest.mark.parametrize("made_again", [False, True])
def test_a_peer_whose_folder_is_deleted_says_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """Else nobody finds it any more: neither its user by its socket, nor the peer what it has saved."""
    monkeypatch.setattr(user_module, "LOOK_S", 0.1)
    folder = tmp_path / "peer"
    folder.mkdir()

    async def main() -> None:
        user = User(PeerConfig(folder, tmp_path / "key"), View())
        async with asyncio.timeout(5.0), AsyncExitStack() as stack:
            await user.listen(stack)
            assert await user.may_take_part()
            folder.rename(tmp_path / "trash")
            if made_again:
                folder.mkdir()
            await user.stop.wait()
            assert (user.stop_reason, user.exit_code) == ("its folder was deleted", 1)

    asyncio.run(main())


@pytest.mark.parametrize("paused", [False, True])
def test_a_peer_that_cannot_look_at_its_machine_any_more_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """Else no limit would hold from then on, and nobody would know."""
    monkeypatch.setattr(user_module, "LOOK_S", 0.1)

    async def main() -> None:
        user = User(PeerConfig(tmp_path, tmp_path / "key", hours="off"), View())
        async with asyncio.timeout(5.0), AsyncExitStack() as stack:
            await user.listen(stack)
            if paused:
                user.answer({"do": "pause"})
            monkeypatch.setattr(user._machine, "look", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await take_part(user)

    async def take_part(user: User) -> None:
        assert await user.may_take_part()
        await user.turn(asyncio.sleep(60.0, 0))

    asyncio.run(main())
