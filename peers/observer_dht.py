"""Two tables that p2pd and hivemind keep, read from outside as bytes: who is in a run, and where a peer can be dialled.

An observer has neither of the two programs, so the few messages that it needs are here. They are protobuf, of which
numbered fields suffice: 0 is a number, 2 a byte string, 1 and 5 are skipped.
"""

import hashlib
import ipaddress
import math
from dataclasses import dataclass
from typing import Any

import base58
import msgpack

from peers.addresses import varint
from peers.errors import ProtocolViolation
from peers.identity import is_peer_id

FIND_PROTOCOL = "DHTProtocol.rpc_find"
PEER_PROTOCOL = "/ipfs/kad/1.0.0"
# As p2pd has it for hivemind's messages.
MAX_ANSWER_BYTES = 1 << 22
MAX_ENTRIES = 1024
MAX_VALUE_BYTES = 4096
MAX_NEIGHBOURS = 20
MAX_ADDRESSES = 16

_ID_BYTES = 20
_DICTIONARY = 0x50
_FOUND_DICTIONARY = 2
_FIND_NODE = 4
# go-libp2p's codes of ip4, ip6 and tcp; together with the value that follows.
_IP4, _IP6, _TCP = 4, 41, 6

Fields = dict[int, list[int | bytes]]


@dataclass(frozen=True)
class Found:
    """What one peer of hivemind's table knows of a key."""

    entries: dict[str, tuple[bytes, float]]
    """By sub-key, a value and the Unix time until which it is kept. Anyone can have written it."""
    nearest: tuple[tuple[int, str], ...]
    """Distance to the key, and peer id: who may hold more of it."""


def key_of(name: str) -> int:
    """Where hivemind's table keeps what is stored under ``name``."""
    packed: bytes = msgpack.packb(name)
    return int.from_bytes(hashlib.sha1(packed).digest(), "big")


def find_request(peer: str, key: int, call: bytes) -> bytes:
    """A call of hivemind's ``rpc_find`` at ``peer``; ``call`` is any 16 bytes, which the answer repeats.

    It names no sender, as a client's does, so that nobody takes the observer for a part of the table.
    """
    find = _encode((2, key.to_bytes(_ID_BYTES, "big")))
    return _encode((1, call), (3, _encode((1, base58.b58decode(peer)), (2, FIND_PROTOCOL.encode()), (3, find))))


def read_found(data: bytes, key: int, sender: str) -> Found:
    """The answer to ``find_request``.

    Raises: ProtocolViolation blaming ``sender``.
    """
    try:
        answer = _one(_one(_decode(data), 4), 1)
        result = _one(answer, 2)
        entries = {}
        if result.get(1) == [_FOUND_DICTIONARY]:
            entries = _dictionary(_bytes(result, 2))
        distances = [int.from_bytes(raw, "big") ^ key for raw in _all_bytes(result, 4)]
        peers = [base58.b58encode(raw).decode() if len(raw) < 64 else "" for raw in _all_bytes(result, 5)]
        nearest = [pair for pair in zip(distances, peers, strict=True) if is_peer_id(pair[1])]
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolViolation(sender, f"not an answer of the DHT: {error}") from None
    return Found(entries, tuple(sorted(nearest)[:MAX_NEIGHBOURS]))


def address_request(peer: str) -> bytes:
    """Asks libp2p's own table for the addresses of ``peer``."""
    return _encode((1, _FIND_NODE), (2, base58.b58decode(peer)))


def read_addresses(data: bytes, peer: str, sender: str) -> tuple[str, ...]:
    """The answer to ``address_request``: multiaddrs over TCP, none if ``sender`` knows none.

    Raises: ProtocolViolation blaming ``sender``.
    """
    wanted = base58.b58decode(peer)
    try:
        for raw in _all_bytes(_decode(data), 8):
            known = _decode(raw)
            if known.get(1) == [wanted]:
                found = [_tcp_address(address) for address in _all_bytes(known, 2)[:MAX_ADDRESSES]]
                return tuple(address for address in found if address is not None)
    except ValueError as error:
        raise ProtocolViolation(sender, f"not an answer of libp2p's table: {error}") from None
    return ()


def read_varint(data: bytes, at: int = 0) -> tuple[int, int]:
    """A number and where it ends.

    Raises: ValueError if it is longer than 64 bits or cut short.
    """
    number = shift = 0
    for position in range(at, min(at + 10, len(data))):
        number |= (data[position] & 0x7F) << shift
        if data[position] < 0x80:
            return number, position + 1
        shift += 7
    raise ValueError("a number has no end")


def _dictionary(packed: bytes) -> dict[str, tuple[bytes, float]]:
    """The usable entries of a value that has sub-keys: byte strings with a date, under a text."""
    outer = msgpack.unpackb(packed)
    if not isinstance(outer, msgpack.ExtType) or outer.code != _DICTIONARY:
        raise ValueError("no dictionary")
    _, _, items = _list(msgpack.unpackb(outer.data), 3)
    entries = {}
    for item in _list(items, None)[:MAX_ENTRIES]:
        subkey, value, expires_at = _list(item, 3)
        if isinstance(subkey, str) and isinstance(value, bytes) and isinstance(expires_at, float | int):
            try:
                content = msgpack.unpackb(value)
            except (ValueError, msgpack.UnpackException):
                # Written by anyone: it hides no other entry.
                continue
            if isinstance(content, bytes) and len(content) <= MAX_VALUE_BYTES and math.isfinite(expires_at):
                entries[subkey] = (content, float(expires_at))
    return entries


def _list(value: Any, length: int | None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError("a list expected")
    return value


def _tcp_address(raw: bytes) -> str | None:
    """A binary multiaddr as text; None for anything but a TCP port of an IP address."""
    for code, length, name in ((_IP4, 4, "ip4"), (_IP6, 16, "ip6")):
        if len(raw) == length + 4 and raw[0] == code and raw[length + 1] == _TCP:
            host = ipaddress.ip_address(raw[1 : length + 1])
            return f"/{name}/{host}/tcp/{int.from_bytes(raw[-2:], 'big')}"
    return None


def _encode(*fields: tuple[int, int | bytes]) -> bytes:
    encoded = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
        else:
            encoded += varint(number << 3 | 2) + varint(len(value)) + value
    return bytes(encoded)


def _decode(data: bytes) -> Fields:
    """Every field by its number, in order.

    Raises: ValueError.
    """
    fields: Fields = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(data, at)
            fields.setdefault(number, []).append(value)
            continue
        if kind == 2:
            length, at = read_varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if length > len(data) - at:
            raise ValueError("a field is cut short")
        if kind == 2:
            fields.setdefault(number, []).append(data[at : at + length])
        at += length
    return fields


def _all_bytes(fields: Fields, number: int) -> list[bytes]:
    values = fields.get(number, [])
    if not all(isinstance(value, bytes) for value in values):
        raise ValueError(f"field {number} is no byte string")
    return [value for value in values if isinstance(value, bytes)]


def _bytes(fields: Fields, number: int) -> bytes:
    values = _all_bytes(fields, number)
    if not values:
        raise ValueError(f"field {number} is missing")
    return values[0]


def _one(fields: Fields, number: int) -> Fields:
    """The message in a field."""
    return _decode(_bytes(fields, number))
