"""What a run takes of its peers before there is one: memory, disk, bytes and time, each with the words of its formula.

P is the number of parameters, n the number of peers, and a payload the P parameters as the codec has them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.averaging.codecs.base import vector_bytes
from runtime.averaging.codecs.choice import AUTO, CHOICES
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.results import KEPT_BYTES, LEAST_KEPT, MOST_KEPT
from runtime.averaging.shards import FAST_BYTES_PER_S, Link, least_time, shard_parts
from runtime.checkpoints import bytes_beside, bytes_that_stay
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.limits import Limits
from runtime.monitor.words import size_words
from runtime.training.model import PRESETS

# Median of four peers on loopback (benchmarks/README.md); elsewhere it is what a message takes there and back.
FORMING_S = 0.007
# Above some 600 Mbit/s two cores for four peers were what a round waited for (benchmarks/README.md).
PROCESSOR_BYTES_PER_S = 75e6
# A peer that trains for four fifths of its time.
GOOD_UTILISATION = 0.8
# Checkpoints that stay by default, and the one that is being written.
CHECKPOINTS_ON_DISK = 3
# States that others download at the same time, at most.
MOST_JOINING = 2


# What Python, PyTorch, p2pd and the links hold before there is a model: resident, of a peer that trains `toy`.
PROCESS_BYTES = 450_000_000
# Beside its tensors a checkpoint has a few names and numbers.
CHECKPOINT_HEAD_BYTES = 1 << 16
# Some thousands of outer steps of events, and the history.
LOG_BYTES = 10_000_000
# As in the table of docs/volunteer.md: what a peer holds hardly depends on it.
USUAL_PEERS = 4


@dataclass(frozen=True)
class Figure:
    """One number of a plan. The unit is the end of its key: ``_bytes``, ``_s``, ``_ratio``, or a plain count."""

    key: str
    title: str
    value: float
    formula: str
    """In words, with the numbers that it has here."""


@dataclass(frozen=True)
class Plan:
    figures: tuple[Figure, ...]
    warnings: tuple[str, ...]
    """Sentences: what will not work, or not well."""

    def __getitem__(self, key: str) -> float:
        """Raises: KeyError for a figure that this plan has not."""
        return {figure.key: figure.value for figure in self.figures}[key]


def make_plan(
    config: RunConfig,
    up_bytes_per_s: Sequence[float],
    down_bytes_per_s: Sequence[float],
    step_s: float | None,
    trains: bool = True,
) -> Plan:
    """Args: the links, one of each peer, and how long an inner step takes, None if that is not known.

    Memory and disk are those of a peer that trains, or of an auxiliary one.
    """
    n, n_parameters = len(up_bytes_per_s), PRESETS[config.model.preset].n_parameters
    name = CHOICES[0] if config.averaging.codec == AUTO else config.averaging.codec
    payload = vector_bytes(codec_named(name), n_parameters)
    links = [
        Link(min(up, FAST_BYTES_PER_S), min(down, FAST_BYTES_PER_S))
        for up, down in zip(up_bytes_per_s, down_bytes_per_s, strict=True)
    ]
    size = [
        Figure("parameters", "parameters P", n_parameters, f"of model.preset = {config.model.preset}, counted"),
        *_memory(n_parameters, payload, n, codec_named(name).lossy, trains),
        *_disk(n_parameters, codec_named(name).lossy, trains),
    ]
    traffic = _traffic(config, n_parameters, payload, name, n)
    times = _times(config, payload, links, 8 * n_parameters, step_s)
    plan = Plan((*size, *traffic, *times), ())
    return Plan(plan.figures, tuple(_warnings(config, plan, links, step_s)))


def memory_needed(config: RunConfig, device: str) -> int:
    """Bytes of the machine's memory that a peer holds, at least: what a batch needs is not in it.

    Args: device is what the peer trains on, empty for an auxiliary one.
    """
    plan = usual_plan(config, bool(device))
    return round(PROCESS_BYTES + plan["host_memory_bytes"] + (plan["device_memory_bytes"] if device == "cpu" else 0))


def checkpoint_needed(config: RunConfig, device: str) -> int:
    """Bytes of one checkpoint, at most."""
    return round(usual_plan(config, bool(device))["checkpoint_bytes"]) + CHECKPOINT_HEAD_BYTES


def usual_plan(config: RunConfig, trains: bool) -> Plan:
    """What a peer needs of its machine is nearly the same whatever the links are, and however many there are."""
    links = [FAST_BYTES_PER_S] * USUAL_PEERS
    return make_plan(config, links, links, None, trains)


def check_fits(config: RunConfig, limits: Limits, device: str, folder: Path) -> None:
    """Whether a peer can take part in a run with what its user lends, before it takes any of it.

    Args:
        device: what the peer trains on, empty for an auxiliary one.
        folder: the peer's, with what is in it already.
    Raises: ConfigError, a sentence for the user.
    """
    memory = memory_needed(config, device)
    if limits.memory_bytes and memory > limits.memory_bytes:
        have, need = size_words(limits.memory_bytes), size_words(memory)
        raise ConfigError(
            f"this run needs {need} of memory, and what a batch takes, but --memory is {have}: raise it, or join a run "
            "with a smaller model"
        )
    # A new one is whole before an old one goes.
    checkpoint = checkpoint_needed(config, device)
    disk = checkpoint + max(checkpoint + max(LOG_BYTES, bytes_that_stay(folder)), bytes_beside(folder))
    if limits.disk_bytes and disk > limits.disk_bytes:
        have, need = size_words(limits.disk_bytes), size_words(disk)
        raise ConfigError(
            f"this run needs {need} of the disk, two checkpoints and the logs, but --disk is {have}: raise it, or "
            "join a run with a smaller model"
        )


def _memory(n_parameters: int, payload: int, n: int, lossy: bool, trains: bool) -> list[Figure]:
    """The table of docs/wire.md for one peer."""
    P = n_parameters
    n_kept = max(LEAST_KEPT, min(MOST_KEPT, KEPT_BYTES // payload))
    lost = 4 * P if lossy and trains else 0
    nothing = "nothing: the codec is exact" if trains else "nothing: it sends nothing"
    mean = "contribution and last mean" if trains else "last mean"
    parts = [
        Figure("state_memory_bytes", "  anchor and outer momentum", 8 * P, "2 x 4 bytes x P"),
        Figure("mean_memory_bytes", f"  {mean}", 4 * (1 + trains) * P, f"{1 + trains} x 4 bytes x P"),
        Figure(
            "feedback_memory_bytes", "  what the codec lost", lost, "4 bytes x P: error feedback" if lost else nothing
        ),
        Figure(
            "codec_memory_bytes",
            "  shares and results of a round",
            payload * (1 + trains) + payload * (n - 1) / n,
            f"payload x ({'own shares 1 + ' if trains else ''}results 1 + others' shares (n - 1) / n), n = {n}",
        ),
        Figure("results_memory_bytes", "  results for latecomers", n_kept * payload, f"payload x {n_kept} outer steps"),
        _saved("saving_memory_bytes", "  what is being saved", P, lossy, trains, local=False),
    ]
    host = sum(part.value for part in parts)
    return [
        Figure(
            "device_memory_bytes",
            "memory of the device",
            16 * P if trains else 0,
            "4 x 4 bytes x P: parameters, gradients, AdamW's two moments; and what a batch needs, which is not in it"
            if trains
            else "nothing: it trains nothing",
        ),
        Figure("host_memory_bytes", "memory of the machine", host, f"the sum of these, {host / P:.1f} bytes x P:"),
        *parts,
        Figure(
            "joining_memory_bytes",
            "  and while others join",
            MOST_JOINING * 8 * P,
            f"{MOST_JOINING} states at most x 8 bytes x P; not in the sum",
        ),
    ]


def _disk(n_parameters: int, lossy: bool, trains: bool) -> list[Figure]:
    checkpoint = _saved("checkpoint_bytes", "disk: a checkpoint", n_parameters, lossy, trains, local=True)
    return [
        checkpoint,
        Figure(
            "disk_bytes",
            "disk: as --keep 2 has it",
            CHECKPOINTS_ON_DISK * checkpoint.value,
            "a checkpoint x (2 kept + 1 being written)",
        ),
    ]


def _saved(key: str, title: str, n_parameters: int, lossy: bool, trains: bool, local: bool) -> Figure:
    """Of a state that is saved. Args: local if the local parameters, which are the trainer's, count as well."""
    parts = {
        "state": 8,
        "moments": 8 * trains,
        "local parameters": 4 * (trains and local),
        "what was lost": 4 * (trains and lossy),
    }
    each = sum(parts.values())
    words = ", ".join(f"{what} {n_bytes}" for what, n_bytes in parts.items() if n_bytes)
    return Figure(key, title, each * n_parameters, f"at most {each} bytes x P: {words}")


