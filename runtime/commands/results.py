"""``atoll runs``, ``eval``, ``generate`` and ``export``: what this disk has of a run, and what the model has learnt."""

import codecs
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from runtime.errors import ConfigError
from runtime.places import data_home
from runtime.shelf import find_run, kept_runs

MOST_BYTES, MOST_SEED = 1 << 20, (1 << 63) - 1

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name, beginning of the run id, or folder of a peer.")]


def runs() -> int:
    """List the runs that this disk has something of."""
    known = kept_runs()
    if not known:
        print(
            f"There is no run in {data_home()}, none runs, and none was started here (*.peer): atoll join INVITE, or "
            "atoll init and atoll start, begins one. A folder that --folder named is shown while its peer runs."
        )
        return 0
    table = Table("run", "run id", "outer steps", "tokens", "model", "folder", box=None, pad_edge=False)
    for run in known:
        config, newest = run.manifest.config, run.newest
        done = f"{newest.outer_step if newest else 0} of {config.outer.steps}"
        tokens = f"{newest.tokens if newest else 0:,}"
        table.add_row(config.name, run.manifest.run_id[:12], done, tokens, config.model.preset, str(run.folder))
    # Nothing is cut off where the output is not a terminal.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)
    return 0


def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Text file, folder or glob.", show_default="the run's validation text"),
    ] = None,
) -> int:
    """Measure the loss of a run's newest checkpoint on a text."""
    if data == "":
        raise ConfigError("The name after --data is empty: name a text file, a folder or a glob")
    kept = find_run(run)
    from runtime.export import trained_model
    from runtime.training.data import load_corpus, load_text
    from runtime.training.inference import loss_on

    section = kept.manifest.config.data
    if data is None and section.source == "files":
        raise ConfigError("the run trains on the volunteers' own text: name one with --data")
    model, state = trained_model(kept, _tell_torn)
    text = load_text(data) if data else load_corpus(section.source, None, section.validation_fraction).validation
    try:
        loss = loss_on(model, text)
    except ValueError as error:
        raise ConfigError(f"{error}: name a longer one with --data") from None
    bits = loss / math.log(2)
    print(f"outer step {state.outer_step}: {loss:.4f} nats/byte, {bits:.4f} bits/byte, on {text.numel():,} bytes")
    return 0


def generate(
    run: Run,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the text begins with.")] = "",
    n_bytes: Annotated[int, typer.Option("--bytes", metavar="N", help="Bytes to make.")] = 400,
    temperature: Annotated[float, typer.Option(metavar="T", help="0: always the likeliest byte.")] = 0.8,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Draw alike.", show_default="another each time")] = None,
) -> int:
    """Let a run's newest checkpoint go on from a prompt."""
    if not 1 <= n_bytes <= MOST_BYTES:
        raise ConfigError(f"--bytes is {n_bytes}, but must be from 1 to {MOST_BYTES}")
    if not (math.isfinite(temperature) and 0 <= temperature <= 100):
        raise ConfigError(f"--temperature is {temperature:g}, but must be from 0 to 100")
    if seed is not None and not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"--seed is {seed}, but must be from 0 to {MOST_SEED}")
    kept = find_run(run)
    import torch

    from runtime.export import trained_model
    from runtime.training.inference import continuation

    model, _ = trained_model(kept, _tell_torn)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    # A terminal that has not all signs shows another in their place.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(prompt, end="", flush=True)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for byte in continuation(model, prompt.encode("utf-8", "surrogateescape"), n_bytes, temperature, generator):
        print(_shown(decoder.decode(byte)), end="", flush=True)
    print(_shown(decoder.decode(b"", final=True)))
    return 0


def export(
    run: Run,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for it.", show_default="NAME-STEP")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="safetensors.")] = "safetensors",
) -> int:
    """Write a run's newest weights and a card, for others to use."""
    if form != "safetensors":
        raise ConfigError(f"--format is {form!r}, but must be safetensors")
    kept = find_run(run)
    from runtime.export import export as export_run

    output, state = export_run(kept, output or _file_name(kept.manifest.config.name), _tell_torn)
    print(f"Wrote {output}: model.safetensors, config.json and README.md, after outer step {state.outer_step}")
    return 0


def _tell_torn(checkpoint: Path, reason: str) -> None:
    print(f"atoll: the checkpoint {checkpoint} cannot be used, an older one is: {reason}", file=sys.stderr)


def _file_name(name: str) -> str:
    """Of a run's name, which its organiser has chosen, what is safe in a file's."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in name) or "run"


def _shown(text: str) -> str:
    """Nothing that a model makes is to move the cursor."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)
