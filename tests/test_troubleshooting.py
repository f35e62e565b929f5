"""docs/troubleshooting.md has every sentence that a user can be told: it is looked for in the sources."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text("utf-8").split())
ERRORS = {"ConfigError", "NotNowError", "NetworkError", "IdentityError", "_exists"}
# Of a sentence put together from parts, the longest part that is always the same; shorter ones say nothing.
LEAST_CHARACTERS = 6


def constant_part(node: ast.expr) -> str:
    """The longest part of a string expression that does not depend on anything; empty for other expressions."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return max((constant_part(value) for value in values), key=len, default="")
    return ""


def sentences() -> Iterator[tuple[str, str]]:
    """Where, and what a user is told there: errors, and what a peer says of its run."""
    for path in sorted([*(ROOT / "runtime").rglob("*.py"), *(ROOT / "peers").rglob("*.py")]):
        tree, file = ast.parse(path.read_text("utf-8")), path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in ERRORS:
                    yield file, constant_part(first)
                case ast.Call(func=ast.Attribute(attr="say"), args=[first, *_]) if file in (
                    "runtime/app.py",
                    "runtime/peer.py",
                    "runtime/user.py",
                ):
                    yield file, constant_part(first)
                case ast.FunctionDef(name="_line") if file == "runtime/view.py":
                    for inner in ast.walk(node):
                        if isinstance(inner, ast.Return) and inner.value is not None:
                            yield file, constant_part(inner.value)


FOUND = sorted({(file, text.strip()) for file, text in sentences() if len(text.strip()) >= LEAST_CHARACTERS})


def test_the_search_finds_what_there_is() -> None:
    assert len(FOUND) > 90
    assert ("runtime/folder.py", "belongs to another run: name another folder with --folder") in FOUND
    assert ("runtime/view.py", "the event log has gaps from here on:") in FOUND


@pytest.mark.parametrize(("file", "text"), FOUND, ids=[text[:50] for _, text in FOUND])
def test_what_a_user_is_told_is_explained(file: str, text: str) -> None:
    assert " ".join(text.split()) in PAGE, f"{file} says it, and docs/troubleshooting.md does not"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_links_of_a_document_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
