"""Whether a volunteer's limits hold: the busiest five seconds of every network device, of --up and --down.

    python benchmarks/caps.py [--up 5Mbit/s] [--down 8Mbit/s] [--seconds 60]

Four peers on hosts of their own, links as fast as the machine, rounds one after the other. Needs root and iproute2.
Control messages are in the figures, though the limits are not for them. Prints a Markdown table and JSON.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos_swarm import ChaosSwarm
from hosts import Hosts

from runtime.limits import parse_rate

N_PEERS = 4
# A device's counters tell nobody when they move: they are looked at so often.
LOOK_S, WINDOW_S = 0.25, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--up", default="5Mbit/s", metavar="RATE")
    parser.add_argument("--down", default="8Mbit/s", metavar="RATE")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    if not Hosts.available():
        raise SystemExit("what a device counts needs hosts of their own: run this as root, with iproute2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    up_limit, down_limit = (8e-6 * parse_rate(text) for text in (options.up, options.down))
    flags = ("--up", options.up, "--down", options.down)
    folder = Path(tempfile.mkdtemp(prefix="atoll-caps-"))
    with (
        Hosts(N_PEERS) as hosts,
        ChaosSwarm(
            folder, hosts, N_PEERS, inner_steps=4, inner_step_s=0.1, quorum=2, preset="small", flags=flags
        ) as swarm,
    ):
        rows = watch(swarm, [hosts.sent_bytes, hosts.received_bytes], options.seconds)
    print("| peer | up: busiest 5 s, Mbit/s | of the limit | down | of the limit |\n|--:|--:|--:|--:|--:|")
    for number, (up, down) in enumerate(rows, 1):
        print(f"| {number} | {up:.1f} | {up / up_limit:.1%} | {down:.1f} | {down / down_limit:.1%} |")
    print(json.dumps({"benchmark": "caps", **vars(options), "busiest_mbit": rows}))


def watch(swarm: ChaosSwarm, counters: Sequence[Callable[[int], int]], seconds: float) -> list[list[float]]:
    """For each peer and counter, the most Mbit/s in any five seconds."""
    looks: list[tuple[float, list[list[int]]]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        looks.append((time.monotonic(), [[counter(host) for counter in counters] for host in range(N_PEERS)]))
        swarm.read()
        time.sleep(LOOK_S)
    busiest = [[0.0] * len(counters) for _ in range(N_PEERS)]
    for at, before in looks:
        later = next(((then, counts) for then, counts in looks if then >= at + WINDOW_S), None)
        if later is None:
            break
        then, after = later
        for peer in range(N_PEERS):
            for which in range(len(counters)):
                mbit = 8e-6 * (after[peer][which] - before[peer][which]) / (then - at)
                busiest[peer][which] = max(busiest[peer][which], mbit)
    return busiest


if __name__ == "__main__":
    main()
