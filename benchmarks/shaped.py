"""All-reduce over links of a given rate: how much of the link carries payload, and how many bytes it takes. Needs root.

    sudo python benchmarks/shaped.py [--peers 4 8] [--mbit 50 200] [--slow] [--delay-ms 100] [--work-s 5.2]

Each peer is on a host of its own (a network namespace), its link a token bucket each way. TCP over such a bucket
carries 95.5 % of its rate: that is the roof. *Efficiency* is the time that the links need at least for the payload of a
round (the linear program's bound; with equal links 2 (n - 1) / n of the encoded vector each way) over that from "all
are ready" to "the last one has the mean". Bytes are counted at the network device and compared with those of a float32
ring. ``--slow`` gives one link a tenth of the rate. ``--delay-ms`` sends all bulk through a proxy at each peer that
holds every byte back for so long, each way. ``--work-s`` lets every peer sleep for so long before each round, as if it
trained: *utilisation* is that over the whole.
"""

import argparse
import json
import sys
from statistics import median, quantiles

from collective import Group
from hosts import Hosts

from runtime.averaging.codecs.base import vector_bytes
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.shards import Link, shard_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--mbit", type=float, nargs="+", default=[50, 200])
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--systems", nargs="+", default=["atoll:int8", "gloo:float32"])
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--work-s", type=float, default=0.0)
    options = parser.parse_args()
    if not Hosts.available():
        sys.exit("network namespaces and shaped links need root, ip and tc: run this with sudo")
    heads = ("peers", "Mbit/s", "system", "median s", "p90 s", "efficiency", "payload", "device", "utilisation")
    print(f"| {' | '.join(heads)} |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    rows = []
    for n_peers in options.peers:
        for mbit in options.mbit:
            rates = [mbit] * (n_peers - 1) + [mbit / 10 if options.slow else mbit]
            for system in options.systems:
                rows.append(measure(system, rates, options))
    print()
    print(json.dumps({"benchmark": "shaped", **vars(options), "rows": rows}))


def bound_s(rates: list[float], payload_bytes: int) -> float:
    """What the slowest link needs for its shares and results, cut as is best for all."""
    links = [Link(rate * 1e6 / 8, rate * 1e6 / 8) for rate in rates]
    n, parts = len(links), shard_parts(links)
    return max((1 + (n - 2) * part) * payload_bytes / link.up for part, link in zip(parts, links, strict=True))


def measure(system: str, rates: list[float], options: argparse.Namespace) -> dict[str, object]:
    n_peers, n_elements, seconds, device = len(rates), round(options.millions * 1e6), [], []
    with (
        Hosts(n_peers, rates) as hosts,
        Group(system, n_peers, n_elements, hosts.prefix, hosts.address, options.delay_ms) as group,
    ):
        # The rates of the links are learnt in the first rounds.
        for number in range(options.rounds + 2):
            before = sum(hosts.sent_bytes(host) for host in range(n_peers))
            one = group.round(options.work_s)
            if number >= 2:
                seconds.append(one.seconds)
                device.append((sum(hosts.sent_bytes(host) for host in range(n_peers)) - before) / n_peers)
    payload = vector_bytes(codec_named(system.partition(":")[2]), n_elements)
    ring = 2 * (n_peers - 1) / n_peers * 4 * n_elements
    row: dict[str, object] = {
        "peers": n_peers,
        "mbit": rates,
        "system": system,
        "median_s": median(seconds),
        "p90_s": quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0],
        "efficiency": bound_s(rates, payload) / (median(seconds) - options.work_s),
        "payload_of_float32": payload / (4 * n_elements),
        "device_of_float32": median(device) / ring,
        "utilisation": options.work_s / median(seconds),
    }
    links = f"{rates[0]:g}" if len(set(rates)) == 1 else f"{rates[0]:g}, one {rates[-1]:g}"
    print(
        f"| {n_peers} | {links} | {system} | {row['median_s']:.2f} | {row['p90_s']:.2f} | {row['efficiency']:.1%} "
        f"| {row['payload_of_float32']:.2%} | {row['device_of_float32']:.2%} | {row['utilisation']:.1%} |",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
