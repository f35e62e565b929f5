"""Every codec: how much it loses, what it refuses, and that it decodes to the same bits everywhere."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.averaging.codecs.base import (
    BLOCK,
    CHUNK,
    LEAST_SCALE,
    MOST_SCALE,
    Codec,
    check_vector,
    chunk_range,
    chunks,
    decode_vector,
    encode_vector,
    vector_bytes,
)
from runtime.averaging.codecs.registry import CODECS, codec_named

SIZES = [1, 2, 255, 257, 4095, 4096, 4097, 3 * 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 4097]
INT8, FLOAT32 = CODECS["int8"], CODECS["float32"]
MODEST = settings(deadline=None, max_examples=60)
each_codec = pytest.mark.parametrize("codec", [CODECS[name] for name in sorted(CODECS)], ids=lambda codec: codec.name)


def gaussian(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def of_distribution(name: str, n: int = 1 << 18) -> Tensor:
    rng = np.random.default_rng(3)
    match name:
        case "gaussian":
            values = rng.standard_normal(n)
        case "laplace":
            values = rng.laplace(size=n)
        case "student-t3":
            values = rng.standard_t(3, n)
        case _:
            values = np.concatenate([rng.standard_normal(n // 4) * scale for scale in (1.0, 0.1, 0.01, 3.0)])
    return torch.from_numpy(values.astype(np.float32))


def there_and_back(codec: Codec, vector_P: Tensor) -> Tensor:
    payload = encode_vector(codec, vector_P)
    check_vector(codec, payload, vector_P.numel())
    return decode_vector(codec, payload, vector_P.numel())


def decoded_by_numpy(payload: bytearray, n: int) -> np.ndarray:
    """The plain reference for int8: one float32 product an element."""
    decoded_P = np.empty(n, np.float32)
    for start, stop in chunks(n):
        chunk = payload[chunk_range(INT8, start, stop)]
        n_blocks = math.ceil((stop - start) / BLOCK)
        scales = np.frombuffer(chunk, "<f4", n_blocks)
        quantised = np.frombuffer(chunk, np.int8, stop - start, 4 * n_blocks)
        decoded_P[start:stop] = np.array(quantised, np.float32) * scales[np.arange(stop - start) // BLOCK]
    return decoded_P


# Measured by others, one sample each (shared figures of the field); samples with heavy tails differ.
@pytest.mark.parametrize(
    ("name", "distribution", "error", "within"),
    [
        ("float32", "gaussian", 0.0, 0.0),
        ("float16", "gaussian", 0.0002, 0.1),
        ("int8", "gaussian", 0.0087, 0.05),
        ("int8", "laplace", 0.0146, 0.05),
        ("int8", "student-t3", 0.040, 0.4),
        ("int8", "scales", 0.0089, 0.05),
        ("codebook8", "gaussian", 0.0160, 0.05),
        ("codebook8", "laplace", 0.0866, 0.05),
        ("codebook8", "student-t3", 0.298, 0.25),
        ("fp4", "gaussian", 0.204, 0.06),
        ("fp4", "laplace", 0.199, 0.06),
        ("fp4", "student-t3", 0.182, 0.1),
        ("fp4", "scales", 0.205, 0.06),
    ],
)
def test_the_relative_error_is_the_published_one(name: str, distribution: str, error: float, within: float) -> None:
    vector_P = of_distribution(distribution)
    off_P = there_and_back(CODECS[name], vector_P) - vector_P
    assert float(off_P.double().norm() / vector_P.double().norm()) == pytest.approx(error, rel=within, abs=1e-9)


@each_codec
@pytest.mark.parametrize("n", SIZES)
def test_a_payload_has_the_length_that_is_announced_and_decodes_to_the_size(codec: Codec, n: int) -> None:
    assert len(encode_vector(codec, gaussian(n))) == vector_bytes(codec, n)
    decoded_P = there_and_back(codec, gaussian(n))
    assert decoded_P.shape == (n,)
    assert decoded_P.dtype == torch.float32


def test_what_travels_is_as_many_bits_an_element_as_said() -> None:
    bits = {name: round(8 * vector_bytes(codec, 64 * CHUNK) / (64 * CHUNK), 3) for name, codec in CODECS.items()}
    assert bits == {"float32": 32.0, "float16": 16.0, "int8": 8.008, "codebook8": 8.031, "fp4": 4.125}


@pytest.mark.parametrize("n", SIZES)
def test_int8_decodes_bit_for_bit_as_plain_numpy_does(n: int) -> None:
    payload = encode_vector(INT8, gaussian(n) * 3.7)
    assert decode_vector(INT8, payload, n).numpy().tobytes() == decoded_by_numpy(payload, n).tobytes()


@pytest.mark.parametrize("n", [size for size in SIZES if size <= CHUNK])
def test_no_element_is_off_by_more_than_half_a_scale(n: int) -> None:
    vector_P = gaussian(n, seed=n)
    payload = encode_vector(INT8, vector_P)
    scales_P = np.frombuffer(payload, "<f4", math.ceil(n / BLOCK)).astype(np.float64)[np.arange(n) // BLOCK]
    error_P = np.abs(decoded_by_numpy(payload, n).astype(np.float64) - vector_P.numpy().astype(np.float64))
    # Half a step, and the roundings of the reciprocal, two products and the scale: 127 steps x 4 x 2^-24.
    assert (error_P <= scales_P * (0.5 + 127 * 4 * 2.0**-24)).all()


def test_fp4_takes_the_nearest_power_of_two_below_the_maximum_of_its_block() -> None:
    vector_P = torch.tensor([8.0, -6.1, 5.9, 3.1, 2.9, -1.0, 0.06, 0.0])
    assert there_and_back(CODECS["fp4"], vector_P).tolist() == [8.0, -8.0, 4.0, 4.0, 2.0, -1.0, 0.0625, 0.0625]


def test_the_codebook_keeps_the_sum() -> None:
    vector_P = of_distribution("student-t3")
    decoded_P = there_and_back(CODECS["codebook8"], vector_P)
    assert float(decoded_P.double().sum() - vector_P.double().sum()) / float(vector_P.abs().sum()) < 1e-7


@each_codec
@MODEST
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_floats_encode_to_what_decodes_to_finite_floats(codec: Codec, values: list[float]) -> None:
    assert torch.isfinite(there_and_back(codec, torch.tensor(values, dtype=torch.float32))).all()


@MODEST
@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 5000))
def test_a_constant_vector_decodes_within_a_rounding(value: float, n: int) -> None:
    decoded_P = there_and_back(INT8, torch.full((n,), value))
    assert float((decoded_P - value).abs().max()) <= 3e-7 * abs(value) + 127 * LEAST_SCALE


def test_a_block_with_a_value_that_is_not_finite_becomes_zeros_and_no_other_does() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        vector_P = gaussian(3 * BLOCK)
        vector_P[BLOCK + 17] = bad
        decoded_P = there_and_back(INT8, vector_P)
        assert decoded_P[BLOCK : 2 * BLOCK].abs().max() == 0
        assert (decoded_P[:BLOCK] - vector_P[:BLOCK]).abs().max() < 0.05
        assert decoded_P[2 * BLOCK :].abs().max() > 1


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1.1754944e-38, 1e-36, 1e-30, 1.0, 1e30, 1e36, 3.4e38])
def test_values_of_any_size_stay_finite_and_keep_their_sign(value: float) -> None:
    decoded_P = there_and_back(INT8, torch.tensor([value, -value]))
    assert torch.isfinite(decoded_P).all()
    assert decoded_P[0] >= 0 >= decoded_P[1]
    if 127 * LEAST_SCALE < value < 127 * MOST_SCALE:
        assert float(decoded_P[0]) == pytest.approx(value, rel=1e-6)


@each_codec
def test_nothing_encodes_to_nothing_and_back(codec: Codec) -> None:
    assert encode_vector(codec, torch.empty(0)) == b""
    assert decode_vector(codec, bytearray(), 0).shape == (0,)


@each_codec
@MODEST
@given(n=st.integers(1, 5000), off=st.integers(-20, 20).filter(bool))
def test_a_wrong_length_is_an_error(codec: Codec, n: int, off: int) -> None:
    length = max(0, vector_bytes(codec, n) + off)
    with pytest.raises(ValueError, match="bytes, expected"):
        check_vector(codec, bytearray(length), n)
    with pytest.raises(ValueError, match="bytes, expected"):
        codec.check(bytearray(length), n)


@each_codec
@MODEST
@given(payload=st.data())
def test_any_bytes_of_the_right_length_decode_to_finite_floats_or_are_an_error(
    codec: Codec, payload: st.DataObject
) -> None:
    n = payload.draw(st.integers(1, 30))
    size = vector_bytes(codec, n)
    data = bytearray(payload.draw(st.binary(min_size=size, max_size=size)))
    try:
        check_vector(codec, data, n)
    except ValueError:
        return
    assert torch.isfinite(decode_vector(codec, data, n)).all()


@pytest.mark.parametrize("name", ["int8", "fp4"])
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -0.0, 1e35, 3e38, 1e-40, 1e-45])
def test_a_scale_that_no_encoder_makes_is_an_error(name: str, scale: float) -> None:
    # Denormal products are flushed to zero on some machines: two would then decode to different bits.
    with pytest.raises(ValueError, match="scale"):
        CODECS[name].check(bytearray(struct.pack("<f", scale) + bytes([1])), 1)


def test_float32_is_exact_and_as_finite_as_its_input() -> None:
    assert torch.equal(there_and_back(FLOAT32, gaussian(10_000)), gaussian(10_000))
    # A sum that overflows is no value that does.
    great_P = torch.full((10,), 3e38)
    assert torch.equal(there_and_back(FLOAT32, great_P), great_P)
    assert there_and_back(FLOAT32, torch.tensor([1.0, math.nan, -math.inf])).tolist() == [1.0, 0.0, 0.0]


@each_codec
def test_encoding_leaves_the_vector_alone_and_gives_the_same_bytes_again(codec: Codec) -> None:
    vector_P = gaussian(CHUNK + 100)
    before_P = vector_P.clone()
    assert encode_vector(codec, vector_P) == encode_vector(codec, vector_P)
    assert torch.equal(vector_P, before_P)


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "fp4"])
def test_shards_cut_at_blocks_encode_as_the_whole_does(name: str) -> None:
    codec, vector_P = CODECS[name], gaussian(5 * BLOCK + 9)
    parts = [there_and_back(codec, part) for part in (vector_P[: 2 * BLOCK], vector_P[2 * BLOCK :])]
    assert torch.equal(torch.cat(parts), there_and_back(codec, vector_P))


def test_codecs_are_found_by_name() -> None:
    assert all(codec_named(name).name == name for name in CODECS)
    with pytest.raises(KeyError):
        codec_named("pickle")
