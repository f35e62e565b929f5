import stat
from pathlib import Path

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.identity import _SMALL_ORDER_Y, Identity, IdentityError, is_peer_id, verify

ALICE = Identity.from_seed(bytes(32))
BOB = Identity.from_seed(b"\x01" * 32)
PREFIX = bytes.fromhex("002408011220")


def encode(data: bytes) -> str:
    return base58.b58encode(data).decode("ascii")


def test_the_peer_id_of_a_known_seed_is_the_one_that_libp2p_gives() -> None:
    # RFC 8032 section 7.1 test 1 has the seed and the public key.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public_key = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert Identity.from_seed(seed).peer == encode(PREFIX + public_key)
    assert ALICE.peer == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@given(st.binary(min_size=32, max_size=32), st.text(), st.binary())
def test_every_signature_verifies_with_the_peer_id_alone(seed: bytes, context: str, body: bytes) -> None:
    try:
        context.encode("utf-8")
    except UnicodeEncodeError:
        return
    identity = Identity.from_seed(seed)
    assert is_peer_id(identity.peer)
    assert identity.peer.startswith("12D3KooW")
    signature = identity.sign(context, body)
    assert len(signature) == 64
    assert verify(identity.peer, context, body, signature)


@given(st.text() | st.just(ALICE.peer), st.text(), st.binary(), st.binary() | st.binary(min_size=64, max_size=64))
def test_no_arbitrary_bytes_verify_and_none_raise(peer: str, context: str, body: bytes, signature: bytes) -> None:
    assert not verify(peer, context, body, signature)


@given(st.integers(0, 511))
def test_a_signature_with_one_flipped_bit_does_not_verify(bit: int) -> None:
    signature = bytearray(ALICE.sign("ready", b"body"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(ALICE.peer, "ready", b"body", bytes(signature))


def test_a_signature_holds_for_one_signer_one_context_and_one_body() -> None:
    signature = ALICE.sign("ready", b"body")
    assert not verify(BOB.peer, "ready", b"body", signature)
    assert not verify(ALICE.peer, "commit", b"body", signature)
    assert not verify(ALICE.peer, "ready", b"bodies", signature)
    assert not verify(ALICE.peer, "read", b"ybody", signature)


def test_values_of_a_wrong_type_do_not_verify_and_do_not_raise() -> None:
    wrong: list[object] = [None, 7, b"x" * 52, ["x"]]
    for value in wrong:
        assert not is_peer_id(value)  # type: ignore[arg-type]
        assert not verify(value, "ready", b"body", bytes(64))  # type: ignore[arg-type]
        assert not verify(ALICE.peer, "ready", b"body", value)  # type: ignore[arg-type]


@given(st.binary(max_size=64))
def test_only_an_ed25519_key_makes_a_peer_id(data: bytes) -> None:
    assert is_peer_id(encode(data)) == (len(data) == 38 and data.startswith(PREFIX))


@given(st.text(max_size=60))
def test_arbitrary_text_is_no_peer_id(text: str) -> None:
    assert not is_peer_id(text)


@pytest.mark.parametrize("text", ["", ALICE.peer + " ", " " + ALICE.peer, "1" + ALICE.peer, ALICE.peer[:-1] + "0"])
def test_a_peer_id_has_one_spelling(text: str) -> None:
    assert not is_peer_id(text)


def test_a_key_under_which_anybody_can_sign_is_no_peer_id() -> None:
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p)
    for y in _SMALL_ORDER_Y:
        # Doubling on the curve -x^2 + y^2 = 1 + d x^2 y^2 needs x^2 and y^2 only.
        x2, y2 = (y * y - 1) * pow(d * y * y + 1, -1, p) % p, y * y % p
        for _ in range(3):
            numerator_y, denominator_y = y2 + x2, 1 - d * x2 * y2
            numerator_x2, denominator_x = 4 * x2 * y2, 1 + d * x2 * y2
            x2 = numerator_x2 * pow(denominator_x, -2, p) % p
            y2 = (numerator_y * pow(denominator_y, -1, p)) ** 2 % p
        assert (x2, y2) == (0, 1), f"{y:x} is not of small order"
        for encoded in (y, y | 1 << 255):
            peer = encode(PREFIX + encoded.to_bytes(32, "little"))
            assert not is_peer_id(peer)
    identity_point = (1).to_bytes(32, "little")
    assert not verify(encode(PREFIX + identity_point), "ready", b"body", identity_point + bytes(32))


def test_a_saved_key_is_private_and_loads_as_the_same_peer(tmp_path: Path) -> None:
    path, identity = tmp_path / "key", Identity.generate()
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 68
    assert Identity.load(path).peer == identity.peer
    assert Identity.load(path).sign("ready", b"body") == identity.sign("ready", b"body")


def test_save_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "key"
    ALICE.save(path)
    with pytest.raises(IdentityError, match="never overwritten"):
        BOB.save(path)
    assert Identity.load(path).peer == ALICE.peer


def test_save_to_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="choose a folder that exists"):
        ALICE.save(tmp_path / "absent" / "key")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    ALICE.save(path)
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
            Identity.load(path)
    path.chmod(0o400)
    assert Identity.load(path).peer == ALICE.peer


def test_every_wrong_file_is_an_error_with_a_fix(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(IdentityError, match="does not exist"):
        Identity.load(path)
    with pytest.raises(IdentityError, match="is not a file"):
        Identity.load(tmp_path)
    ALICE.save(path)
    whole = path.read_bytes()
    cases = {
        b"": "not an Ed25519 key file",
        whole[:-1]: "not an Ed25519 key file",
        whole + b"\n": "not an Ed25519 key file",
        b"-----BEGIN PRIVATE KEY-----": "not an Ed25519 key file",
        b"\x08\x00\x12\xa8\x09" + bytes(1192): "an RSA key",
        whole[:-1] + bytes([whole[-1] ^ 1]): "damaged",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(IdentityError, match=message):
            Identity.load(path)
