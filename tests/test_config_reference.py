"""docs/configuration.md says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config import RUN_LIMITS, PeerConfig
from runtime.config_reference import HIDDEN, flag, reference

DOCS = Path(__file__).parents[1] / "docs"


def test_the_document_is_up_to_date() -> None:
    assert (DOCS / "configuration.md").read_text("utf-8") == reference(), "make docs writes it anew"


def test_it_has_every_key_and_every_flag_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    first = [cells[0].removeprefix("| ").strip("`") for cells in rows]
    assert {key.rpartition(".")[2] for key in RUN_LIMITS} <= set(first)
    assert {flag(item.name) for item in fields(PeerConfig)} <= set(first)
    explained = [cells for cells in rows if len(cells) == 4]
    assert len(explained) == len(RUN_LIMITS) + len(fields(PeerConfig))
    assert all(len(cells[-1].removesuffix(" |")) > 3 for cells in explained)


@pytest.mark.parametrize("command", ["start", "join"])
def test_the_commands_have_these_flags_and_no_others(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    expected = {flag(item.name) for item in fields(PeerConfig) if item.name not in HIDDEN}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", shown)) - {"--help", "--no-auxiliary", "--no-anew"} == expected
