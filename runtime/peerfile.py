"""The peer file: the flags of one machine's peer as TOML, so that they hold without being said each time."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from runtime.config import PeerConfig, as_flag, validate
from runtime.disk import replace_file
from runtime.errors import ConfigError
from runtime.runfile import one_line, toml_table, toml_value, typed

PEER_FILE = "peer.toml"
# Where the file lies, a decision for one time, and what only a child process is told.
ON_COMMAND_LINE_ONLY = frozenset(("folder", "config", "anew", "exit_with_stdin", "inner_step_s"))
# A value of TOML that is on one line: text in either kind of quotes, a number, true or false.
VALUE = r"""\"(?:[^"\\\n]|\\.)*\"|'[^'\n]*'|[\w.+-]+"""
HEAD = "# Settings of this peer: any flag of atoll join. What the command line says comes before it."


def known_keys() -> dict[str, str]:
    """By the key in the file, the field of ``PeerConfig``."""
    names = (item.name for item in fields(PeerConfig))
    return {as_flag(name): name for name in names if name not in ON_COMMAND_LINE_ONLY}


def read_peer_file(path: Path) -> dict[str, Any]:
    """The fields of ``PeerConfig`` that the file gives, each checked.

    Raises: ConfigError, one sentence with the file, the key, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, and a peer file is TOML; mend it or name another") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name another peer file with --config") from None
    known, types, values = known_keys(), get_type_hints(PeerConfig), {}
    for key, value in toml_table(text, str(path)).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {one_line(key)} in a peer file; {hint}")
        wanted = types[known[key]]
        # Of `str | None` what it is when it is there.
        wanted = next((one for one in get_args(wanted) if one is not type(None)), wanted)
        plain = typed(value, str if wanted is Path else wanted, str(path), key)
        values[known[key]] = wanted(plain) if wanted is Path else plain
    checked: dict[str, Any] = {"folder": path.parent, "key": path, **values}
    validate(PeerConfig(**checked), str(path))
    return values


def save_settings(path: Path, changes: Mapping[str, Any]) -> None:
    """Write fields of ``PeerConfig`` into a peer file, and leave all else in it as it is, comments included.

    Raises: ConfigError if it cannot be read or written; the file is as it was then.
    """
    if path.exists():
        read_peer_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else f"{HEAD}\n"
        table = toml_table(text, str(path))
        for field, value in changes.items():
            key = as_flag(field)
            table[key], text = value, _with_value(text, key, toml_value(value))
        # Somebody may have written a value over several lines, or a key with escapes.
        if not _says(text, table):
            raise ConfigError(f"{path} is written in a way that cannot be changed here: change it by hand")
        replace_file(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): leave --save out, or mend that") from None


def _with_value(text: str, key: str, value: str) -> str:
    """The text of a peer file with another value for a key; a new line at its end if it has none."""
    there = re.search(rf"""^[ \t]*(["']?){re.escape(key)}\1[ \t]*=[ \t]*({VALUE})[ \t]*(#.*)?$""", text, re.MULTILINE)
    if there is None:
        return f"{text.rstrip()}\n{key} = {value}\n"
    return text[: there.start(2)] + value + text[there.end(2) :]


def _says(text: str, table: Mapping[str, Any]) -> bool:
    try:
        return toml_table(text, "") == table
    except ConfigError:
        return False
