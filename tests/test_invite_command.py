"""``atoll invite``: the invite of a run on this disk, again, and its QR code."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import segno
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style
from rich.text import Text
from typer.testing import CliRunner, Result

from peers.identity import Identity
from runtime.cli import app
from runtime.commands.invite import invite_of, scannable
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.folder import Folder, in_use, lock
from runtime.invite import MOST_INVITING, Invite, format_invite, nearest_last, parse_invite
from runtime.manifest import sign_manifest
from runtime.qr import EMPTY, FULL, LOWER, QUIET, UPPER, drawn
from runtime.shelf import kept_run

PEER = Identity.generate().peer
PUBLIC, PRIVATE, LOOPBACK = (f"/ip4/{ip}/tcp/4001/p2p/{PEER}" for ip in ("8.8.8.8", "192.168.1.7", "127.0.0.1"))
OTHER = f"/ip4/8.8.4.4/tcp/4001/p2p/{Identity.generate().peer}"
MODULES = {UPPER: (1, 0), LOWER: (0, 1), FULL: (1, 1), EMPTY: (0, 0)}


def peer_folder(path: Path, *printed: str, heard: tuple[str, ...] = (), name: str = "tides") -> str:
    """A peer's folder as one leaves it; the run id."""
    manifest = sign_manifest(Identity.generate(), replace(RunConfig(), name=name), bytes(32), name)
    path.mkdir(parents=True)
    folder = Folder(path)
    folder.claim(manifest)
    if printed:
        folder.keep_invite(Invite(manifest.run_id, printed))
    folder.keep_addresses(heard)
    return manifest.run_id


def invite(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["invite", *arguments])


def terminal(columns: int = 200, rows: int = 100, **options: object) -> Console:
    settings = {"force_terminal": True, "color_system": "truecolor", "_environ": {"TERM": "xterm"}, **options}
    return Console(file=StringIO(), width=columns, height=rows, **settings)  # type: ignore[arg-type]


def modules_of(code: Text) -> list[list[int]]:
    """The modules that a scanner sees."""
    rows: list[list[int]] = []
    for line in code.plain.split("\n"):
        rows += [[MODULES[sign][half] for sign in line] for half in (0, 1)]
    return rows


def test_what_was_printed_is_printed_again_and_others_that_were_heard_of(tmp_path: Path) -> None:
    run_id = peer_folder(tmp_path / "peer", LOOPBACK, PUBLIC, heard=(OTHER, PUBLIC, "no address"))
    done = invite(str(tmp_path / "peer"))
    assert done.exit_code == 0
    assert parse_invite(done.stdout) == Invite(run_id, (LOOPBACK, PUBLIC, OTHER))
    assert len(done.stdout.splitlines()) == 1, "without a terminal there is no code"


def test_it_says_whether_the_peer_is_there(tmp_path: Path) -> None:
    peer_folder(tmp_path / "peer", PUBLIC)
    assert (
        f"no peer runs in {tmp_path / 'peer'} now; these are the addresses of the last time"
        in invite(str(tmp_path / "peer")).stderr
    )
    unlock = lock(tmp_path / "peer")
    assert invite(str(tmp_path / "peer")).stderr == ""
    unlock()
    assert "no peer runs" in invite(str(tmp_path / "peer")).stderr


def test_asking_does_not_keep_the_peer_from_its_folder(tmp_path: Path) -> None:
    peer_folder(tmp_path / "peer", PUBLIC)
    assert not in_use(tmp_path / "peer")
    lock(tmp_path / "peer")()


def test_the_only_run_needs_no_name_and_of_two_one_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    run_id = peer_folder(tmp_path / "tides.peer", PUBLIC)
    assert parse_invite(invite().stdout).run_id == run_id
    second = peer_folder(tmp_path / "reefs.peer", PUBLIC, name="reefs")
    done = invite()
    assert isinstance(done.exception, ConfigError)
    assert "this disk has 2 runs: say which, of " in str(done.exception)
    assert parse_invite(invite("reefs").stdout).run_id == second
    assert parse_invite(invite(run_id[:8]).stdout).run_id == run_id


def test_a_folder_that_was_never_on_the_network_has_no_invite(tmp_path: Path) -> None:
    peer_folder(tmp_path / "peer")
    with pytest.raises(ConfigError, match="has no address of a peer yet: start the peer once"):
        invite_of(kept_run(tmp_path / "peer"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"atoll:", b"invite: none", b"\0" * 100_000])
