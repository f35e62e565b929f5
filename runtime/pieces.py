"""The state of a run cut into pieces that are named by their content, so that they can come from anybody.

Shape letters: P elements of all parameters together.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

# From 16 to 512 KiB of float32, and of a small vector still some sixty: many can fetch from many, and what is lost with
# a donor is little.
LEAST_ELEMENTS, MOST_ELEMENTS, MANY = 1 << 12, 1 << 17, 64
# SHA-256 lets other threads run, and one core of it is slower than a disk.
_hashing = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "hashing")


@dataclass(frozen=True)
class PieceList:
    """The SHA-256 of every piece of an anchor and of an outer momentum, in order."""

    anchor: tuple[bytes, ...]
    momentum: tuple[bytes, ...]

    @classmethod
    def of(cls, anchor_P: Tensor, momentum_P: Tensor) -> "PieceList":
        """Of two float32 (P,) on the CPU."""
        return cls(_digests(anchor_P), _digests(momentum_P))

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> "PieceList":
        """The inverse of ``bytes``."""
        digests = tuple(bytes(data[start : start + 32]) for start in range(0, len(data), 32))
        return cls(digests[: len(digests) // 2], digests[len(digests) // 2 :])

    def fits(self, n_elements: int) -> bool:
        """Whether it can be of vectors that long. Where the last piece is shorter its name is no other's."""
        n = n_pieces(n_elements)
        if len(self.anchor) != n or len(self.momentum) != n:
            return False
        last, others = {self.anchor[-1], self.momentum[-1]}, {*self.anchor[:-1], *self.momentum[:-1]}
        return n_elements % piece_elements(n_elements) == 0 or not last & others

    def __bytes__(self) -> bytes:
        return b"".join((*self.anchor, *self.momentum))

    @cached_property
    def digest(self) -> bytes:
        """What the state is known by: with it in a lineage, nobody can pass off another piece."""
        return hashlib.sha256(b"atoll state" + bytes(self)).digest()

    @cached_property
    def anchor_digest(self) -> bytes:
        return hashlib.sha256(b"".join(self.anchor)).digest()

    @cached_property
    def distinct(self) -> tuple[bytes, ...]:
        """Each name once: a fresh momentum is the same zeros all over."""
        return tuple(dict.fromkeys((*self.anchor, *self.momentum)))


def piece_elements(n_elements: int) -> int:
    """How long the pieces of a vector are, but for the last: a power of two."""
    wanted = 1 << max(0, -(-n_elements // MANY) - 1).bit_length()
    return min(max(wanted, LEAST_ELEMENTS), MOST_ELEMENTS)


def n_pieces(n_elements: int) -> int:
    """Of one vector."""
    return -(-n_elements // piece_elements(n_elements))


def views(vector_P: Tensor) -> Iterator[memoryview]:
    """The pieces of a float32 (P,) on the CPU, not copied: little-endian bytes."""
    data = vector_P.detach().numpy().astype("<f4", copy=False).data.cast("B")
    step = 4 * piece_elements(vector_P.numel())
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _digests(vector_P: Tensor) -> tuple[bytes, ...]:
    pieces = list(views(vector_P))
    # Of short ones a thread takes longer to begin than to hash.
    each = _hashing.map if piece_elements(vector_P.numel()) > LEAST_ELEMENTS else map
    return tuple(each(_sha256, pieces))


def _sha256(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()
