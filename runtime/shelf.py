"""The runs that this disk has something of, and which one a user means."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.checkpoints import CHECKPOINTS, Checkpoint, found
from runtime.errors import ConfigError
from runtime.folder import MANIFEST_FILE, Folder
from runtime.manifest import Manifest
from runtime.places import data_home
from runtime.running import running_folders


@dataclass(frozen=True)
class KeptRun:
    """The folder of a peer, and what it has of the run."""

    folder: Path
    manifest: Manifest
    newest: Checkpoint | None
    """None before the first outer step."""


def kept_runs() -> list[KeptRun]:
    """Of peers that have joined or run now, and of those that were opened by run files in the current folder."""
    runs = []
    places = dict[Path, Path]()
    for place in (*sorted(data_home().glob("*")), *sorted(Path().glob("*.peer")), *running_folders()):
        places.setdefault(place.resolve(), place)
    for place in places.values():
        # One that is damaged, or of another release, is not to hide the rest.
        with suppress(ConfigError):
            runs.append(kept_run(place))
    return runs


def kept_run(folder: Path) -> KeptRun:
    """Raises: ConfigError if it is not a peer's folder."""
    manifest = Folder(folder).manifest()
    if manifest is None:
        raise ConfigError(f"{folder} is not the folder of a peer: atoll runs lists those that there are")
    checkpoints, _ = found(folder)
    return KeptRun(folder, manifest, checkpoints[0] if checkpoints else None)


def find_run(name: str) -> KeptRun:
    """The run by a peer's folder, the beginning of its run id, or its name.

    Raises: ConfigError if there is none, or more than one.
    """
    if name and (Path(name) / MANIFEST_FILE).is_file():
        return kept_run(Path(name))
    runs = kept_runs()
    meant = [run for run in runs if name and name in (run.manifest.config.name, str(run.folder))]
    meant = meant or [run for run in runs if len(name) >= 4 and run.manifest.run_id.startswith(name)]
    if not meant and name and (Path(name) / CHECKPOINTS).is_dir():
        raise ConfigError(f"{name} has lost the manifest that says what its run is: join with this --folder again")
    if not meant:
        raise ConfigError(f"There is no run {name!r} on this disk: name one that atoll runs lists, or a peer's folder")
    if len(meant) > 1:
        folders = ", ".join(str(run.folder) for run in meant)
        raise ConfigError(f"{name!r} is the name of {len(meant)} runs here: say which folder, of {folders}")
    return meant[0]
