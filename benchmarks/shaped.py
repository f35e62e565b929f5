"""All-reduce over links of a given rate: how much of the link carries payload, and how many bytes it takes. Needs root.

    sudo python benchmarks/shaped.py [--peers 4 8] [--mbit 50 200] [--rounds 10]

Each peer is on a host of its own (a network namespace), its link a token bucket each way. TCP over such a bucket
carries 95.5 % of its rate: that is the roof. *Efficiency* is the one-way payload of a peer, 2 (n - 1) / n of the vector
as encoded, over what its link could have carried in the time from "all are ready" to "the last one has the mean". Bytes
are counted at the network device and compared with those of a float32 ring.
"""

import argparse
import json
import sys
from statistics import median, quantiles

from collective import Group
from hosts import Hosts

from runtime.averaging.codecs.base import vector_bytes
from runtime.averaging.codecs.registry import codec_named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--mbit", type=float, nargs="+", default=[50, 200])
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--systems", nargs="+", default=["atoll:int8", "gloo:float32"])
    options = parser.parse_args()
    if not Hosts.available():
        sys.exit("network namespaces and shaped links need root, ip and tc: run this with sudo")
    print("| peers | Mbit/s | system | median s | p90 s | efficiency | payload of float32's | on the device |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|")
    rows = []
    for n_peers in options.peers:
        for mbit in options.mbit:
            for system in options.systems:
                rows.append(measure(system, n_peers, round(options.millions * 1e6), mbit, options.rounds))
    print()
    print(json.dumps({"benchmark": "shaped", **vars(options), "rows": rows}))


def measure(system: str, n_peers: int, n_elements: int, mbit: float, n_rounds: int) -> dict[str, object]:
    seconds, device = [], []
    with (
        Hosts(n_peers, mbit) as hosts,
        Group(system, n_peers, n_elements, hosts.prefix, hosts.address) as group,
    ):
        group.round()
        for _ in range(n_rounds):
            before = sum(hosts.sent_bytes(host) for host in range(n_peers))
            seconds.append(group.round().seconds)
            device.append((sum(hosts.sent_bytes(host) for host in range(n_peers)) - before) / n_peers)
    share = 2 * (n_peers - 1) / n_peers
    payload = share * vector_bytes(codec_named(system.partition(":")[2]), n_elements)
    ring = share * 4 * n_elements
    row: dict[str, object] = {
        "peers": n_peers,
        "mbit": mbit,
        "system": system,
        "median_s": median(seconds),
        "p90_s": quantiles(seconds, n=10)[-1] if n_rounds > 1 else seconds[0],
        "efficiency": payload * 8 / (median(seconds) * mbit * 1e6),
        "payload_of_float32": payload / ring,
        "device_of_float32": median(device) / ring,
    }
    print(
        f"| {n_peers} | {mbit:g} | {system} | {row['median_s']:.2f} | {row['p90_s']:.2f} | {row['efficiency']:.1%} "
        f"| {row['payload_of_float32']:.2%} | {row['device_of_float32']:.2%} |",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
