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
    page = r"runtime/monitor/dashboard/static/\w+\.(js|css)$"
    known = rf"(runtime|peers)/.*\.py$|{page}|atoll-[^/]+\.dist-info/"
    assert not [name for name in names if not re.match(known, name)]


def test_the_wheel_has_every_module_and_the_page_of_the_dashboard(names: set[str]) -> None:
    kinds = ("*.py", "*.js", "*.css")
    files = {path for top in ("runtime", "peers") for kind in kinds for path in (ROOT / top).rglob(kind)}
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names


def test_the_wheel_has_the_licence_and_the_command(names: set[str]) -> None:
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)
