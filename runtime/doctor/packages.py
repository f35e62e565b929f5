"""Python, what is installed in it, and whether ``runtime`` and ``peers`` are Atoll's own: the names are anybody's."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import peers
import runtime
from runtime.doctor.check import Check, failed, passed, warned

OLDEST_PYTHON, NEWEST_TESTED_PYTHON = (3, 11), (3, 13)
OLDEST_TORCH = (2, 2)
NAMES = ("runtime", "peers")
FRESH = "install Atoll by itself: in its sources, python3 -m venv env, then env/bin/pip install -c constraints.txt ."


def check_python(version: tuple[int, int], system: str = sys.platform) -> Check:
    words = f"{version[0]}.{version[1]} on {platform.system() or system} {platform.machine()}"
    if system == "win32":
        return failed("python", f"{words}: libp2p's daemon has no build for it", "use WSL2, or Docker")
    if version < OLDEST_PYTHON:
        oldest = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}"
        return failed("python", f"{words} is older than {oldest}", f"install Python {oldest} or newer")
    if version > NEWEST_TESTED_PYTHON:
        newest = f"{NEWEST_TESTED_PYTHON[0]}.{NEWEST_TESTED_PYTHON[1]}"
        return warned("python", f"{words} is newer than what Atoll is tested with", f"take Python {newest} if it fails")
    return passed("python", words)


def check_torch(version: str | None) -> Check:
    if version is None:
        return failed("torch", "PyTorch is not installed", "pip install torch")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST_TORCH:
        return failed("torch", f"PyTorch {version} is older than 2.2", "pip install --upgrade torch")
    return passed("torch", f"PyTorch {version}")


def check_daemon(daemon: Path | None) -> Check:
    """libp2p's, which hivemind's wheel carries."""
    if daemon is None:
        return failed("p2pd", "hivemind is not installed", "pip install hivemind")
    if not os.access(daemon, os.X_OK):
        return failed("p2pd", f"{daemon} is missing or cannot be run", "pip install --force-reinstall hivemind")
    return passed("p2pd", f"{daemon}")


def check_packages(folders: Mapping[str, Path], path: Sequence[str], owners: Mapping[str, Sequence[str]]) -> Check:
    """Whether others have packages of the same names.

    Args: folders has where each of ``NAMES`` was imported from, path what Python searches, owners the distributions
    that each name belongs to.
    """
    homes = {folder.parent for folder in folders.values()}
    if len(homes) > 1:
        found = " and ".join(f"{name} from {folders[name]}" for name in NAMES)
        return failed("packages", f"parts of two installations are mixed: {found}", FRESH)
    (home,) = homes
    strangers = sorted({owner for name in NAMES for owner in owners.get(name, ()) if owner.lower() != "atoll"})
    if strangers:
        words = f"{', '.join(strangers)} installs a package named runtime or peers over Atoll's"
        return failed("packages", words, f"pip uninstall {' '.join(strangers)} and reinstall Atoll, or {FRESH}")
    # Another copy of Atoll does no harm: both packages were taken from one.
    others = [folder for folder in _also_in(path) if not folder.samefile(home) and not _is_atoll(folder)]
    if others:
        words = f"{others[0]} has a package named runtime or peers too: which one is taken depends on where you are"
        return warned("packages", words, f"work elsewhere and unset PYTHONPATH, or {FRESH}")
    return passed("packages", f"runtime and peers are Atoll's, in {home}")


def _also_in(path: Sequence[str]) -> list[Path]:
    found = []
    for entry in dict.fromkeys(path):
        folder = Path(entry or ".")
        with suppress(OSError):
            if any((folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file() for name in NAMES):
                found.append(folder)
    return found


def _is_atoll(folder: Path) -> bool:
    return (folder / "runtime" / "cli.py").is_file() and (folder / "peers" / "p2pd.py").is_file()


def imported_from() -> dict[str, Path]:
    return {module.__name__: Path(module.__file__ or "").resolve().parent for module in (runtime, peers)}


def quick_checks() -> list[Check]:
    """What takes no time."""
    return [
        check_python(sys.version_info[:2]),
        check_packages(imported_from(), sys.path, {}),
    ]


def thorough_checks() -> list[Check]:
    """The same and what reads every distribution's records: some 0.3 s."""
    return [
        check_python(sys.version_info[:2]),
        check_packages(imported_from(), sys.path, importlib.metadata.packages_distributions()),
        check_torch(_version("torch")),
        check_daemon(_daemon()),
    ]


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _daemon() -> Path | None:
    spec = importlib.util.find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "hivemind_cli" / "p2pd"
