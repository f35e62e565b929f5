"""Bytes on the wire of a real run against data-parallel float32, from the peers' own counters.

    python benchmarks/communication.py [--inner-steps 100] [--outer-steps 8] [--peers 4]

Starts the demo's peers, real processes on loopback, without kills and newcomers, and reads their event logs. A step's
bytes are all that its peers sent in rounds, payload and control with framing. Against them stands a float32 ring
all-reduce of the gradients after each of the inner steps that the committed tokens stand for: 2 (n - 1) / n * 4 bytes a
parameter and member. The first outer step is shown and left out of the median: peers that were still starting when the
first was done hand in a part of their inner steps.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from runtime.config import RunConfig
from runtime.demo.run import DemoOptions, run_demo
from runtime.log import commits, read_log
from runtime.training.model import PRESETS, build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inner-steps", type=int, default=100)
    parser.add_argument("--outer-steps", type=int, default=8)
    parser.add_argument("--peers", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        demo = DemoOptions(
            peers=options.peers,
            outer_steps=options.outer_steps,
            inner_steps=options.inner_steps,
            kill=False,
            late_joiner=False,
            quorum=options.peers,
            workdir=workdir,
        )
        if run_demo(demo):
            sys.exit("the run failed: see above")
        rows = list(measure(sorted(workdir.glob("peer-*/events.jsonl"))))
    print("\n| outer step | members | inner steps | MB sent by all | over the payload | fewer bytes |")
    print("|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['outer_step']} | {row['members']} | {row['inner_steps']:.0f} | {row['bytes_sent'] / 1e6:.3f} "
            f"| {row['over_payload']:+.2%} | {row['ratio']:.1f}x |"
        )
    print(f"\nmedian from the second step on: {(typical := median(row['ratio'] for row in rows[1:])):.1f}x\n")
    print(json.dumps({"benchmark": "communication", **vars(options), "median_ratio": typical, "steps": rows}))


def measure(logs: list[Path]) -> list[dict[str, float]]:
    """For each outer step, what it took; from the logs of all peers."""
    config = RunConfig()
    n_parameters = sum(parameter.numel() for parameter in build_model(config.model.preset, 0).parameters())
    tokens_per_step = config.inner.batch * PRESETS[config.model.preset].context
    bytes_sent: dict[int, int] = defaultdict(int)
    weights: dict[int, list[int]] = {}
    for log in logs:
        before = 0
        for event in commits(read_log(log)):
            bytes_sent[event["outer_step"]] += event["bytes_sent"] - before
            before = event["bytes_sent"]
            weights[event["outer_step"]] = event["weights"]
    rows = []
    for step, sent in sorted(bytes_sent.items()):
        n = len(weights[step])
        inner_steps = sum(weights[step]) / tokens_per_step
        data_parallel = inner_steps * 2 * (n - 1) / n * 4 * n_parameters
        # Each member sends its other shards once and its own result n - 1 times: 2 (n - 1) / n bytes a parameter.
        payload = 2 * (n - 1) * n_parameters
        rows.append(
            {
                "outer_step": step,
                "members": n,
                "inner_steps": inner_steps,
                "bytes_sent": sent,
                "over_payload": sent / payload - 1,
                "ratio": data_parallel / sent,
            }
        )
    return rows


if __name__ == "__main__":
    main()
