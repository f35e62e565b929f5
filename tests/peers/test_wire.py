import dataclasses
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.messages import CONTROL, RECORD, Goodbye, Heartbeat, Hello, Lost, MemberRecord, Status
from peers.wire import MAX_INT, Codec, Length, seal, unseal
from runtime.averaging import claims, transfer
from runtime.averaging.messages import (
    ROUND,
    SIGNED,
    Begin,
    Commit,
    CommitRequest,
    Committed,
    Descriptor,
    Held,
    Past,
    Ready,
)

CODECS: list[tuple[Codec, type]] = [
    *((CONTROL, kind) for kind in (Hello, Heartbeat, Lost, Goodbye)),
    (RECORD, MemberRecord),
    *((ROUND, kind) for kind in (Ready, Begin, Held, Committed, CommitRequest, Past)),
    *((SIGNED, kind) for kind in (Descriptor, Commit)),
    (transfer.HEADER, transfer.Push),
    *(
        (claims.STATE, kind)
        for kind in (
            claims.ClaimRequest,
            claims.OfferRequest,
            claims.ListRequest,
            claims.HaveRequest,
            claims.PieceRequest,
            claims.Claim,
            claims.Have,
        )
    ),
]
EVERY = pytest.mark.parametrize(("codec", "kind"), CODECS, ids=lambda value: getattr(value, "__name__", ""))
MODEST = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
ALICE, BOB = Identity.from_seed(bytes(32)), Identity.from_seed(b"\1" * 32)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Valid values of a field, from the same type hints as the codec reads, by other means."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, length = arguments
        least, most = length.least, min(length.most, length.least + 4)
        if get_origin(base) is tuple:
            return st.lists(values(get_args(base)[0]), min_size=least, max_size=most).map(tuple)
        if base is bytes:
            return st.binary(min_size=least, max_size=most)
        texts = st.text("aé0" if least < 40 else "a0", min_size=least, max_size=most)
        return texts.filter(lambda text: length.least <= len(text.encode()) <= length.most)
    if origin in (Union, types.UnionType):
        return st.none() | values(arguments[0])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        fields = {field.name: values(hints[field.name]) for field in dataclasses.fields(hint)}
        return st.builds(hint, **fields)
    return {
        int: st.integers(0, MAX_INT),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[hint]


def decode(codec: Codec, data: bytes) -> Any:
    """The message, or None if the sender is blamed for it; anything else is a failure."""
    try:
        return codec.decode(data, "mallory")
    except ProtocolViolation as error:
        assert error.peer == "mallory"
        return None


@EVERY
@MODEST
@given(data=st.data())
def test_every_valid_message_comes_back_as_it_was(codec: Codec, kind: type, data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert codec.decode(codec.encode(message), "alice") == message


@EVERY
@MODEST
@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_blame_their_sender(codec: Codec, kind: type, data: bytes) -> None:
    decode(codec, data)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@EVERY
@MODEST
@given(body=st.lists(JUNK, max_size=14))
def test_any_well_formed_msgpack_decodes_or_blames_its_sender(codec: Codec, kind: type, body: list[Any]) -> None:
    tag = msgpack.unpackb(codec.encode(_example(kind)))[0]
    found = decode(codec, msgpack.packb([tag, *body]))
    assert found is None or isinstance(found, kind)
    decode(codec, msgpack.packb(body))


@EVERY
@MODEST
@given(data=st.data())
def test_a_mutated_message_decodes_or_blames_its_sender(codec: Codec, kind: type, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(_example(kind)))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    decode(codec, bytes(encoded))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    assert decode(codec, codec.encode(_example(kind))[:cut]) is None


@EVERY
def test_a_missing_an_extra_and_a_wrong_field_are_refused(codec: Codec, kind: type) -> None:
    tag, *body = msgpack.unpackb(codec.encode(_example(kind)))
    assert decode(codec, msgpack.packb([tag, *body, 0])) is None
    for place in range(len(body)):
        assert decode(codec, msgpack.packb([tag, *body[:place], *body[place + 1 :]])) is None
        wrong: list[Any] = [{}, -1, float("nan"), float("inf"), 2**63, "x" * 70_000, [0] * 300]
        for value in wrong:
            assert decode(codec, msgpack.packb([tag, *body[:place], value, *body[place + 1 :]])) is None
    assert decode(codec, codec.encode(_example(kind)) + b"\0") is None


def _example(kind: type) -> Any:
    digest, run, entry = bytes(32), "5" * 40, ("peer", 3, 1.5)
    hint = get_type_hints(Descriptor, include_extras=True)["members"]
    member = get_args(get_args(hint)[0])[0](*entry)
    status = Status(1, 2, digest, 3)
    descriptor = Descriptor(run, 0, digest, digest, 0, 0, "peer", (member,), (0, 9), "int8", (0,), (b"",), (0,), 1)
    return {
        Hello: Hello(1, run, ("/ip4/1.2.3.4",), status),
        Heartbeat: Heartbeat(status),
        Lost: Lost("peer"),
        Goodbye: Goodbye("tired"),
        MemberRecord: MemberRecord(run, ("/ip4/1.2.3.4",), 2.5, False),
        Ready: Ready(0, 0, digest, digest, 5, None, descriptor, None),
        Begin: Begin(b"sealed"),
        Held: Held(0, 0, 0, 0, digest),
        Committed: Committed(b"sealed"),
        CommitRequest: CommitRequest(0),
        Past: Past(0, b""),
        Descriptor: descriptor,
        Commit: Commit(descriptor, (digest,)),
        transfer.Push: transfer.Push(0, digest, 0, 10),
        claims.ClaimRequest: claims.ClaimRequest(4),
        claims.OfferRequest: claims.OfferRequest(5),
        claims.ListRequest: claims.ListRequest(digest),
        claims.HaveRequest: claims.HaveRequest(digest),
        claims.PieceRequest: claims.PieceRequest(digest),
        claims.Claim: claims.Claim(4, digest, digest, 9, ("peer",)),
        claims.Have: claims.Have(b"\7"),
    }[kind]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x90", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc7\x00\xff", b"\xd6\xff" + bytes(4),
     b"\x91" * 5000, b"\x81" * 600, b"\x92\x00\xd4\x01\x00", b"\x91\xca\x7f\xc0\x00\x00", b"\x92\x00\xa1\xff"],
    ids=bytes.hex,
)  # fmt: skip
def test_bytes_that_have_broken_other_decoders_blame_their_sender(data: bytes) -> None:
    for codec, _ in CODECS:
        assert decode(codec, data) is None


