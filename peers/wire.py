"""Frozen dataclasses to bytes and back, strictly: what does not fit its type raises one error that blames the sender.

A message is a msgpack list, its tag first, then its fields in order. Nested dataclasses are lists. Nothing is ever
guessed, coerced or ignored: no maps, no extension types, no missing or extra fields.
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgpack

from peers.errors import ProtocolViolation
from peers.identity import Identity, verify

MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class Length:
    """Bounds, both inclusive, of a bytes, str or tuple field: elements for a tuple, UTF-8 bytes for a str."""

    least: int
    most: int


Digest = Annotated[bytes, Length(32, 32)]
"""A SHA-256 digest."""
PeerId = Annotated[str, Length(1, 64)]
RunId = Annotated[str, Length(40, 40)]

_Read = Callable[[Any], Any]


def _bounded(read: _Read, size: Callable[[Any], int], bounds: Length) -> _Read:
    def check(value: Any) -> Any:
        found = read(value)
        if not bounds.least <= size(found) <= bounds.most:
            raise ValueError(f"length {size(found)} is not in {bounds.least}..{bounds.most}")
        return found

    return check


def _scalar(kind: Any) -> _Read:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{kind.__name__} expected, {type(value).__name__} found")
        if kind is int and not 0 <= value <= MAX_INT:
            raise ValueError(f"{value} is out of range")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        return value

    return check


def _reader(hint: Any) -> _Read:
    """The function that checks a decoded msgpack value against a type hint and builds the field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, bounds = arguments
        size = (lambda text: len(text.encode())) if base is str else len
        if get_origin(base) is tuple:
            inner = _tuple_reader(_reader(get_args(base)[0]), bounds.most)
            return _bounded(inner, len, bounds)
        return _bounded(_reader(base), size, bounds)
    if origin in (Union, types.UnionType):
        (present,) = [argument for argument in arguments if argument is not type(None)]
        read = _reader(present)
        return lambda value: None if value is None else read(value)
    if is_dataclass(hint):
        return _dataclass_reader(hint)
    if hint in (int, float, bool, bytes, str):
        return _scalar(hint)
    raise TypeError(f"{hint} cannot go on the wire: give it bounds with Annotated[..., Length(...)]")


def _tuple_reader(read: _Read, most: int) -> _Read:
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) > most:
            raise ValueError(f"a list of at most {most} expected")
        return tuple(read(item) for item in value)

    return check


def _dataclass_reader(kind: Any) -> _Read:
    hints = get_type_hints(kind, include_extras=True)
    readers = [(field.name, _reader(hints[field.name])) for field in fields(kind)]

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise ValueError(f"{kind.__name__} has {len(readers)} fields")
        built = {}
        for (name, read), item in zip(readers, value, strict=True):
            try:
                built[name] = read(item)
            except ValueError as error:
                raise ValueError(f"{kind.__name__}.{name}: {error}") from None
        return kind(**built)

    return check


def _plain(value: Any) -> Any:
    # What `dataclasses.fields` reads as well, without its cost for each message.
    if (names := getattr(type(value), "__dataclass_fields__", None)) is not None:
        return [_plain(getattr(value, name)) for name in names]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def unpack(data: bytes, sender: str) -> Any:
    """One msgpack value without maps and extension types, or ProtocolViolation blaming ``sender``."""
    try:
        return msgpack.unpackb(data, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolViolation(sender, f"not a message: {error}") from None


class Codec:
    """The messages of one protocol; a message's tag is its class's place in ``kinds``."""

    def __init__(self, *kinds: type) -> None:
        self._tags = {kind: tag for tag, kind in enumerate(kinds)}
        self._readers = [_dataclass_reader(kind) for kind in kinds]

    def encode(self, message: Any) -> bytes:
        packed: bytes = msgpack.packb([self._tags[type(message)], *_plain(message)])
        return packed

    def decode(self, data: bytes, sender: str) -> Any:
        """The message in ``data``.

        Raises: ProtocolViolation blaming ``sender`` for any bytes that are not a message of this protocol.
        """
        value = unpack(data, sender)
        if type(value) is not list or not value or type(value[0]) is not int or not 0 <= value[0] < len(self._readers):
            raise ProtocolViolation(sender, "unknown kind of message")
        try:
            return self._readers[value[0]](value[1:])
        except ValueError as error:
            raise ProtocolViolation(sender, str(error)) from None


@dataclass(frozen=True)
class Sealed:
    """Bytes with the signature of a peer, for what is passed on by others or kept where anyone can write."""

    signer: PeerId
    body: Annotated[bytes, Length(0, 1 << 20)]
    signature: Annotated[bytes, Length(64, 64)]


_SEALED = Codec(Sealed)


def seal(identity: Identity, context: str, body: bytes) -> bytes:
    """Sign ``body`` for use in ``context`` only."""
    return _SEALED.encode(Sealed(identity.peer, body, identity.sign(context, body)))


def unseal(data: bytes, context: str, sender: str) -> tuple[str, bytes]:
    """The signer and the signed body.

    Raises: ProtocolViolation blaming ``sender`` if the form or the signature is wrong.
    """
    sealed: Sealed = _SEALED.decode(data, sender)
    if not verify(sealed.signer, context, sealed.body, sealed.signature):
        raise ProtocolViolation(sender, f"a {context} with a wrong signature")
    return sealed.signer, sealed.body


def short(peers: Sequence[str]) -> str:
    """Peer ids for people: the last six characters of each tell peers apart, the first ones are all the same."""
    return ", ".join(peer[-6:] for peer in peers)
