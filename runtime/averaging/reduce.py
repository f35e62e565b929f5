"""The weighted mean of one shard, in one fixed order, and the bytes in which it is told to all.

A result is a header, one bit a member whose contribution is in it, then the mean as the codec writes it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from runtime.averaging.codecs.base import Buffer, Codec, add_decoded, chunk_range, chunks, scratch, vector_bytes
from runtime.averaging.messages import MAX_MEMBERS

HEADER_BYTES = MAX_MEMBERS // 8


class Growing(Protocol):
    """Of ``payload.Payload`` what a reduction needs."""

    view: memoryview

    def has(self, n_bytes: int) -> bool: ...
    def grow(self, n_ready: int) -> None: ...


class Reduction:
    """``sum(weight_i * share_i) / sum(weight_i)`` over the contributors, in the order of their indices, chunk by chunk.

    The order in which chunks arrive changes no bit. A total weight of zero gives zeros.

    Args:
        weights: in tokens, by member.
        out: as long as ``result_bytes``; it grows with the result.
    """

    def __init__(
        self, codec: Codec, n_elements: int, weights: Sequence[int], contributors: Sequence[int], out: Growing
    ) -> None:
        self.contributors = tuple(sorted(contributors))
        total = sum(weights[index] for index in self.contributors)
        self._shares = {index: weights[index] / total if total else 0.0 for index in self.contributors}
        self._codec, self._out = codec, out
        self._rest = list(chunks(n_elements))[::-1]
        out.view[:HEADER_BYTES] = header(self.contributors)
        out.grow(HEADER_BYTES)

    def advance(self, parts: Mapping[int, Growing]) -> None:
        """Reduce the chunks of which every contributor's share is here.

        Args: parts maps a member's index to its share.
        """
        while self._rest:
            start, stop = self._rest[-1]
            where = chunk_range(self._codec, start, stop)
            if not all(index in parts and parts[index].has(where.stop) for index in self.contributors):
                return
            mean_P = scratch("mean", stop - start).zero_()
            for index in self.contributors:
                add_decoded(self._codec, parts[index].view[where], self._shares[index], mean_P)
            self._codec.encode(mean_P, self._out.view[HEADER_BYTES + where.start : HEADER_BYTES + where.stop])
            self._rest.pop()
            self._out.grow(HEADER_BYTES + where.stop)


def header(contributors: Sequence[int]) -> bytes:
    return sum(1 << index for index in contributors).to_bytes(HEADER_BYTES, "little")


def read_header(data: Buffer, n_members: int) -> tuple[int, ...]:
    """The contributors by index, sorted.

    Raises: ValueError if there is none, or one that is no member.
    """
    bits = int.from_bytes(data[:HEADER_BYTES], "little")
    if not 0 < bits < 1 << n_members:
        raise ValueError(f"contributors that are not among {n_members} members")
    return tuple(index for index in range(n_members) if bits >> index & 1)


def result_bytes(codec: Codec, n_elements: int) -> int:
    """Length of a shard's result."""
    return HEADER_BYTES + vector_bytes(codec, n_elements)
