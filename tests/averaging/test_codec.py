import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.averaging.codec import BLOCK, LEAST_SCALE, MOST_SCALE, SLICE_ELEMENTS, Codec, Float32, Int8, codec_named

SIZES = [1, 2, 4095, 4096, 4097, 3 * 4096 - 1, 3 * 4096, SLICE_ELEMENTS - 1, SLICE_ELEMENTS, SLICE_ELEMENTS + 1]
SIZES += [SLICE_ELEMENTS + 4097, 2 * SLICE_ELEMENTS + 5]
INT8, FLOAT32 = Int8(), Float32()
CODECS: list[Codec] = [INT8, FLOAT32]
MODEST = settings(deadline=None, max_examples=60)


def gaussian(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def student_t3(n: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_t(3, n).astype(np.float32))


def relative_l2(vector_P: Tensor) -> float:
    decoded_P = INT8.decode(INT8.encode(vector_P), vector_P.numel())
    return float((decoded_P - vector_P).double().norm() / vector_P.double().norm())


def decoded_by_numpy(payload: bytes, n: int) -> np.ndarray:
    """The plain reference: one float32 product an element."""
    n_blocks = math.ceil(n / BLOCK)
    scales = np.frombuffer(payload, "<f4", n_blocks)
    quantised = np.frombuffer(payload, np.int8, n, 4 * n_blocks)
    decoded: np.ndarray = np.array(quantised, np.float32) * scales[np.arange(n) // BLOCK]
    return decoded


def test_the_error_is_what_the_design_says() -> None:
    assert 0.007 < relative_l2(gaussian(1 << 20)) < 0.011
    # Its fourth moment is infinite: samples differ.
    assert 0.03 < relative_l2(student_t3(1 << 20)) < 0.06


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("n", SIZES)
def test_a_payload_has_the_length_that_is_announced_and_decodes_to_the_size(codec: Codec, n: int) -> None:
    payload = codec.encode(gaussian(n))
    assert len(payload) == codec.encoded_bytes(n)
    assert codec.decode(payload, n).shape == (n,)
    assert codec.decode(payload, n).dtype == torch.float32


@pytest.mark.parametrize("n", SIZES)
def test_int8_decodes_bit_for_bit_as_plain_numpy_does(n: int) -> None:
    payload = INT8.encode(gaussian(n) * 3.7)
    assert INT8.decode(payload, n).numpy().tobytes() == decoded_by_numpy(payload, n).tobytes()


@pytest.mark.parametrize("n", SIZES)
def test_no_element_is_off_by_more_than_half_a_scale(n: int) -> None:
    vector_P = gaussian(n, seed=n)
    payload = INT8.encode(vector_P)
    scales_P = np.frombuffer(payload, "<f4", math.ceil(n / BLOCK)).astype(np.float64)[np.arange(n) // BLOCK]
    error_P = np.abs(decoded_by_numpy(payload, n).astype(np.float64) - vector_P.numpy().astype(np.float64))
    # Half a step, and the roundings of the reciprocal, two products and the scale: 127 steps x 4 x 2^-24.
    assert (error_P <= scales_P * (0.5 + 127 * 4 * 2.0**-24)).all()


@MODEST
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_floats_encode_to_what_decodes_to_finite_floats(values: list[float]) -> None:
    vector_P = torch.tensor(values, dtype=torch.float32)
    assert torch.isfinite(INT8.decode(INT8.encode(vector_P), len(values))).all()


@MODEST
@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 5000))
def test_a_constant_vector_decodes_within_a_rounding(value: float, n: int) -> None:
    decoded_P = INT8.decode(INT8.encode(torch.full((n,), value)), n)
    assert float((decoded_P - value).abs().max()) <= 3e-7 * abs(value) + 127 * LEAST_SCALE


def test_a_block_with_a_value_that_is_not_finite_becomes_zeros_and_no_other_does() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        vector_P = gaussian(3 * BLOCK)
        vector_P[BLOCK + 17] = bad
        decoded_P = INT8.decode(INT8.encode(vector_P), 3 * BLOCK)
        assert decoded_P[BLOCK : 2 * BLOCK].abs().max() == 0
        assert (decoded_P[:BLOCK] - vector_P[:BLOCK]).abs().max() < 0.05
        assert decoded_P[2 * BLOCK :].abs().max() > 1


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1.1754944e-38, 1e-36, 1e-30, 1.0, 1e30, 1e36, 3.4e38])
def test_values_of_any_size_stay_finite_and_keep_their_sign(value: float) -> None:
    decoded_P = INT8.decode(INT8.encode(torch.tensor([value, -value])), 2)
    assert torch.isfinite(decoded_P).all()
    assert decoded_P[0] >= 0 >= decoded_P[1]
    if 127 * LEAST_SCALE < value < 127 * MOST_SCALE:
        assert float(decoded_P[0]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_nothing_encodes_to_nothing_and_back(codec: Codec) -> None:
    assert codec.encode(torch.empty(0)) == b""
    assert codec.decode(b"", 0).shape == (0,)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@MODEST
@given(n=st.integers(1, 5000), off=st.integers(-20, 20).filter(bool))
def test_a_wrong_length_is_an_error(codec: Codec, n: int, off: int) -> None:
    with pytest.raises(ValueError, match="bytes, expected"):
        codec.decode(bytes(max(0, codec.encoded_bytes(n) + off)), n)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@MODEST
@given(payload=st.data())
def test_any_bytes_of_the_right_length_decode_to_finite_floats_or_are_an_error(
    codec: Codec, payload: st.DataObject
) -> None:
    n = payload.draw(st.integers(1, 30))
    data = payload.draw(st.binary(min_size=codec.encoded_bytes(n), max_size=codec.encoded_bytes(n)))
    try:
        decoded_P = codec.decode(data, n)
    except ValueError:
        return
    assert torch.isfinite(decoded_P).all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, 1e35, 3e38, 1e-40, 1e-45])
def test_a_scale_that_no_encoder_makes_is_an_error(scale: float) -> None:
    # Denormal products are flushed to zero on some machines: two would then decode to different bits.
    with pytest.raises(ValueError, match="scale"):
        INT8.decode(struct.pack("<f", scale) + bytes([1]), 1)


def test_float32_is_exact() -> None:
    vector_P = gaussian(10_000)
    assert torch.equal(FLOAT32.decode(FLOAT32.encode(vector_P), 10_000), vector_P)


def test_encoding_leaves_the_vector_alone_and_gives_the_same_bytes_again() -> None:
    vector_P = gaussian(SLICE_ELEMENTS + 100)
    before_P = vector_P.clone()
    assert INT8.encode(vector_P) == INT8.encode(vector_P)
    assert torch.equal(vector_P, before_P)


def test_shards_cut_at_blocks_encode_as_the_whole_does() -> None:
    vector_P = gaussian(5 * BLOCK + 9)
    whole = INT8.decode(INT8.encode(vector_P), vector_P.numel())
    parts = [INT8.decode(INT8.encode(part), part.numel()) for part in (vector_P[: 2 * BLOCK], vector_P[2 * BLOCK :])]
    assert torch.equal(torch.cat(parts), whole)


def test_codecs_are_found_by_name() -> None:
    assert codec_named("int8").name == "int8"
    assert codec_named("float32").name == "float32"
    with pytest.raises(KeyError):
        codec_named("pickle")
