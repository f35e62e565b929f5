"""Run files to begin with: what ``atoll init --preset`` writes, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.config import AveragingSection, InnerSection, ModelSection, OuterSection, RunConfig


@dataclass(frozen=True)
class Preset:
    words: str
    """What it is for, in a line."""
    config: RunConfig
    reasons: Mapping[str, str]
    """By key of the run file, why it has its value."""


DILOCO = "arXiv:2311.08105"

RUN_PRESETS: Mapping[str, Preset] = {
    "toy": Preset(
        "136 thousand parameters; one laptop ends it in seconds: to see that everything works",
        RunConfig(),
        {
            "inner.steps": "few, so that there is something to see each second.",
            "averaging.quorum": "1, so that one peer alone goes on.",
        },
    ),
    "cpu-small": Preset(
        "1.9 million parameters; laptops without a GPU, and any link",
        RunConfig(
            model=ModelSection(preset="small"),
            inner=InnerSection(steps=50, batch=8, learning_rate=1e-3, warmup_steps=200),
            outer=OuterSection(steps=200),
            averaging=AveragingSection(quorum=2),
        ),
        {
            "model.preset": "what a laptop's processor trains beside other work.",
            "inner.steps": "a round moves 2 to 4 MB a peer; fifty steps are long against that on a link of 10 Mbit/s.",
            "inner.batch": "eight sequences of 256 bytes keep an inner step short: whoever is to stop soon can.",
            "inner.learning_rate": "a third of the toy's: wider models want smaller steps.",
            "inner.warmup_steps": "four of the outer steps.",
            "outer.steps": "10,000 inner steps for each peer.",
            "averaging.quorum": "2, so that nobody trains on alone and takes the run along; 1 if one is to begin it.",
        },
    ),
    "gpu-100m": Preset(
        "123 million parameters; a GPU of 16 GB each, links of 50 Mbit/s up or more",
        RunConfig(
            model=ModelSection(preset="large"),
            inner=InnerSection(steps=500, batch=16, learning_rate=4e-4, warmup_steps=1000),
            outer=OuterSection(steps=200, momentum_ramp_steps=20),
            averaging=AveragingSection(quorum=2),
        ),
        {
            "model.preset": "the size of GPT-2 small, of which a byte-level model needs it wider.",
            "inner.steps": f"as many as in most of the DiLoCo paper ({DILOCO}), since a round moves 123 MB or more "
            "each way, half a minute at 50 Mbit/s: see atoll plan.",
            "inner.batch": "sixteen thousand bytes an inner step; less where a GPU has no room for it.",
            "inner.learning_rate": f"DiLoCo's for 150 million parameters ({DILOCO}).",
            "inner.warmup_steps": "1,000, as there.",
            "outer.steps": "100,000 inner steps for each peer.",
            "outer.momentum_ramp_steps": "a tenth of the run.",
            "averaging.codec": "a quarter of float32's bytes; fp4 halves them again and costs some quality.",
            "averaging.quorum": "2, so that nobody trains on alone.",
        },
    ),
    "gpu-1b": Preset(
        "1.1 billion parameters; a GPU of 80 GB and 80 GB of memory each, links of 200 Mbit/s",
        RunConfig(
            model=ModelSection(preset="xl"),
            inner=InnerSection(steps=500, batch=16, learning_rate=2e-4, warmup_steps=2000),
            outer=OuterSection(steps=200, momentum_ramp_steps=20),
            averaging=AveragingSection(quorum=2),
        ),
        {
            "model.preset": "two peers on one H100 have taken four outer steps of this size, and nobody more.",
            "inner.steps": f"as many as in most of the DiLoCo paper ({DILOCO}): a round moves 1.1 GB or more each way.",
            "inner.batch": "sixteen thousand bytes an inner step; less where a GPU has no room for it.",
            "inner.learning_rate": "GPT-3's for 1.3 billion parameters (arXiv:2005.14165).",
            "inner.warmup_steps": "four of the outer steps.",
            "outer.steps": "100,000 inner steps for each peer.",
            "averaging.codec": "a quarter of float32's bytes; fp4 halves them again. Streaming DiLoCo lost nothing by "
            "it (arXiv:2501.18512), but nobody has measured it with Atoll at this size.",
            "averaging.quorum": "2, so that nobody trains on alone.",
        },
    ),
}
