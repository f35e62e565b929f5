"""Does averaging help? Validation loss at equal inner steps, with and without the swarm, paired on the seed.

    python benchmarks/convergence.py [--seeds 0 1 2] [--steps 500] [--peers 4]

The arms, each on the toy model and the sources of the running Python's standard library:

    alone           one peer with plain AdamW and no outer step
    diloco-float32  all peers, an outer step every 25 inner steps, the momentum ramp as long as the run
    diloco-int8     the same, contributions and their mean in the int8 codec
    data-parallel   the averaged gradient of all peers' batches at every inner step: 25 times the synchronisation

With the defaults DiLoCo should end at least 0.08 nats per byte under one peer alone, and int8 within 0.01 of float32,
on every seed. The real replica, outer optimizer and codec run here; only the network is left out.

Progress goes to standard error; a Markdown table and one line of JSON go to standard output.
"""

import argparse
import json
import multiprocessing
import os
import platform
import queue
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch

from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.feedback import Feedback
from runtime.averaging.payload import OwnShare
from runtime.averaging.reduce import Reduction
from runtime.averaging.results import Result
from runtime.config import InnerSection, ModelSection, OuterSection, RunConfig
from runtime.training.data import Corpus, load_corpus
from runtime.training.replica import Replica

ARMS = ("diloco-float32", "diloco-int8", "data-parallel", "alone")
INNER_STEPS = 25
BATCH = 16
# 6,400 windows of 64 bytes are nearly all of the validation text (0.42 MB).
VALIDATION_WINDOWS = 6400

DILOCO_MARGIN = 0.08
INT8_MARGIN = 0.01


@dataclass(frozen=True)
class Job:
    arm: str
    seed: int
    steps: int
    peers: int

    @property
    def work(self) -> int:
        """Batches of 16 sequences to train on: what the time left is estimated from."""
        return self.steps if self.arm == "alone" else self.steps * self.peers


@dataclass(frozen=True)
class Progress:
    job: Job
    step: int


_reports: "multiprocessing.Queue[Progress]"


def start_worker(reports: "multiprocessing.Queue[Progress]") -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)


def run_job(job: Job) -> float:
    """The validation loss at the end, in nats per byte."""
    corpus = load_corpus("stdlib", None, RunConfig().data.validation_fraction)
    if job.arm == "alone":
        return _without_outer_steps(job, corpus, BATCH)
    if job.arm == "data-parallel":
        return _without_outer_steps(job, corpus, BATCH * job.peers)
    return _diloco(job, corpus, job.arm.removeprefix("diloco-"))


