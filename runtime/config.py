"""The run file's contents: everything that must be equal on every peer. And, apart from it, the peer's own settings.

A string that follows a field is its documentation: it becomes the comment in a run file written by ``atoll init``.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from peers.caps import Caps
from runtime.errors import ConfigError
from runtime.limits import OFF, Limits, parse_hours, parse_rate, parse_size


@dataclass(frozen=True)
class ModelSection:
    preset: str = "toy"
    """Model size: toy (136 thousand parameters), small (1.9 million), medium (10 million), large (123 million) or
    xl (1.1 billion)."""
    seed: int = 0
    """Seed of the initial weights."""


@dataclass(frozen=True)
class DataSection:
    source: str = "stdlib"
    """stdlib: the sources of the running Python's standard library; files: what each volunteer names with --data."""
    validation_fraction: float = 0.05
    """Share of the files kept for validation, never trained on."""


@dataclass(frozen=True)
class InnerSection:
    steps: int = 25
    """Inner steps that a peer takes alone between two outer steps (H in the DiLoCo paper)."""
    batch: int = 16
    """Sequences in one inner step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW; it warms up, then follows a cosine to final_ratio of the peak."""
    final_ratio: float = 0.1
    """Learning rate at the end of the schedule, as a share of the peak."""
    warmup_steps: int = 50
    """Inner steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest L2 norm of a gradient; longer ones are scaled down."""


@dataclass(frozen=True)
class OuterSection:
    steps: int = 20
    """Outer steps in the run: its length, and that of the learning rate schedule."""
    learning_rate: float = 0.7
    """Outer learning rate (DiLoCo uses 0.7)."""
    momentum: float = 0.9
    """Nesterov momentum of the outer optimizer once the ramp is over."""
    momentum_ramp_steps: int = 20
    """Outer steps over which the momentum rises from 0: constant 0.9 loses to one peer alone in short runs."""


@dataclass(frozen=True)
class AveragingSection:
    codec: str = "int8"
    """How contributions travel: int8 (a quarter of the bytes), float32, float16, codebook8 or fp4; auto is int8 or, on
    links so fast that it takes less time, float32. See docs/wire.md."""
    quorum: int = 1
    """Fewest contributions that may be committed."""
    on_partition: str = "fork"
    """When the peers are cut in two. fork: each side with a quorum goes on, and the lighter one moves over to the
    heavier when they meet again; stop: only a side with more than half of the last outer step's group goes on."""


@dataclass(frozen=True)
class RunConfig:
    name: str = "atoll"
    """A name for people; the run is identified by its run id."""
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    inner: InnerSection = field(default_factory=InnerSection)
    outer: OuterSection = field(default_factory=OuterSection)
    averaging: AveragingSection = field(default_factory=AveragingSection)


