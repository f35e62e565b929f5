"""All-reduce on loopback, side by side: Atoll, hivemind's averager, Gloo. Interleaved rounds in one call.

    python benchmarks/allreduce.py [--peers 2 4 8] [--millions 10 50] [--rounds 7]

Each system's peers are processes of their own with one thread each. All systems of a row live at the same time and take
turns, round by round. A round is from the moment when all peers are ready until the last one has the mean; Atoll's
has forming the group, agreement and commit in it, hivemind's begins when its group has been formed. CPU-seconds are of
all peers and of the libp2p daemons together. Gloo is plain TCP in C++, does not encrypt, and dies with a peer. torchft
is left out: its process group on Gloo is Gloo.
"""

import argparse
import json
from contextlib import ExitStack
from statistics import median, quantiles

from collective import Group, Round

SYSTEMS = ("atoll:int8", "atoll:float32", "hivemind:8bit", "hivemind:float32", "gloo:float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--millions", type=float, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    options = parser.parse_args()
    print("| peers | parameters | system | median s | p90 s | CPU s a round | times hivemind 8-bit |")
    print("|--:|--:|---|--:|--:|--:|--:|")
    rows = []
    for n_peers in options.peers:
        for millions in options.millions:
            rows += measure(options.systems, n_peers, round(millions * 1e6), options.rounds)
    print()
    print(json.dumps({"benchmark": "allreduce", **vars(options), "rows": rows}))


def measure(systems: list[str], n_peers: int, n_elements: int, n_rounds: int) -> list[dict[str, object]]:
    seen: dict[str, list[Round]] = {system: [] for system in systems}
    with ExitStack() as stack:
        groups = [stack.enter_context(Group(system, n_peers, n_elements)) for system in systems]
        # The first round warms up: connections, pages, code.
        for number in range(n_rounds + 1):
            for group in groups:
                # While one is measured the others wait: hivemind looks for its next group right after a round.
                for other in groups:
                    other.until_ready()
                one = group.round()
                if number:
                    seen[group.system].append(one)
    rows: list[dict[str, object]] = []
    base = median(one.seconds for one in seen.get("hivemind:8bit", [])) if "hivemind:8bit" in seen else None
    for system, rounds in seen.items():
        seconds = sorted(one.seconds for one in rounds)
        p90 = quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0]
        cpu_s = median(one.cpu_s for one in rounds)
        times = f"{base / median(seconds):.1f}x faster" if base and base >= median(seconds) else "-"
        print(
            f"| {n_peers} | {n_elements / 1e6:g} M | {system} | {median(seconds):.3f} | {p90:.3f} | {cpu_s:.2f} "
            f"| {times} |",
            flush=True,
        )
        rows.append(
            {
                "peers": n_peers,
                "elements": n_elements,
                "system": system,
                "median_s": median(seconds),
                "p90_s": p90,
                "cpu_s": cpu_s,
            }
        )
    return rows


if __name__ == "__main__":
    main()