def _traffic(config: RunConfig, n_parameters: int, payload: int, codec: str, n: int) -> list[Figure]:
    passes = 2 * (n - 1) / n
    told = f"{codec}, as averaging.codec = auto has it on most links" if config.averaging.codec == AUTO else codec
    bits = 8 * payload / n_parameters
    parallel = config.inner.steps * passes * 4 * n_parameters
    figures = [
        Figure("payload_bytes", "a payload", payload, f"P x {bits:.3f} bits / 8: {told}, scales included"),
        Figure(
            "round_bytes",
            "a round, sent by a peer",
            passes * payload,
            f"payload x 2 (n - 1) / n, n = {n}, the mean of all; as much is received, and up to 4 % more is overhead",
        ),
        Figure(
            "run_bytes",
            "the run, sent by a peer",
            config.outer.steps * passes * payload,
            f"a round x {config.outer.steps:,} outer steps",
        ),
        Figure(
            "data_parallel_bytes",
            "data-parallel float32 instead",
            parallel,
            f"for each outer step {config.inner.steps:,} inner steps x 4 bytes x P x 2 (n - 1) / n",
        ),
    ]
    if n > 1:
        ratio = parallel / (passes * payload)
        figures.append(Figure("saving_ratio", "that is fewer bytes by", ratio, "data-parallel / a round"))
    return figures


