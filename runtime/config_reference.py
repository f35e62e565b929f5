"""docs/configuration.md, made from the dataclasses: ``python -m runtime.config_reference FILE`` writes it anew."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from runtime.config import PEER_LIMITS, RUN_LIMITS, Allowed, PeerConfig, RunConfig, as_flag
from runtime.peerfile import ON_COMMAND_LINE_ONLY
from runtime.presets import RUN_PRESETS
from runtime.runfile import field_docs

# What a child process is told, which no help shows.
HIDDEN = ("exit_with_stdin", "inner_step_s")
# Defaults that are no constant of the dataclass.
PLACES = {
    "folder": "`start`: beside the run file, `run.peer`; `join`: `~/.local/share/atoll/` and 12 digits of the run id",
    "key": "`~/.config/atoll/identity.key`, made if it is not there",
    "config": "`peer.toml` in the folder, if there is one",
}
UNLIMITED = {
    "folder": "a folder",
    "key": "a file",
    "config": "a file",
    "data": "a file, folder or glob",
    "bootstrap": "addresses, /ip4/HOST/tcp/PORT/p2p/PEER_ID",
}

HEAD = """\
# Every setting

Made by `make docs` from `runtime/config.py`; `tests/test_config_reference.py` holds it to that.

There are two kinds. The **run file** has what must be equal on every peer: the organiser signs it, and nobody can
change it later, since the run id is its hash. The **flags of a peer** are each machine's own business, and nothing in
them changes what the run is. A key that the file does not have takes its default; one that does not exist is an error,
and so is a value that is not allowed. No environment variable changes training.
"""

RUN_FILE = """\
## The run file

TOML. `atoll init FILE` writes one with all of this as comments; [organise.md](organise.md) says what to choose.
"""

PRESETS = """\
### Presets

`atoll init FILE --preset NAME` begins with other values than these defaults, and the file says why. These differ:
"""

FLAGS = """\
## The flags of a peer

Of `atoll start FILE` and `atoll join INVITE` alike. All but `--folder`, `--config` and `--anew` may stand in a peer
file as well, without the dashes before them. What the command line says comes first, then the file, then the defaults:

    up = "2MB/s"
    hours = "22:00-07:00"
    pause-on-battery = true

`atoll limits` changes `--up`, `--down`, `--threads`, `--memory`, `--disk`, `--hours`, `--pause-on-battery` and
`--pause-when-busy` of a peer that runs, until it ends or, with `--save`, in its file too.
Rates and sizes are powers of ten; `MB/s` are bytes and `Mbit/s` bits.
"""

TAIL = """\
## Places

`XDG_CONFIG_HOME` and `XDG_DATA_HOME` move `~/.config` and `~/.local/share`, as for other programs.
[volunteer.md](volunteer.md) says what lies in a peer's folder, and how to delete it.
"""


def reference() -> str:
    """The whole of docs/configuration.md."""
    parts = [HEAD, RUN_FILE, *_sections(), PRESETS, *_presets(), FLAGS, *_flags(), TAIL]
    return "\n".join(parts)


def _sections() -> Iterator[str]:
    plain = [item for item in fields(RunConfig) if not is_dataclass(_default(item))]
    yield _table("At the top", RunConfig, plain, "")
    for item in fields(RunConfig):
        section = _default(item)
        if is_dataclass(section):
            yield _table(f"[{item.name}]", type(section), fields(section), f"{item.name}.")


def _table(title: str, section: type[Any], items: tuple[Field[Any], ...] | list[Field[Any]], prefix: str) -> str:
    docs = field_docs(section)
    rows = [
        _row(f"`{item.name}`", f"`{_shown(_default(item))}`", RUN_LIMITS[prefix + item.name].words, docs[item.name])
        for item in items
    ]
    return "\n".join([f"### {title}\n", _row("key", "default", "allowed", "meaning"), "|---|---|---|---|", *rows, ""])


def _presets() -> Iterator[str]:
    defaults = dict(_values(RunConfig(), ""))
    preset_values = {name: dict(_values(preset.config, "")) for name, preset in RUN_PRESETS.items()}
    keys = [key for key in defaults if any(of_it[key] != defaults[key] for of_it in preset_values.values())]
    rows = [_row(f"`{key}`", *(f"`{_shown(of_it[key])}`" for of_it in preset_values.values())) for key in keys]
    head = [_row("key", *(f"`{name}`" for name in RUN_PRESETS)), f"|---|{'---|' * len(RUN_PRESETS)}"]
    yield "\n".join([*head, *rows, ""])
    yield "\n".join([*(f"- `{name}`: {preset.words}." for name, preset in RUN_PRESETS.items()), ""])


def _values(section: object, prefix: str) -> Iterator[tuple[str, object]]:
    for item in fields(section):  # type: ignore[arg-type]
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def _flags() -> Iterator[str]:
    docs = field_docs(PeerConfig)
    shown, hidden = list[str](), list[str]()
    for item in fields(PeerConfig):
        (hidden if item.name in HIDDEN else shown).append(
            _row(f"`{flag(item.name)}`", _flag_default(item), _flag_allowed(item, PEER_LIMITS), docs[item.name])
        )
    head = [_row("flag", "default", "allowed", "meaning"), "|---|---|---|---|"]
    yield "\n".join([*head, *shown, ""])
    yield "\n".join(["Two more are for `atoll demo` and the benchmarks, and in no help:\n", *head, *hidden, ""])


def flag(name: str) -> str:
    """The option on the command line of a field of ``PeerConfig``."""
    return f"--{name.replace('_', '-')}"


def _flag_default(item: Field[Any]) -> str:
    if item.name in PLACES:
        return PLACES[item.name]
    value = _default(item)
    return "none" if value in (None, "") else "off" if value is False else f"`{_shown(value)}`"


def _flag_allowed(item: Field[Any], limits: Mapping[str, Allowed]) -> str:
    if item.name in limits:
        return limits[item.name].words
    if _default(item) is not False:
        return UNLIMITED[item.name]
    return (
        "takes no value"
        if item.name in ON_COMMAND_LINE_ONLY
        else f"takes no value; `--no-{as_flag(item.name)}` for off"
    )


def _default(item: Field[Any]) -> object:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
