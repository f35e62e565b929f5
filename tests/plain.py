"""The result of a shard in plain whole-vector arithmetic, to hold the chunked and overlapped one to."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.averaging.codecs.base import Codec, decode_vector, encode_vector
from runtime.averaging.reduce import header


def weighted_mean(parts: Mapping[int, Tensor], weights: Sequence[int]) -> Tensor:
    """``sum(weight_i * part_i) / sum(weight_i)``, float32 (P,), added in the order of the indices."""
    total = sum(weights[index] for index in parts)
    mean_P = torch.zeros_like(next(iter(parts.values())))
    for index in sorted(parts):
        mean_P += parts[index] * (weights[index] / total if total else 0.0)
    return mean_P


def plain_result(codec: Codec, contributions: Mapping[int, Tensor], weights: Sequence[int]) -> bytes:
    """What a reducer sends of these members' contributions, not yet encoded, by index."""
    parts = {
        index: decode_vector(codec, encode_vector(codec, part_P), part_P.numel())
        for index, part_P in contributions.items()
    }
    return header(sorted(parts)) + bytes(encode_vector(codec, weighted_mean(parts, weights)))


def result_digest(data: bytes) -> bytes:
    return hashlib.sha256(b"atoll shard result" + data).digest()