def test_a_type_without_bounds_cannot_go_on_the_wire() -> None:
    @dataclasses.dataclass(frozen=True)
    class Loose:
        items: tuple[int, ...]

    with pytest.raises(TypeError, match="give it bounds"):
        Codec(Loose)


def test_lengths_of_text_are_counted_in_bytes() -> None:
    assert Length(0, 200) == Length(0, 200)
    assert decode(CONTROL, CONTROL.encode(Goodbye("é" * 100))) == Goodbye("é" * 100)
    assert decode(CONTROL, CONTROL.encode(Goodbye("é" * 101))) is None


def test_what_is_sealed_opens_to_its_signer_and_body() -> None:
    assert unseal(seal(ALICE, "context", b"body"), "context", "bob") == (ALICE.peer, b"body")


def test_a_seal_with_any_flipped_bit_is_refused_and_blames_who_passed_it_on() -> None:
    sealed = seal(ALICE, "context", b"body")
    for bit in range(8 * len(sealed)):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolViolation) as caught:
            unseal(bytes(broken), "context", "bob")
        assert caught.value.peer == "bob"


def test_a_seal_holds_for_one_context_and_one_signer() -> None:
    sealed = seal(ALICE, "context", b"body")
    with pytest.raises(ProtocolViolation):
        unseal(sealed, "another context", "bob")
    with pytest.raises(ProtocolViolation):
        unseal(sealed.replace(ALICE.peer.encode(), BOB.peer.encode()), "context", "bob")
