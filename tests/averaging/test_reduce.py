import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.averaging.codec import Float32, Int8
from runtime.averaging.reduce import ShardResult, result_bytes, result_digest, weighted_mean

MODEST = settings(deadline=None, max_examples=100)
INT8, FLOAT32 = Int8(), Float32()
WEIGHTS = st.lists(st.integers(0, 2**62), min_size=1, max_size=12)


def parts_of(n_parts: int, seed: int, n: int = 500) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {index: torch.randn(n, generator=generator) for index in range(n_parts)}


@MODEST
@given(WEIGHTS.filter(any), st.integers(0, 1000))
def test_the_mean_is_that_of_float64(weights: list[int], seed: int) -> None:
    parts = parts_of(len(weights), seed)
    total = sum(weights)
    expected_P = sum((parts[i].double() * (weights[i] / total) for i in parts), torch.zeros(500).double())
    assert float((weighted_mean(parts, weights).double() - expected_P).abs().max()) < 1e-6


@MODEST
@given(WEIGHTS.filter(any), st.integers(0, 1000))
def test_equal_data_of_many_peers_is_one_peer(weights: list[int], seed: int) -> None:
    (one_P,) = parts_of(1, seed).values()
    mean_P = weighted_mean(dict.fromkeys(range(len(weights)), one_P), weights)
    assert torch.allclose(mean_P, one_P, rtol=2e-6, atol=0)


@MODEST
@given(WEIGHTS, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_bits_do_not_depend_on_the_order_of_arrival(weights: list[int], seed: int, rng: object) -> None:
    parts = parts_of(len(weights), seed)
    shuffled = rng.sample(sorted(parts), len(parts))  # type: ignore[attr-defined]
    assert torch.equal(weighted_mean({i: parts[i] for i in shuffled}, weights), weighted_mean(parts, weights))


def test_only_the_weights_of_contributors_count() -> None:
    parts = {1: torch.tensor([1.0]), 3: torch.tensor([5.0])}
    assert weighted_mean(parts, [100, 3, 100, 1]).tolist() == [2.0]


def test_no_weight_at_all_gives_zeros() -> None:
    assert weighted_mean({0: torch.ones(3), 1: torch.ones(3)}, [0, 0]).tolist() == [0.0] * 3


def test_the_shares_are_left_alone() -> None:
    parts = parts_of(3, 0)
    before = {index: part.clone() for index, part in parts.items()}
    weighted_mean(parts, [1, 2, 3])
    assert all(torch.equal(parts[index], before[index]) for index in parts)


@MODEST
@given(st.sets(st.integers(0, 255), min_size=1), st.integers(1, 5000))
def test_a_result_comes_back_from_its_bytes(contributors: set[int], n: int) -> None:
    result = ShardResult(tuple(sorted(contributors)), INT8.encode(torch.ones(n)))
    data = result.to_bytes()
    assert ShardResult.from_bytes(data, 256, INT8, n) == result
    assert len(data) <= result_bytes(256, INT8, n)
    assert len(result_digest(data)) == 32


@MODEST
@given(st.binary(max_size=60), st.integers(1, 5), st.integers(1, 10))
def test_any_bytes_are_a_result_or_an_error(data: bytes, n_members: int, n: int) -> None:
    for codec in (INT8, FLOAT32):
        try:
            result = ShardResult.from_bytes(data, n_members, codec, n)
            decoded_P = result.decode(codec, n)
        except ValueError:
            continue
        assert result.to_bytes() == data
        assert torch.isfinite(decoded_P).all()


@pytest.mark.parametrize("contributors", [(), (1, 1), (2, 1), (3,), (0, 65535)])
def test_contributors_that_are_not_members_in_order_are_an_error(contributors: tuple[int, ...]) -> None:
    data = struct.pack(f"!H{len(contributors)}H", len(contributors), *contributors) + bytes(INT8.encoded_bytes(8))
    with pytest.raises(ValueError, match="contributors"):
        ShardResult.from_bytes(data, 3, INT8, 8)


def test_a_result_that_is_too_short_or_too_long_is_an_error() -> None:
    whole = ShardResult((0, 1), INT8.encode(torch.ones(8))).to_bytes()
    for data in (b"", b"\0", whole[:-1], whole + b"\0", b"\xff\xff" + whole[2:]):
        with pytest.raises(ValueError, match=r"bytes for|shorter"):
            ShardResult.from_bytes(data, 3, INT8, 8)


def test_the_digest_names_the_bytes() -> None:
    one = ShardResult((0,), b"x").to_bytes()
    assert result_digest(one) != result_digest(ShardResult((1,), b"x").to_bytes())
    assert result_digest(one) == result_digest(bytes(one))
