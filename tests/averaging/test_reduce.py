"""The mean of a shard: what plain arithmetic makes of it, whatever the order in which its chunks come."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_result, result_digest, weighted_mean
from torch import Tensor

from runtime.averaging.codecs.base import CHUNK, chunk_range, chunks, encode_vector
from runtime.averaging.codecs.registry import CODECS
from runtime.averaging.payload import OwnShare, Payload
from runtime.averaging.reduce import HEADER_BYTES, Reduction, header, read_header, result_bytes
from runtime.averaging.results import Result

MODEST = settings(deadline=None, max_examples=100)
INT8, FLOAT32 = CODECS["int8"], CODECS["float32"]
WEIGHTS = st.lists(st.integers(0, 2**62), min_size=1, max_size=12)


def parts_of(n_parts: int, seed: int, n: int = 500) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {index: torch.randn(n, generator=generator) for index in range(n_parts)}


def mean_of(parts: dict[int, Tensor], weights: list[int]) -> Tensor:
    n = next(iter(parts.values())).numel()
    result = Result(FLOAT32, n, 256, 1, None)
    shares = {index: OwnShare(FLOAT32, part_P) for index, part_P in parts.items()}
    Reduction(FLOAT32, n, weights, sorted(parts), result).advance(shares)
    assert result.complete
    return result.decode()


@MODEST
@given(WEIGHTS.filter(any), st.integers(0, 1000))
def test_the_mean_is_that_of_float64(weights: list[int], seed: int) -> None:
    parts = parts_of(len(weights), seed)
    total = sum(weights)
    expected_P = sum((parts[i].double() * (weights[i] / total) for i in parts), torch.zeros(500).double())
    assert float((mean_of(parts, weights).double() - expected_P).abs().max()) < 1e-6


@MODEST
@given(WEIGHTS.filter(any), st.integers(0, 1000))
def test_equal_data_of_many_peers_is_one_peer(weights: list[int], seed: int) -> None:
    (one_P,) = parts_of(1, seed).values()
    mean_P = mean_of(dict.fromkeys(range(len(weights)), one_P), weights)
    assert torch.allclose(mean_P, one_P, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("n", [1, 4097, CHUNK, 2 * CHUNK + 12345])
def test_chunks_in_any_order_of_arrival_make_the_bytes_of_plain_arithmetic(name: str, n: int) -> None:
    codec, weights, rng = CODECS[name], [5, 3, 0, 7], random.Random(n)
    parts = parts_of(4, seed=n, n=n)
    encoded = {index: encode_vector(codec, part_P) for index, part_P in parts.items()}
    shares = {index: Payload(len(data)) for index, data in encoded.items()}
    result = Result(codec, n, 4, 1, torch.empty(n))
    reduction = Reduction(codec, n, weights, range(4), result)
    coming = {index: [chunk_range(codec, *one) for one in chunks(n)][::-1] for index in shares}
    while any(coming.values()):
        index = rng.choice([one for one in coming if coming[one]])
        where = coming[index].pop()
        shares[index].view[where] = encoded[index][where]
        shares[index].grow(where.stop)
        reduction.advance(shares)
    assert bytes(result.view) == plain_result(codec, parts, weights)
    assert result.digest == result_digest(bytes(result.view))


def test_only_the_weights_of_contributors_count() -> None:
    parts = {1: torch.tensor([1.0]), 3: torch.tensor([5.0])}
    assert mean_of(parts, [100, 3, 100, 1]).tolist() == [2.0]


def test_no_weight_at_all_gives_zeros() -> None:
    assert mean_of({0: torch.ones(3), 1: torch.ones(3)}, [0, 0]).tolist() == [0.0] * 3


def test_the_plain_mean_leaves_its_parts_alone_and_so_does_the_reduction() -> None:
    parts = parts_of(3, 0)
    before = {index: part.clone() for index, part in parts.items()}
    assert torch.equal(mean_of(parts, [1, 2, 3]), weighted_mean(parts, [1, 2, 3]))
    assert all(torch.equal(parts[index], before[index]) for index in parts)


def test_a_result_grows_with_the_chunks_that_are_there_and_not_beyond() -> None:
    n = 2 * CHUNK
    shares = {index: OwnShare(INT8, part_P) for index, part_P in parts_of(2, 0, n).items()}
    late = Payload(len(shares[1].view))
    result = Result(INT8, n, 2, 1, None)
    reduction = Reduction(INT8, n, [1, 1], (0, 1), result)
    reduction.advance({0: shares[0], 1: late})
    assert result.n_ready == HEADER_BYTES
    first = INT8.encoded_bytes(CHUNK)
    shares[1].has(first)
    late.view[:first] = shares[1].view[:first]
    late.grow(first)
    reduction.advance({0: shares[0], 1: late})
    assert result.n_ready == HEADER_BYTES + first


@MODEST
@given(st.sets(st.integers(0, 255), min_size=1))
def test_contributors_come_back_from_the_header(contributors: set[int]) -> None:
    assert read_header(bytearray(header(sorted(contributors))), 256) == tuple(sorted(contributors))


@MODEST
@given(data=st.data(), n_members=st.integers(1, 5), n=st.integers(1, 10))
def test_any_bytes_are_a_result_or_an_error(data: st.DataObject, n_members: int, n: int) -> None:
    for codec in (INT8, FLOAT32):
        size = result_bytes(codec, n)
        body = data.draw(st.binary(min_size=size, max_size=size))
        result = Result(codec, n, n_members, 1, torch.empty(n))
        result.view[:] = body
        try:
            result.grow(size)
        except ValueError:
            continue
        assert result.contributors
        assert result.contributors[-1] < n_members
        assert torch.isfinite(result.decode()).all()


@pytest.mark.parametrize("bits", [0, 1 << 3, 1 << 255])
def test_contributors_that_are_no_members_are_an_error(bits: int) -> None:
    with pytest.raises(ValueError, match="contributors"):
        read_header(bytearray(bits.to_bytes(HEADER_BYTES, "little")), 3)
