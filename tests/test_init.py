"""``atoll init``: presets, options, and questions on a terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.config import RUN_LIMITS, RunConfig, validate
from runtime.presets import RUN_PRESETS
from runtime.runfile import load_run_file, render_run_file

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0


def init(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["init", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("preset", RUN_PRESETS)
def test_a_preset_is_within_the_limits_and_says_why_of_keys_that_there_are(preset: str, tmp_path: Path) -> None:
    of_it = RUN_PRESETS[preset]
    validate(of_it.config)
    assert set(of_it.reasons) <= set(RUN_LIMITS)
    path = tmp_path / "run.toml"
    init(str(path), "--preset", preset)
    text = path.read_text()
    assert load_run_file(path) == replace(of_it.config, name="run")
    # A reason may be broken into lines, none of which is too long.
    assert max(map(len, text.splitlines())) <= 120
    joined = " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert all(f"Here: {reason}" in joined for reason in of_it.reasons.values())


def test_whatever_differs_from_the_defaults_has_a_reason() -> None:
    for preset in RUN_PRESETS.values():
        lines, defaults = (set(render_run_file(config).splitlines()) for config in (preset.config, RunConfig()))
        differing = {line.partition(" = ")[0] for line in lines - defaults}
        assert differing <= {key.rpartition(".")[2] for key in preset.reasons}


def test_what_is_said_on_the_command_line_goes_before_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    options = ("--preset", "cpu-small", "--name", "tides", "--outer-steps", "7", "--quorum", "3", "--data", "files")
    said = init(str(path), *options)
    config = load_run_file(path)
    assert (config.name, config.outer.steps, config.averaging.quorum, config.data.source) == ("tides", 7, 3, "files")
    assert config.model.preset == "small"
    assert f"atoll start {path} --data PATH" in said
    # The preset's reason for another number is not this one's.
    assert RUN_PRESETS["cpu-small"].reasons["outer.steps"] not in path.read_text()


def test_the_run_has_the_files_name_as_far_as_that_is_one(tmp_path: Path) -> None:
    init(str(tmp_path / "tides.toml"))
    assert load_run_file(tmp_path / "tides.toml").name == "tides"
    init(str(tmp_path / f"{'x' * 65}.toml"))
    assert load_run_file(tmp_path / f"{'x' * 65}.toml").name == RunConfig().name


def ask(answers: bytes, cwd: Path, *arguments: str) -> tuple[int, str]:
    """What ``atoll init --ask`` does on a terminal on which these keys are pressed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "init", "run.toml", "--ask", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    os.write(master, answers)
    output, deadline = b"", time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    output += os.read(master, 4096)
                except OSError:  # Linux's way to say that nobody has the other end any more
                    break
            elif process.poll() is not None:
                break
        return process.wait(5.0), output.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_questions_have_defaults_and_a_wrong_answer_is_asked_again(tmp_path: Path) -> None:
    # Preset, asked again; name by Return; data, asked again; outer steps, twice no number of them; quorum by Return.
    code, output = ask(b"huge\ncpu-small\n\nweb\nfiles\nmany\n0\n12\n\n", tmp_path)
    assert code == 0, output
    expected = RUN_PRESETS["cpu-small"].config
    config = load_run_file(tmp_path / "run.toml")
    assert (config.name, config.data.source, config.outer.steps) == ("run", "files", 12)
    assert config.averaging == expected.averaging
    assert "preset is 'huge', but must be" in output
    assert "data.source is 'web', but must be stdlib or files" in output
    assert "outer.steps is 0, but must be" in output


def test_what_was_said_is_not_asked(tmp_path: Path) -> None:
    options = ("--preset", "toy", "--name", "n", "--data", "stdlib", "--outer-steps", "3", "--quorum", "2")
    code, output = ask(b"", tmp_path, *options)
    assert code == 0, output
    assert load_run_file(tmp_path / "run.toml").outer.steps == 3


def test_the_end_of_the_input_in_the_middle_writes_nothing(tmp_path: Path) -> None:
    code, output = ask(b"toy\n\x04", tmp_path)
    assert code == 130, output
    assert "Traceback" not in output
    assert not (tmp_path / "run.toml").exists()