def _without_outer_steps(job: Job, corpus: Corpus, batch: int) -> float:
    config = RunConfig(
        model=ModelSection(preset="toy", seed=job.seed),
        inner=InnerSection(steps=job.steps, batch=batch),
        outer=OuterSection(steps=1),
    )
    replica = Replica(config, corpus, device="cpu", peer_seed=_peer_seed(job.seed, 0))
    for step in range(INNER_STEPS, job.steps + 1, INNER_STEPS):
        replica.train(lambda until=step: replica.inner_steps_done >= until)  # type: ignore[misc]
        _reports.put(Progress(job, step))
    replica.load_state(1, replica.anchor_P - replica.pseudo_gradient(), replica.momentum_P)
    return replica.validation_loss(VALIDATION_WINDOWS // batch)


def _diloco(job: Job, corpus: Corpus, codec_name: str) -> float:
    """Every contribution is encoded once, and so is their mean, as in a round of the swarm."""
    codec = codec_named(codec_name)
    outer_steps = job.steps // INNER_STEPS
    config = RunConfig(
        model=ModelSection(preset="toy", seed=job.seed),
        inner=InnerSection(steps=INNER_STEPS, batch=BATCH),
        outer=replace(OuterSection(), steps=outer_steps, momentum_ramp_steps=outer_steps),
    )
    peers = [Replica(config, corpus, device="cpu", peer_seed=_peer_seed(job.seed, index)) for index in range(job.peers)]
    n_elements = peers[0].n_elements
    feedbacks, mean_P = [Feedback() for _ in peers], torch.empty(n_elements)
    for outer_step in range(outer_steps):
        weights = [peer.train(lambda: False).tokens for peer in peers]
        own = [feedback.contribution(peer.pseudo_gradient()) for peer, feedback in zip(peers, feedbacks, strict=True)]
        shares = {index: OwnShare(codec, own_P) for index, own_P in enumerate(own)}
        result = Result(codec, n_elements, len(peers), 1, mean_P)
        Reduction(codec, n_elements, weights, range(len(peers)), result).advance(shares)
        for index, (peer, feedback) in enumerate(zip(peers, feedbacks, strict=True)):
            feedback.settle(codec, own[index], (0, n_elements), {0: shares[index]})
            peer.apply_outer_step(mean_P)
        _reports.put(Progress(job, (outer_step + 1) * INNER_STEPS))
    if len({peer.state_digest() for peer in peers}) != 1:
        raise RuntimeError("the peers' anchors differ")
    return peers[0].validation_loss(VALIDATION_WINDOWS // BATCH)


def _peer_seed(seed: int, index: int) -> int:
    return 1000 * seed + index


def run_all(jobs: list[Job], workers: int) -> dict[Job, float]:
    """Run the jobs in as many processes, telling standard error how far they are."""
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    reports: multiprocessing.Queue[Progress] = context.Queue()
    started = time.monotonic()
    done = dict.fromkeys(jobs, 0.0)
    total_work = sum(job.work for job in jobs)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(reports,)) as pool:
        futures = {job: pool.submit(run_job, job) for job in jobs}
        while not all(future.done() for future in futures.values()):
            try:
                report = reports.get(timeout=1.0)
            except queue.Empty:
                continue
            done[report.job] = report.job.work * report.step / report.job.steps
            elapsed_s = time.monotonic() - started
            left_s = elapsed_s * (total_work / sum(done.values()) - 1)
            name = f"seed {report.job.seed} {report.job.arm}"
            progress = f"step {report.step}/{report.job.steps}"
            print(f"{name:<24} {progress:<14} about {left_s:.0f} s left", file=sys.stderr, flush=True)
        return {job: future.result() for job, future in futures.items()}


def markdown_table(losses: dict[int, dict[str, float]]) -> str:
    """One row a seed: the losses, then the differences on that seed."""
    columns = ("alone", "diloco-float32", "diloco-int8", "data-parallel")
    header = ["seed", *columns, "float32 - alone", "int8 - alone", "int8 - float32"]
    rows = [header, ["---:"] * len(header)]
    for seed, loss in losses.items():
        row = [str(seed), *(f"{loss[arm]:.4f}" for arm in columns)]
        for arm, reference in (
            ("diloco-float32", "alone"),
            ("diloco-int8", "alone"),
            ("diloco-int8", "diloco-float32"),
        ):
            row.append(f"{loss[arm] - loss[reference]:+.4f}")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Validation loss at equal inner steps, with and without averaging.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help=f"inner steps, a multiple of {INNER_STEPS}")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    arguments = parser.parse_args()
    if arguments.steps < INNER_STEPS or arguments.steps % INNER_STEPS or arguments.peers < 1:
        parser.error(f"--steps must be a multiple of {INNER_STEPS} and --peers at least 1")

    started = time.monotonic()
    jobs = [Job(arm, seed, arguments.steps, arguments.peers) for seed in arguments.seeds for arm in ARMS]
    results = run_all(jobs, min(arguments.workers, len(jobs)))
    losses: dict[int, dict[str, float]] = {seed: {} for seed in arguments.seeds}
    for job, loss in results.items():
        losses[job.seed][job.arm] = loss

    print(f"Validation loss in nats per byte after {arguments.steps} inner steps, {arguments.peers} peers:\n")
    print(markdown_table(losses))
    summary = {
        "benchmark": "convergence",
        "steps": arguments.steps,
        "peers": arguments.peers,
        "losses": losses,
        "diloco_under_alone": all(
            loss[arm] <= loss["alone"] - DILOCO_MARGIN
            for loss in losses.values()
            for arm in ("diloco-float32", "diloco-int8")
        ),
        "int8_near_float32": all(
            abs(loss["diloco-int8"] - loss["diloco-float32"]) <= INT8_MARGIN for loss in losses.values()
        ),
        "seconds": round(time.monotonic() - started, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