@dataclass(frozen=True)
class PeerConfig:
    """This machine's own business. Nothing here can differ in what the run computes."""

    folder: Path
    """Where this peer keeps its state, its event log and its copy of the manifest."""
    key: Path
    """File with the peer's private Ed25519 key, mode 0600."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    config: Path | None = None
    """A peer file: TOML with these flags as keys, ``up = "2MB/s"``. Without it ``peer.toml`` in the folder is read if
    there is one. What the command line says comes before it."""
    data: str | None = None
    """Text file, folder or glob to train on, where the run's data.source is files."""
    host: str = "0.0.0.0"
    """IP address to listen on: all interfaces, since others have to reach a peer."""
    port: int = 0
    """TCP port to listen on; 0 takes the one that the folder's peer had before, or else a free one."""
    up: str = OFF
    """What shares, results and states may take of the link, as its device counts them: 2MB/s, 500kB/s or 10Mbit/s."""
    down: str = OFF
    """What they may bring over the link."""
    threads: int = 0
    """CPU threads for training; 0 leaves the choice to PyTorch."""
    memory: str = OFF
    """Memory of the machine that the peer may hold: 4GB. A run that needs more is refused, and a peer that comes to
    hold more pauses."""
    disk: str = OFF
    """What the folder may hold: 10GB. A run that needs more is refused; then fewer checkpoints are kept, then no more
    log lines, and at last no checkpoint is written."""
    hours: str = OFF
    """Times of the day at which the peer takes part, by this machine's clock: 22:00-07:00, or several with commas."""
    pause_on_battery: bool = False
    """Pause while the machine runs on its battery."""
    pause_when_busy: bool = False
    """Pause while other programs use more than half of all cores, until they use less than a quarter. What they do with
    a GPU is not looked at."""
    nice: int = 10
    """How far training gives way to other programs, as with the program nice; 0 for not at all."""
    keep: int = 2
    """Checkpoints that stay on disk, the newest; at least one."""
    keep_every: int = 0
    """Of every so many outer steps one checkpoint stays for good, as long as --disk has room; 0 for none."""
    bootstrap: str = ""
    """Addresses of bootstrap peers, with commas between them: they find the others, and stand first in the invite."""
    metrics_port: int = 0
    """Port of 127.0.0.1 on which Prometheus finds this peer's figures; 0 for none. See docs/metrics.md."""
    auxiliary: bool = False
    """Train nothing, but reduce for those who do, and keep the run's state when they go."""
    anew: bool = False
    """Go on from the run's first weights although others have taken part in it before, if none of them is there."""
    exit_with_stdin: bool = False
    """Leave, as on SIGTERM, when standard input ends: a child of ``atoll demo`` does not outlive it."""
    inner_step_s: float = 0.0
    """Seconds that an inner step takes at least, asleep beyond its own work: many peers then share a few cores."""

    @property
    def bootstrap_addresses(self) -> tuple[str, ...]:
        return tuple(self.bootstrap.split(",")) if self.bootstrap else ()

    @property
    def limits(self) -> Limits:
        """In numbers; of a configuration that is valid."""
        return Limits(
            Caps(parse_rate(self.up), parse_rate(self.down)),
            self.threads,
            parse_size(self.memory),
            parse_size(self.disk),
            parse_hours(self.hours),
            self.pause_on_battery,
            self.pause_when_busy,
        )


@dataclass(frozen=True)
class Allowed:
    """The values that a key may have: a test, and the words for it."""

    words: str
    accepts: Callable[[object], bool]


