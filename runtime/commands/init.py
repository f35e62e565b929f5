"""``atoll init``: the run file, from a preset, the command line, and questions on a terminal."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from runtime.config import RunConfig, one_of, shown, validate
from runtime.errors import ConfigError
from runtime.presets import RUN_PRESETS
from runtime.runfile import render_run_file

T = TypeVar("T")

PRESET_DEFAULT = "toy"
OF_PRESET = "the preset's"

Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"{', '.join(RUN_PRESETS)}.", show_default=PRESET_DEFAULT)
]
Name = Annotated[str | None, typer.Option(metavar="TEXT", help="A name for people.", show_default="FILE's")]
OuterSteps = Annotated[int | None, typer.Option(metavar="N", help="Length of the run.", show_default=OF_PRESET)]
Quorum = Annotated[int | None, typer.Option(metavar="N", help="Fewest peers a step needs.", show_default=OF_PRESET)]
Source = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="stdlib, or files: each volunteer's own.", show_default=OF_PRESET)
]


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.", metavar="FILE")] = Path("atoll.toml"),
    preset: Preset = None,
    name: Name = None,
    outer_steps: OuterSteps = None,
    quorum: Quorum = None,
    data: Source = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for what is not given here.")] = False,
) -> int:
    """Write a run file with every setting explained. Never overwrites."""
    if ask and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("--ask needs a terminal to ask on: say --preset, --name, --outer-steps, --quorum and --data")
    if os.path.lexists(file):
        raise _exists(file)
    asked = _Asking() if ask else None
    if asked and preset is None:
        for one, of_it in RUN_PRESETS.items():
            print(f"  {one:10}{of_it.words}")
        preset = asked.one("Preset", PRESET_DEFAULT, str, _check_preset)
    preset = preset or PRESET_DEFAULT
    _check_preset(preset)
    config = RUN_PRESETS[preset].config
    config = replace(config, name=_name_of(file) if name is None else name)
    if outer_steps is not None:
        config = _with_steps(config, outer_steps)
    if quorum is not None:
        config = _with_quorum(config, quorum)
    if data is not None:
        config = _with_data(config, data)
    validate(config, "command line")
    if asked:
        if name is None:
            config = asked.setting("Name of the run", config.name, str, config, _with_name)
        if data is None:
            question = "Data: stdlib, or files, which are each volunteer's own"
            config = asked.setting(question, config.data.source, str, config, _with_data)
        if outer_steps is None:
            config = asked.setting("Outer steps", config.outer.steps, int, config, _with_steps)
        if quorum is None:
            config = asked.setting("Fewest peers that a step needs", config.averaging.quorum, int, config, _with_quorum)
    _write(file, render_run_file(config, _reasons(preset, config)))
    more = " --data PATH" if config.data.source == "files" else ""
    print(f"Wrote {file}. Edit it, see what it takes, then open the run:\n")
    print(f"    atoll plan {file}\n    atoll start {file}{more}")
    return 0


def _reasons(preset: str, config: RunConfig) -> dict[str, str]:
    """Those of the preset, but of what is not the preset's any more."""
    reasons = dict(RUN_PRESETS[preset].reasons)
    before = RUN_PRESETS[preset].config
    if config.outer.steps != before.outer.steps:
        reasons.pop("outer.steps", None)
    if config.averaging.quorum != before.averaging.quorum:
        reasons.pop("averaging.quorum", None)
    return reasons


def _check_preset(preset: str) -> None:
    allowed = one_of(*RUN_PRESETS)
    if not allowed.accepts(preset):
        raise ConfigError(f"command line: preset is {shown(preset)}, but must be {allowed.words}")


def _name_of(file: Path) -> str:
    """The file's, as far as it is a name; else the default."""
    named = replace(RunConfig(), name=file.stem)
    try:
        validate(named)
    except ConfigError:
        return RunConfig().name
    return named.name


def _with_name(config: RunConfig, name: str) -> RunConfig:
    return replace(config, name=name)


def _with_steps(config: RunConfig, outer_steps: int) -> RunConfig:
    return replace(config, outer=replace(config.outer, steps=outer_steps))


def _with_quorum(config: RunConfig, quorum: int) -> RunConfig:
    return replace(config, averaging=replace(config.averaging, quorum=quorum))


def _with_data(config: RunConfig, source: str) -> RunConfig:
    return replace(config, data=replace(config.data, source=source))


class _Asking:
    """Questions on a terminal, each until its answer is one; Return takes the default."""

    def one(self, question: str, default: T, kind: type[T], check: Callable[[T], object]) -> T:
        while True:
            try:
                answer: T = typer.prompt(question, default=default, type=kind)
            except typer.Abort:
                # Ctrl-C and the end of the input; the file has not been written.
                raise KeyboardInterrupt from None
            try:
                check(answer)
            except ConfigError as error:
                print(error)
            else:
                return answer

    def setting(
        self, question: str, default: T, kind: type[T], config: RunConfig, change: Callable[[RunConfig, T], RunConfig]
    ) -> RunConfig:
        answer = self.one(question, default, kind, lambda value: validate(change(config, value), "this answer"))
        return change(config, answer)


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise _exists(file) from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); name a file in a folder of yours") from None


def _exists(file: Path) -> ConfigError:
    return ConfigError(f"{file} exists already and is never overwritten; name another file")
