"""The weighted mean of one shard, in one fixed order, and the bytes in which it is told to all."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.averaging.codec import Codec


def weighted_mean(parts: Mapping[int, Tensor], weights: Sequence[int]) -> Tensor:
    """``sum(weight_i * part_i) / sum(weight_i)`` over the members in ``parts``, added in the order of their indices.

    Args: parts maps a member's index to its float32 (P,) share; weights (tokens) are indexed by member.
    Returns: float32 (P,). A total weight of zero gives zeros.
    """
    order = sorted(parts)
    total = sum(weights[index] for index in order)
    mean_P = torch.zeros_like(parts[order[0]])
    if total == 0:
        return mean_P
    for index in order:
        # The share of the weight is rounded to float32 first: a mean of equal parts then stays within one rounding.
        mean_P += parts[index] * (weights[index] / total)
    return mean_P


@dataclass(frozen=True)
class ShardResult:
    """What a reducer sends for its shard: whose contributions are in it, by index, and the encoded mean."""

    contributors: tuple[int, ...]
    payload: bytes

    def to_bytes(self) -> bytes:
        n = len(self.contributors)
        return struct.pack(f"!H{n}H", n, *self.contributors) + self.payload

    @classmethod
    def from_bytes(cls, data: bytes, n_members: int, codec: Codec, n_elements: int) -> "ShardResult":
        """Raises: ValueError for contributors that are not members in order, or a payload of the wrong length."""
        if len(data) < 2:
            raise ValueError("shorter than its header")
        (n,) = struct.unpack_from("!H", data)
        if len(data) != 2 + 2 * n + codec.encoded_bytes(n_elements):
            raise ValueError(f"{len(data)} bytes for {n} contributors and {n_elements} elements")
        contributors = struct.unpack_from(f"!{n}H", data, 2)
        if list(contributors) != sorted(set(contributors)) or not n or contributors[-1] >= n_members:
            raise ValueError(f"contributors {contributors} of {n_members} members")
        return cls(contributors, data[2 + 2 * n :])

    def decode(self, codec: Codec, n_elements: int) -> Tensor:
        """Raises: ValueError as ``Codec.decode``."""
        return codec.decode(self.payload, n_elements)


def result_bytes(n_members: int, codec: Codec, n_elements: int) -> int:
    """The most bytes that a shard's result can take."""
    return 2 + 2 * n_members + codec.encoded_bytes(n_elements)


def result_digest(data: bytes) -> bytes:
    """SHA-256 of ``ShardResult.to_bytes()``: the name under which it is committed and fetched."""
    return hashlib.sha256(b"atoll shard result" + data).digest()