def whole(low: int, high: int) -> Allowed:
    return Allowed(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(words: str, accepts: Callable[[float], bool]) -> Allowed:
    return Allowed(
        f"a number {words}", lambda value: isinstance(value, float) and math.isfinite(value) and accepts(value)
    )


def one_of(*choices: str) -> Allowed:
    return Allowed(f"{', '.join(choices[:-1])} or {choices[-1]}", lambda value: value in choices)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 64 and value.isprintable() and not value.isspace()


def _is_device(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value) is not None


def _is_ip(value: object) -> bool:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return True


POSITIVE = number("above 0 and at most 1000", lambda value: 0 < value <= 1000)
# Whole numbers end at 2**31 - 1 and seeds at 2**63 - 1: what every decoder of a manifest and every generator takes.
COUNT, COUNT_OR_0, SEED = whole(1, 2**31 - 1), whole(0, 2**31 - 1), whole(0, 2**63 - 1)


def text(words: str, parse: Callable[[str], object], accepts: Callable[[Any], bool] = lambda parsed: True) -> Allowed:
    """What ``parse`` makes something of that ``accepts`` takes."""

    def allowed(value: object) -> bool:
        try:
            return isinstance(value, str) and accepts(parse(value))
        except ValueError:
            return False

    return Allowed(words, allowed)


def rate(least: str) -> Allowed:
    words = f"a rate such as 2MB/s, 500kB/s or 10Mbit/s, from {least} to 12.5GB/s, or off"
    return text(words, parse_rate, lambda rate: not rate or parse_rate(least) <= rate <= 12_500_000_000)


def size(least: str) -> Allowed:
    words = f"a size such as 4GB, at least {least}, or off"
    return text(words, parse_size, lambda size: not size or parse_size(least) <= size)


RUN_LIMITS: Mapping[str, Allowed] = {
    "name": Allowed("1 to 64 printable characters", _is_name),
    "model.preset": one_of("toy", "small", "medium", "large", "xl"),
    "model.seed": SEED,
    "data.source": one_of("stdlib", "files"),
    "data.validation_fraction": number("above 0 and below 0.5", lambda value: 0 < value < 0.5),
    "inner.steps": COUNT,
    # A manifest comes from somebody else: no setting of it may take a volunteer's memory by itself.
    "inner.batch": whole(1, 4096),
    "inner.learning_rate": POSITIVE,
    "inner.final_ratio": number("from 0 to 1", lambda value: 0 <= value <= 1),
    "inner.warmup_steps": COUNT_OR_0,
    "inner.weight_decay": number("of at least 0", lambda value: value >= 0),
    "inner.clip_norm": POSITIVE,
    "outer.steps": COUNT,
    "outer.learning_rate": POSITIVE,
    "outer.momentum": number("from 0 up to, but not, 1", lambda value: 0 <= value < 1),
    "outer.momentum_ramp_steps": COUNT_OR_0,
    "averaging.codec": one_of("int8", "auto", "float32", "float16", "codebook8", "fp4"),
    "averaging.quorum": whole(1, 4096),
    "averaging.on_partition": one_of("fork", "stop"),
}

# What can be changed while a peer runs.
CHANGEABLE = ("up", "down", "threads", "memory", "disk", "hours", "pause_on_battery", "pause_when_busy")

PEER_LIMITS: Mapping[str, Allowed] = {
    "device": Allowed("auto, cpu, cuda or cuda:N", _is_device),
    "host": Allowed("an IP address of this machine, or 0.0.0.0 for all of them", _is_ip),
    "port": whole(0, 65535),
    # Below these a frame, or what several peers begin to send at once, takes too much of five seconds.
    "up": rate("125kB/s"),
    "down": rate("500kB/s"),
    "threads": whole(0, 4096),
    "memory": size("100MB"),
    "disk": size("10MB"),
    "hours": text("hours such as 22:00-07:00, or several with commas, or off", parse_hours),
    "nice": whole(0, 19),
    "keep": whole(1, 1000),
    "keep_every": COUNT_OR_0,
    "metrics_port": whole(0, 65535),
    "inner_step_s": number("from 0 to 3600", lambda value: 0 <= value <= 3600),
}


def validate(config: RunConfig | PeerConfig, where: str = "run file") -> None:
    """Check every value of a whole configuration against the one table of limits.

    Raises: ConfigError that starts with ``where`` (a file, or "command line") and names the key, what was found and
    what is allowed.
    """
    for key, allowed in (RUN_LIMITS if isinstance(config, RunConfig) else PEER_LIMITS).items():
        value: object = attrgetter(key)(config)
        if not allowed.accepts(value):
            name = key if isinstance(config, RunConfig) else as_flag(key)
            raise ConfigError(f"{where}: {name} is {shown(value)}, but must be {allowed.words}")


def first_difference(opened: RunConfig, now: RunConfig) -> str:
    """The first setting in which a run file is not any more what its run was opened with; empty if there is none."""
    for key in RUN_LIMITS:
        then, value = attrgetter(key)(opened), attrgetter(key)(now)
        if then != value:
            return f"there {key} is {shown(then)}, in the run file {shown(value)}"
    return ""


def limits_in_force(config: PeerConfig) -> dict[str, object]:
    """As they are written, by the names that they have on the command line."""
    return {as_flag(field): getattr(config, field) for field in CHANGEABLE}


def as_flag(field: str) -> str:
    """How a field of ``PeerConfig`` is written on the command line, behind two dashes, and in a peer file."""
    return field.replace("_", "-")


def shown(value: object) -> str:
    """``value`` as a reader of an error message should see it: on one line and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
