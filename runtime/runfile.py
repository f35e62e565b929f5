"""The run file as text: TOML that is read into a ``RunConfig``, and written from it with a comment at every key."""

import ast
import difflib
import inspect
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from runtime.config import RunConfig, shown, validate
from runtime.errors import ConfigError

TYPE_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
COMMENT_WIDTH = 100


def load_run_file(path: Path) -> RunConfig:
    """Read and validate a run file; a key that is not there has its default.

    Raises: ConfigError, one sentence with the file, the key, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark first
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: atoll init {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, and a run file is TOML; write one with: atoll init") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); name a run file written by: atoll init"
        ) from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty; write a run file with: atoll init")
    return run_config_from_table(toml_table(text, str(path)), str(path))


def toml_table(text: str, where: str) -> dict[str, Any]:
    """Raises: ConfigError that starts with ``where``."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # beside TOMLDecodeError: a number of more than 4300 digits
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid TOML: nested too deeply") from None


def run_config_from_table(table: Mapping[str, object], where: str) -> RunConfig:
    """The reverse of ``dataclasses.asdict``, for tables from anyone: every key, type and range is checked.

    Raises: ConfigError that starts with ``where``.
    """
    config: RunConfig = _read_section(RunConfig, table, where, prefix="")
    validate(config, where)
    return config


def _read_section(section: type[Any], table: Mapping[str, object], where: str, prefix: str) -> Any:
    types = get_type_hints(section)
    values = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in types:
            raise ConfigError(f"{where}: unknown {'section' if isinstance(value, dict) else 'key'} {_unknown(name)}")
        if is_dataclass(types[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} is {shown(value)}, but is a section; write it as [{name}]")
            values[key] = _read_section(types[key], value, where, f"{name}.")
        else:
            values[key] = typed(value, types[key], where, name)
    return section(**values)


def typed(value: object, wanted: type, where: str, name: str) -> Any:
    """``value`` as the type that a field has. Raises: ConfigError."""
    if wanted is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {name} is {shown(value)}, which is too large for a number") from None
    # `type() is`, not isinstance: true is no number.
    if type(value) is not wanted:
        raise ConfigError(f"{where}: {name} is {shown(value)}, but must be {TYPE_WORDS[wanted]}")
    return value


def _unknown(name: str) -> str:
    """The name and the nearest known one; a key in the wrong section is recognised by its last part."""
    known = list(_known_names(RunConfig))
    last = name.rsplit(".", 1)[-1]
    near = [one for one in known if one.rsplit(".", 1)[-1] == last] or difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"{one_line(name)}; {hint}"


def _known_names(section: type[Any], prefix: str = "") -> Iterable[str]:
    for name, kind in get_type_hints(section).items():
        yield prefix + name
        if is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _known_names(kind, f"{prefix}{name}.")


def render_run_file(config: RunConfig, reasons: Mapping[str, str] | None = None) -> str:
    """TOML with every key of ``config``, each under its documentation; ``load_run_file`` reads it back equal.

    Args: reasons say by key, "inner.steps", why it has the value that it has.
    """
    head = [
        "# An Atoll run file: everything that must be equal on every peer.",
        "# Open the run with `atoll start`; others join with the invite that it prints.",
    ]
    return "\n".join([*head, *_render_section(config, "", reasons or {})]) + "\n"


def _render_section(section: Any, title: str, reasons: Mapping[str, str]) -> Iterable[str]:
    docs = field_docs(type(section))
    if title:
        yield from ("", f"[{title}]")
    own = [(item.name, getattr(section, item.name)) for item in fields(section)]
    for name, value in own:
        if not is_dataclass(value):
            if not title:
                yield ""
            yield from (f"# {line}" for line in _wrapped(docs[name]))
            if why := reasons.get(f"{title}.{name}" if title else name):
                yield from (f"# {line}" for line in _wrapped(f"Here: {why}"))
            yield f"{name} = {toml_value(value)}"
    for name, value in own:
        if is_dataclass(value):
            yield from _render_section(value, f"{title}.{name}" if title else name, reasons)


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= COMMENT_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def field_docs(section: type[Any]) -> dict[str, str]:
    """The string under each field of a dataclass. They are in no attribute of the class, so its source is read."""
    tree = ast.parse(inspect.getsource(section))
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[statement.target.id] = inspect.cleandoc(text)
                case _:
                    pass
    return docs | {item.name: "" for item in fields(section) if item.name not in docs}


def toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but that TOML also forbids a bare DEL and knows no surrogate pairs.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            raise TypeError(f"no TOML form for {type(value).__name__}")


def one_line(text: str) -> str:
    return text if text.isprintable() and len(text) <= 80 else shown(text)
