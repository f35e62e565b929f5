"""How fast each codec is on one core, and what it loses: GB/s of float32 encoded, and decoded and added.

    python benchmarks/codec.py [--millions 32] [--rounds 9]

Codecs take turns. One thread, a vector far larger than any cache, chunk by chunk as a round does it.
"""

import argparse
import json
import time
from statistics import median

import torch

from runtime.averaging.codecs.base import add_decoded, chunk_range, chunks, decode_vector, encode_vector
from runtime.averaging.codecs.choice import exact_from, measured_costs
from runtime.averaging.codecs.registry import CODECS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = round(options.millions * 1e6)
    vector_P, sum_P = torch.randn(n, generator=torch.Generator().manual_seed(0)), torch.zeros(n)
    encoded = {name: encode_vector(codec, vector_P) for name, codec in CODECS.items()}
    encode_s: dict[str, list[float]] = {name: [] for name in CODECS}
    add_s: dict[str, list[float]] = {name: [] for name in CODECS}
    for _ in range(options.rounds):
        for name, codec in CODECS.items():
            view, began = memoryview(encoded[name]), time.perf_counter()
            for start, stop in chunks(n):
                codec.encode(vector_P[start:stop], view[chunk_range(codec, start, stop)])
            between = time.perf_counter()
            for start, stop in chunks(n):
                add_decoded(codec, view[chunk_range(codec, start, stop)], 0.25, sum_P[start:stop])
            encode_s[name].append(between - began)
            add_s[name].append(time.perf_counter() - between)
    print("| codec | bits an element | relative L2 error, Gaussian | encode GB/s | decode and add GB/s |")
    print("|---|--:|--:|--:|--:|")
    rows = {}
    for name, codec in CODECS.items():
        error = float((decode_vector(codec, encoded[name], n) - vector_P).norm() / vector_P.norm())
        rows[name] = {
            "bits": 8 * len(encoded[name]) / n,
            "error": error,
            "encode_gb_per_s": 4e-9 * n / median(encode_s[name]),
            "add_gb_per_s": 4e-9 * n / median(add_s[name]),
        }
        row = rows[name]
        print(
            f"| {name} | {row['bits']:.3f} | {error:.4f} | {row['encode_gb_per_s']:.1f} | {row['add_gb_per_s']:.1f} |"
        )
    costs = measured_costs()
    exact = {n_peers: exact_from(costs, n_peers) * 8e-9 for n_peers in (2, 4, 8)}
    for n_peers, gbit in exact.items():
        print(f"\ncodec = auto: with {n_peers} peers float32 is quicker than int8 from {gbit:.1f} Gbit/s a link on")
    print()
    print(json.dumps({"benchmark": "codec", **vars(options), "rows": rows, "exact_from_gbit_per_s": exact}))


if __name__ == "__main__":
    main()
