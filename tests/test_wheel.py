import re
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_the_wheel_has_the_two_packages_and_nothing_else(names: set[str]) -> None:
    strange = [name for name in names if not re.match(r"(runtime|peers)/.*\.py$|atoll-[^/]+\.dist-info/", name)]
    assert not strange


def test_the_wheel_has_every_module(names: set[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for top in ("runtime", "peers") for path in (ROOT / top).rglob("*.py")}
    assert modules <= names


def test_the_wheel_has_the_licence_and_the_command(names: set[str]) -> None:
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)
