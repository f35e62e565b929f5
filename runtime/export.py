"""A run's weights for others: safetensors under the names of the model's parameters, its shape, and a card."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from runtime.errors import ConfigError, reason_of
from runtime.log import EVENTS_FILE, read_log
from runtime.shelf import KeptRun
from runtime.state import State
from runtime.training.checkpoint import load_newest
from runtime.training.model import GPT, PRESETS, VOCABULARY, build_model, unflatten_into


def trained_model(run: KeptRun, torn: Callable[[Path, str], None]) -> tuple[GPT, State]:
    """The model with the weights of the newest checkpoint that is whole, on the CPU.

    Args: torn is told of each newer one that is not, and why.
    Raises: ConfigError if there is none.
    """
    broken: dict[Path, str] = {}
    loaded = load_newest(run.folder, broken.__setitem__)
    for path, reason in broken.items():
        if loaded is None:
            raise ConfigError(f"the checkpoint {path} cannot be used, and there is no other: {reason}")
        torn(path, reason)
    if loaded is None:
        raise ConfigError(f"{run.folder} has no checkpoint yet: there is one after the first outer step")
    model = build_model(run.manifest.config.model.preset, run.manifest.config.model.seed)
    state, _ = loaded
    unflatten_into(model.parameters(), state.anchor_P)
    return model.eval(), state


def export(run: KeptRun, into: Path | str, torn: Callable[[Path, str], None]) -> tuple[Path, State]:
    """Write ``model.safetensors``, ``config.json`` and the card ``README.md`` into a new folder; where, and of what.

    Args:
        into: the folder, or a word with which its name begins; the outer step follows then.
        torn: as for ``trained_model``.
    Raises: ConfigError if the folder is there already or cannot be written; nothing is left of it then.
    """
    model, state = trained_model(run, torn)
    preset = run.manifest.config.model.preset
    place = Path(f"{into}-{state.outer_step}") if isinstance(into, str) else into
    into = place.absolute()
    temporary = into.parent / f".{into.name}.unfinished"
    try:
        if into.exists():
            raise ConfigError(f"{into} exists already and is never overwritten; name another with --output")
        temporary.mkdir(parents=True)
        weights = temporary / "model.safetensors"
        save_file(model.state_dict(), weights, metadata={"format": "pt"})
        # Safetensors writes for nobody but the owner; these are for others.
        weights.chmod(0o644)
        config = {"model_type": "atoll-byte-gpt", "vocabulary": VOCABULARY, "preset": preset, **asdict(PRESETS[preset])}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (temporary / "README.md").write_text(card(run, state), "utf-8")
        temporary.rename(into)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{into} cannot be written ({reason_of(error)}); name another with --output") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place, state


def card(run: KeptRun, state: State) -> str:
    """What these weights are and who made them, in Markdown."""
    config = run.manifest.config
    n_parameters = state.anchor_P.numel()
    lines = [
        f"# {config.name}",
        "",
        f"A byte-level GPT of {n_parameters:,} parameters ({config.model.preset}), trained by volunteers with Atoll.",
        "",
        "| | |",
        "|---|---|",
        f"| run | `{run.manifest.run_id}` |",
        f"| organiser | `{run.manifest.organiser}` |",
        f"| lineage | `{state.lineage.hex()}` |",
        f"| outer steps | {state.outer_step:,} of {config.outer.steps:,}, each of {config.inner.steps:,} inner steps |",
        f"| tokens | {state.tokens:,} (bytes of text) |",
        f"| data | {config.data.source} |",
        "",
        "## Contributors",
        "",
    ]
    contributors = _contributors(run.folder, state)
    if not contributors:
        return "\n".join([*lines, "This peer's log does not say.", ""])
    lines += ["As this peer's log has it:", "", "| peer | outer steps | tokens |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| `{peer}` | {steps:,} | {n:,} |" for peer, steps, n in contributors), ""])


def _contributors(folder: Path, state: State) -> list[tuple[str, int, int]]:
    """Peer, outer steps that it is in, tokens; those with the most tokens first."""
    try:
        # Of a step that was taken again, on another history or after a restart, the last counts.
        taken = {
            event["outer_step"]: (event["members"], event["weights"])
            for event in read_log(folder / EVENTS_FILE)
            if event["event"] == "outer_step_committed" and event["outer_step"] <= state.outer_step
        }
    except OSError:
        return []
    steps, tokens = Counter[str](), Counter[str]()
    for members, weights in taken.values():
        for peer, weight in zip(members, weights, strict=True):
            steps[peer] += 1
            tokens[peer] += weight
    return [(peer, steps[peer], n) for peer, n in tokens.most_common()]