def test_a_damaged_invite_file_leaves_the_addresses_that_were_heard_of(tmp_path: Path, content: bytes) -> None:
    run_id = peer_folder(tmp_path / "peer", PUBLIC, heard=(OTHER,))
    (tmp_path / "peer" / "invite").write_bytes(content)
    assert invite_of(kept_run(tmp_path / "peer")) == Invite(run_id, (OTHER,))


def test_the_invite_of_another_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    run_id = peer_folder(tmp_path / "peer", PUBLIC, heard=(OTHER,))
    Folder(tmp_path / "peer").keep_invite(Invite("0" * 40, (PUBLIC,)))
    assert invite_of(kept_run(tmp_path / "peer")) == Invite(run_id, (OTHER,))


def test_an_invite_has_no_more_addresses_than_can_be_pasted(tmp_path: Path) -> None:
    heard = tuple(f"/ip4/8.8.8.{n}/tcp/4001/p2p/{PEER}" for n in range(50))
    peer_folder(tmp_path / "peer", PUBLIC, heard=heard)
    assert invite_of(kept_run(tmp_path / "peer")).addresses == (PUBLIC, *heard[: MOST_INVITING - 1])


def test_addresses_that_strangers_can_dial_come_first() -> None:
    name = f"/dns4/example.org/tcp/1/p2p/{PEER}"
    assert nearest_last([LOOPBACK, PRIVATE, PUBLIC, name]) == [PUBLIC, name, PRIVATE, LOOPBACK]


@settings(deadline=None, max_examples=30)
@given(st.text("abcXYZ019:/@,?=.", min_size=1, max_size=1000))
def test_a_code_is_the_codes_modules_in_black_on_white_with_the_quiet_zone(text: str) -> None:
    code = drawn(text, 1000, 1000)
    assert code is not None
    modules = modules_of(code)
    expected = [list(row) for row in segno.make(text, error="L", micro=False, mode="byte").matrix_iter(border=0)]
    size = len(expected)
    inside = [row[QUIET : QUIET + size] for row in modules[QUIET : QUIET + size]]
    assert inside == expected
    assert sum(map(sum, modules)) == sum(map(sum, expected)), "around it is nothing"
    assert all(len(row) == size + 2 * QUIET for row in modules)
    assert len(modules) >= size + 2 * QUIET
    styles = {Style.parse(str(span.style)) for line in code.split("\n") for span in line.spans}
    assert styles == {Style(color="#000000", bgcolor="#ffffff")}


@pytest.mark.parametrize("colours", ["truecolor", "256", "standard"])
def test_every_sign_of_the_code_says_both_of_its_colours(colours: str) -> None:
    console = terminal(80, 40, color_system=colours)
    found = scannable(Invite("0" * 40, (PUBLIC,)), console)
    assert found is not None
    segments = [segment for segment in console.render(found[0]) if segment.text.strip("\n")]
    assert segments
    for segment in segments:
        assert segment.style is not None
        assert segment.style.color is not None
        assert segment.style.bgcolor is not None


def test_where_not_all_addresses_have_room_the_best_of_them_are_in_the_code() -> None:
    whole = Invite("0" * 40, (LOOPBACK, PRIVATE, PUBLIC))
    code, n_addresses = scannable(whole, terminal(60, 32)) or (Text(), 0)
    assert n_addresses == 1
    assert code.plain == str(drawn(format_invite(replace(whole, addresses=(PUBLIC,))), 1000, 1000))
    found = scannable(whole, terminal(200, 100))
    assert found is not None
    assert found[1] == 3
    assert max(map(len, code.plain.split("\n"))) <= 60
    assert len(code.plain.split("\n")) <= 30


@pytest.mark.parametrize(
    "console",
    [
        terminal(20, 10),
        terminal(200, 20),
        terminal(force_terminal=False),
        terminal(no_color=True),
        terminal(_environ={"TERM": "dumb"}),
    ],
    ids=["narrow", "low", "no terminal", "no colours", "dumb"],
)
def test_there_is_no_code_where_it_could_not_be_read(console: Console) -> None:
    assert scannable(Invite("0" * 40, (PUBLIC,)), console) is None


def test_a_text_that_no_code_can_hold_has_none() -> None:
    assert drawn("x" * 5000, 10_000, 10_000) is None
