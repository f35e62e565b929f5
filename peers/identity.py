"""Who a peer is: an Ed25519 key, whose libp2p peer id contains the public key, so that an id alone verifies."""

import os
import shlex
import stat
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# Identity multihash (0x00, 36 bytes) of the protobuf PublicKey {type: Ed25519, data: 32 bytes}.
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_PEER_ID_BYTES = len(_PEER_ID_PREFIX) + 32
# Six fixed leading bytes leave base58 no choice of length; checked before decoding, whose cost is quadratic.
_PEER_ID_CHARACTERS = 52

# The protobuf PrivateKey {type: Ed25519, data: 64 bytes}: seed, then public key. p2pd reads it with -id.
_KEY_FILE_PREFIX = bytes.fromhex("08011240")
_KEY_FILE_BYTES = len(_KEY_FILE_PREFIX) + 64
_OTHER_KEY_TYPES = {0: "an RSA", 2: "a Secp256k1", 3: "an ECDSA"}

_FIELD_PRIME = 2**255 - 19
# y of the points whose order divides 8. Under such a public key one signature holds for every message.
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _FIELD_PRIME - 1,
        int("7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7", 16),
        int("05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826", 16),
    }
)


class IdentityError(Exception):
    """A key file cannot be used; the message is one sentence with the fix, ready to be shown to a user."""


class Identity:
    """An Ed25519 key pair.

    ``peer`` is its libp2p peer id in base58 (``12D3KooW...``).
    """

    peer: str

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.peer = peer_id_of(key.public_key())

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """For a certificate of this peer's own."""
        return self._key

    def __repr__(self) -> str:
        return f"Identity({self.peer})"

    @classmethod
    def generate(cls) -> "Identity":
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed32: bytes) -> "Identity":
        """The key that 32 bytes determine. For tests and demos: whoever knows the seed is this peer.

        Raises: ValueError if the seed is not 32 bytes.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(seed32))

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a key file that ``save`` or p2pd wrote.

        Raises: IdentityError if it is missing, unreadable, open to other users, or not a whole Ed25519 key.
        """
        data = _read_private_file(path)
        if len(data) >= 2 and data[0] == _KEY_FILE_PREFIX[0] and data[1] in _OTHER_KEY_TYPES:
            kind = _OTHER_KEY_TYPES[data[1]]
            raise IdentityError(f"{path} holds {kind} key, not Ed25519: move it away and create a new identity.")
        if len(data) != _KEY_FILE_BYTES or not data.startswith(_KEY_FILE_PREFIX):
            raise IdentityError(
                f"{path} is not an Ed25519 key file of {_KEY_FILE_BYTES} bytes: restore it from a backup, "
                "or move it away and create a new identity."
            )
        seed, public_key = data[len(_KEY_FILE_PREFIX) :][:32], data[-32:]
        key = Ed25519PrivateKey.from_private_bytes(seed)
        if key.public_key().public_bytes_raw() != public_key:
            raise IdentityError(
                f"{path} is damaged, its two halves belong to different keys: restore it from a backup, "
                "or move it away and create a new identity."
            )
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key file, mode 0600. Never overwrites.

        Raises: IdentityError if the file exists or cannot be written.
        """
        data = _KEY_FILE_PREFIX + self._key.private_bytes_raw() + self._key.public_key().public_bytes_raw()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise IdentityError(f"{path} exists already and is never overwritten: choose another path.") from None
        except OSError as error:
            raise IdentityError(
                f"{path} cannot be created ({error.strerror}): choose a folder that exists and that you may write to."
            ) from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Half a key would block the path for every later attempt.
            path.unlink(missing_ok=True)
            raise IdentityError(
                f"{path} cannot be written ({error.strerror}): free some space or choose another path."
            ) from None

    def sign(self, context: str, body: bytes) -> bytes:
        """Sign ``body`` for one purpose: a signature made under one ``context`` never verifies under another.

        Returns: 64 bytes.
        """
        return self._key.sign(_message(context, body))


def peer_id_of(key: Ed25519PublicKey) -> str:
    """The peer id of whoever has the private key to this one."""
    return base58.b58encode(_PEER_ID_PREFIX + key.public_bytes_raw()).decode("ascii")


def verify(peer: str, context: str, body: bytes, signature: bytes) -> bool:
    """Whether the owner of the peer id made ``signature`` over ``body`` under ``context``. False if malformed."""
    public_key = _public_key(peer)
    if public_key is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _message(context, body))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is an Ed25519 peer id in its one canonical spelling."""
    return _public_key(text) is not None


def _message(context: str, body: bytes) -> bytes:
    prefix = context.encode("utf-8")
    return len(prefix).to_bytes(4, "big") + prefix + body


def _public_key(peer: str) -> bytes | None:
    """The 32 bytes in a peer id; None if it is malformed or if anybody can sign for it."""
    try:
        if len(peer) != _PEER_ID_CHARACTERS:
            return None
        decoded = base58.b58decode(peer)
    except (ValueError, TypeError):
        return None
    # b58decode strips white space: only the spelling that encoding gives back is an id.
    if len(decoded) != _PEER_ID_BYTES or base58.b58encode(decoded).decode("ascii") != peer:
        return None
    public_key = decoded[len(_PEER_ID_PREFIX) :]
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if not decoded.startswith(_PEER_ID_PREFIX) or y % _FIELD_PRIME in _SMALL_ORDER_Y:
        return None
    return public_key


def _read_private_file(path: Path) -> bytes:
    """At most one byte more than a key file has.

    Raises: IdentityError if the file is missing, unreadable, not a plain file, or open to other users.
    """
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise IdentityError(f"{path} is not a file: give the path of a key file.")
            data = os.read(descriptor, _KEY_FILE_BYTES + 1)
            # Of what is no key nobody is to change the mode.
            if stat.S_IMODE(mode) & 0o077 and data[:1] == _KEY_FILE_PREFIX[:1]:
                raise IdentityError(f"{path} is a private key that other users may open: run `chmod 600 {path}`.")
            return data
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise IdentityError(
            f"{path} does not exist: make a key with `atoll keygen {shlex.quote(str(path))}`, or name another."
        ) from None
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read ({error.strerror}): make it readable for you with chmod 600."
        ) from None