def _times(config: RunConfig, payload: int, links: Sequence[Link], state: int, step_s: float | None) -> list[Figure]:
    n = len(links)
    alone = n == 1
    parts = shard_parts(links)
    round_s = FORMING_S + (0.0 if alone else payload * least_time(links, parts))
    slowest = "no link: there is one peer" if alone else "payload x the linear program's least time for these links"
    figures = [
        Figure(
            "round_s",
            "a round",
            round_s,
            f"{slowest} + {FORMING_S * 1000:.0f} ms to form the group; real rounds took 1.1 to 1.3 times as long",
        )
    ]
    if not alone:
        each = min(min(one.down for one in links), sum(one.up for one in links))
        figures.append(
            Figure(
                "join_s",
                "joining: the state",
                state / each,
                "8 bytes x P / the slowest download, or all uploads together where they are slower; and then a round",
            )
        )
    if step_s is None:
        wanted = GOOD_UTILISATION / (1 - GOOD_UTILISATION) * round_s / config.inner.steps
        figures.append(
            Figure(
                "wanted_step_s",
                f"for {GOOD_UTILISATION:.0%} utilisation a step of",
                wanted,
                f"4 x a round / {config.inner.steps:,} inner steps; --step-s says how long yours takes",
            )
        )
        return figures
    train_s = config.inner.steps * step_s
    return [
        *figures,
        Figure("train_s", "training between rounds", train_s, f"{config.inner.steps:,} inner steps x {step_s:g} s"),
        Figure("utilisation_ratio", "utilisation", train_s / (train_s + round_s), "training / (training + a round)"),
        Figure(
            "run_s",
            "the run",
            config.outer.steps * (train_s + round_s),
            f"{config.outer.steps:,} outer steps x (training + a round)",
        ),
    ]


def _warnings(config: RunConfig, plan: Plan, links: Sequence[Link], step_s: float | None) -> list[str]:
    n, said = len(links), []
    if config.averaging.quorum > n:
        said.append(f"averaging.quorum is {config.averaging.quorum}: with {n} peers no outer step is ever taken")
    if step_s is not None and plan["utilisation_ratio"] < GOOD_UTILISATION:
        share = GOOD_UTILISATION / (1 - GOOD_UTILISATION)
        steps = math.ceil(share * plan["round_s"] / step_s)
        said.append(f"peers wait for more than a fifth of the time: inner.steps = {steps:,} makes it a fifth")
    parts = shard_parts(links)
    if n > 2 and 0.0 in parts and len(set(links)) > 1:
        said.append(f"links too slow to reduce anything, whose peers only contribute: {parts.count(0.0)} of {n}")
    if n > 1 and min(min(one.up, one.down) for one in links) > PROCESSOR_BYTES_PER_S:
        said.append(
            "above some 600 Mbit/s a round waits for the processor, not for the links: it takes longer than this"
        )
    return said
