"""What every codec is, and what they share: chunks, scratch memory, the check of scales.

A vector is encoded in chunks of ``CHUNK`` elements, each by itself, one behind the other: whoever has the bytes of a
chunk can decode and add it while the next is still on its way.

Shape letters: P elements of a vector or a chunk of it, N blocks, K elements of a block.
"""

import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# 256 Ki elements, 1 MiB of float32: a chunk stays in cache between the passes over it.
CHUNK = 1 << 18
# A shard begins at a multiple of this many elements, so that the blocks of no codec span two shards.
BLOCK = 4096
# Below the smallest normal float32 a reciprocal overflows; beyond 1e35 a decoded value could.
LEAST_SCALE, MOST_SCALE = 1.1754944e-38, 1e35

Buffer = bytearray | memoryview
"""Writable: torch takes no other."""


class Codec(Protocol):
    """Encodes and decodes chunks of at most ``CHUNK`` float32 elements on the CPU.

    Decoding gives the same bits on every IEEE-754 machine: one rounding an element. What is not finite becomes zero
    in encoding, and the block or chunk that it is in may with it, so that it does not poison others.
    """

    name: str
    lossy: bool

    def encoded_bytes(self, n_elements: int) -> int:
        """Length of an encoded chunk of ``n_elements``."""

    def encode(self, chunk_P: Tensor, out: Buffer) -> None:
        """Write the encoded chunk, ``encoded_bytes`` long, to ``out``. The chunk is left as it is."""

    def check(self, payload: Buffer, n_elements: int) -> None:
        """Raises: ValueError for a wrong length or numbers that no encoder makes."""

    def decode(self, payload: Buffer, out_P: Tensor) -> None:
        """Write the decoded chunk to ``out_P``, float32, as long as it was. The payload has been checked."""


def chunks(n_elements: int) -> Iterator[tuple[int, int]]:
    """The ranges [start, stop) of elements of the chunks of a vector."""
    for start in range(0, n_elements, CHUNK):
        yield start, min(start + CHUNK, n_elements)


def vector_bytes(codec: Codec, n_elements: int) -> int:
    """Length of an encoded vector."""
    whole, rest = divmod(n_elements, CHUNK)
    return whole * codec.encoded_bytes(CHUNK) + (codec.encoded_bytes(rest) if rest else 0)


def chunk_range(codec: Codec, start: int, stop: int) -> slice:
    """Where in an encoded vector the chunk of elements [start, stop) lies."""
    first = start // CHUNK * codec.encoded_bytes(CHUNK)
    return slice(first, first + codec.encoded_bytes(stop - start))


def encode_vector(codec: Codec, vector_P: Tensor) -> bytearray:
    """All chunks of a float32 CPU vector."""
    payload = bytearray(vector_bytes(codec, vector_P.numel()))
    view = memoryview(payload)
    for start, stop in chunks(vector_P.numel()):
        codec.encode(vector_P[start:stop], view[chunk_range(codec, start, stop)])
    return payload


def check_vector(codec: Codec, payload: Buffer, n_elements: int) -> None:
    """Raises: ValueError as ``Codec.check``."""
    if len(payload) != vector_bytes(codec, n_elements):
        raise ValueError(f"{len(payload)} bytes, expected {vector_bytes(codec, n_elements)}")
    for start, stop in chunks(n_elements):
        codec.check(memoryview(payload)[chunk_range(codec, start, stop)], stop - start)


def decode_vector(codec: Codec, payload: Buffer, n_elements: int) -> Tensor:
    """The float32 vector (n_elements,) in a payload that has been checked."""
    vector_P = torch.empty(n_elements)
    for start, stop in chunks(n_elements):
        codec.decode(memoryview(payload)[chunk_range(codec, start, stop)], vector_P[start:stop])
    return vector_P


def add_decoded(codec: Codec, payload: Buffer, share: float, into_P: Tensor) -> None:
    """``into_P += share * decoded``, for one checked chunk; two roundings an element, never a fused one."""
    decoded_P = scratch("decoded", into_P.numel())
    codec.decode(payload, decoded_P)
    # The share is rounded to float32 first: a mean of equal parts then stays within one rounding.
    into_P.add_(decoded_P.mul_(share))


_scratch = threading.local()


def scratch(name: str, n_elements: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of this thread, of up to a chunk and a block, that the next caller with this name takes over.

    Fresh pages cost more than a codec's arithmetic.
    """
    known: Tensor | None = getattr(_scratch, name, None)
    if known is None or known.dtype != dtype:
        known = torch.empty(CHUNK + BLOCK, dtype=dtype)
        setattr(_scratch, name, known)
    return known[:n_elements]


def write_scales(greatest_N: Tensor, steps: float, payload: Buffer) -> tuple[Tensor, bool]:
    """Write ``greatest / steps`` of each block to the front of a payload.

    Zero for those that could not be decoded alike on every machine. In numpy: on so few numbers it takes a tenth.

    Returns: the reciprocals, (N, 1), zero where the scale is, and whether all of ``greatest_N`` was finite.
    """
    scale_N = greatest_N.numpy() / np.float32(steps)
    usable_N = (scale_N >= LEAST_SCALE) & (scale_N < MOST_SCALE)
    scale_N[~usable_N] = 0.0
    np.frombuffer(payload, np.float32, len(scale_N))[:] = scale_N
    inverse_N = np.divide(np.float32(1.0), scale_N, out=np.zeros_like(scale_N), where=usable_N)
    finite = bool(usable_N.all()) or bool(torch.isfinite(greatest_N).all())
    return torch.from_numpy(inverse_N)[:, None], finite


def check_scales(payload: Buffer, n_blocks: int) -> None:
    """Raises: ValueError for a scale that ``write_scales`` does not write."""
    scale_N = np.frombuffer(payload, np.float32, n_blocks)
    # The sign bit of a zero counts as well: there is one encoding of a block of zeros.
    if not ((scale_N >= LEAST_SCALE) & (scale_N < MOST_SCALE) | (scale_N.view(np.uint32) == 0)).all():
        raise ValueError("a scale is not a number that an encoder makes")


def floats(payload: Buffer, n: int) -> Tensor:
    """The first ``n`` float32 of a buffer, not copied."""
    return torch.frombuffer(payload, dtype=torch.float32, count=n)


def octets(payload: Buffer, skip_bytes: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """What follows ``skip_bytes`` in a buffer, as int8 or uint8, not copied."""
    return torch.frombuffer(payload, dtype=dtype, offset=skip_bytes)


def check_length(payload: Buffer, expected_bytes: int) -> None:
    """Raises: ValueError if it is another."""
    if len(payload) != expected_bytes:
        raise ValueError(f"{len(payload)} bytes, expected {expected_bytes}")
