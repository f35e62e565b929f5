"""Against hivemind's own messages, and against any bytes."""

import time

import base58
import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.proto import dht_pb2, p2pd_pb2
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from peers.addresses import encode_multiaddr, tcp_endpoint, varint
from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.observer_dht import (
    MAX_ENTRIES,
    address_request,
    find_request,
    key_of,
    read_addresses,
    read_found,
    read_varint,
)

NAME = "atoll/" + "5f" * 20 + "/members"
KEY = key_of(NAME)
PEERS = [Identity.from_seed(bytes([number]) * 32).peer for number in range(6)]


def answer(result: dht_pb2.FindResult) -> bytes:
    """As p2pd brings it."""
    response = dht_pb2.FindResponse(results=[result], peer=dht_pb2.NodeInfo(node_id=b"n" * 20))
    message = p2pd_pb2.PersistentConnectionRequest(
        callId=b"c" * 16, unaryResponse=p2pd_pb2.CallUnaryResponse(response=response.SerializeToString())
    )
    encoded: bytes = message.SerializeToString()
    return encoded


def dictionary(**entries: bytes) -> bytes:
    """Serialised entries, each with the time at which it expires from its place."""
    value = DictionaryDHTValue()
    for number, (subkey, packed) in enumerate(entries.items()):
        value.store(subkey, packed, time.time() + 1000.0 + number)
    packed_value: bytes = MSGPackSerializer.dumps(value)
    return packed_value


def found(value: bytes, **others: object) -> bytes:
    return answer(dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=value, expiration_time=1e10, **others))


def test_a_key_is_where_hivemind_puts_it() -> None:
    assert int(DHTID.generate(NAME)) == KEY


def test_hivemind_reads_what_is_asked() -> None:
    message = p2pd_pb2.PersistentConnectionRequest.FromString(find_request(PEERS[0], KEY, b"c" * 16))
    assert message.callId == b"c" * 16
    assert message.callUnary.peer == base58.b58decode(PEERS[0])
    assert message.callUnary.proto == "DHTProtocol.rpc_find"
    asked = dht_pb2.FindRequest.FromString(message.callUnary.data)
    assert list(asked.keys) == [DHTID(KEY).to_bytes()]
    assert not asked.HasField("peer")


def test_what_hivemind_has_is_read_with_the_nearest_first() -> None:
    nodes = [DHTID.generate(peer) for peer in PEERS]
    encoded = found(
        dictionary(a=MSGPackSerializer.dumps(b"first"), b=MSGPackSerializer.dumps(b"second")),
        nearest_node_ids=[node.to_bytes() for node in nodes],
        nearest_peer_ids=[base58.b58decode(peer) for peer in PEERS],
    )
    read = read_found(encoded, KEY, "sender")
    assert {subkey: value for subkey, (value, _) in read.entries.items()} == {"a": b"first", "b": b"second"}
    assert all(999.0 < expires_at - time.time() < 1002.0 for _, expires_at in read.entries.values())
    expected = sorted((node.xor_distance(DHTID(KEY)), peer) for node, peer in zip(nodes, PEERS, strict=True))
    assert list(read.nearest) == expected


def test_a_peer_that_has_nothing_names_others_all_the_same() -> None:
    encoded = answer(dht_pb2.FindResult(nearest_node_ids=[b"n" * 20], nearest_peer_ids=[base58.b58decode(PEERS[0])]))
    read = read_found(encoded, KEY, "sender")
    assert (read.entries, [peer for _, peer in read.nearest]) == ({}, [PEERS[0]])


def test_an_entry_that_is_no_record_hides_no_other() -> None:
    encoded = found(
        dictionary(
            good=MSGPackSerializer.dumps(b"record"),
            torn=b"\xc1",
            empty=b"",
            text=MSGPackSerializer.dumps("record"),
            map=MSGPackSerializer.dumps({"a": 1}),
            huge=MSGPackSerializer.dumps(bytes(5000)),
        )
    )
    assert list(read_found(encoded, KEY, "sender").entries) == ["good"]


def test_of_too_many_entries_some_are_read() -> None:
    packed = {f"{number}": MSGPackSerializer.dumps(b"x") for number in range(MAX_ENTRIES + 100)}
    assert len(read_found(found(dictionary(**packed)), KEY, "sender").entries) == MAX_ENTRIES


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2, 3]),
        msgpack.packb(msgpack.ExtType(0x40, b"")),
        msgpack.packb(msgpack.ExtType(0x50, b"")),
        msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([1, 2, 3]))),
        msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([1, 2, [[1]]]))),
        b"\x91" * 100_000,
    ],
)
def test_a_value_that_is_no_dictionary_is_blamed_on_its_sender(value: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="not an answer of the DHT") as caught:
        read_found(found(value), KEY, "sender")
    assert caught.value.peer == "sender"


def test_an_error_of_the_other_end_is_an_answer_that_says_nothing() -> None:
    message = p2pd_pb2.PersistentConnectionRequest(
        callId=b"c" * 16, unaryResponse=p2pd_pb2.CallUnaryResponse(error=b"handler raised")
    )
    with pytest.raises(ProtocolViolation):
        read_found(message.SerializeToString(), KEY, "sender")


VALID = found(
    dictionary(a=MSGPackSerializer.dumps(b"first")),
    nearest_node_ids=[b"n" * 20],
    nearest_peer_ids=[base58.b58decode(PEERS[0])],
)


@given(st.one_of(st.binary(), st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=4))))
def test_any_bytes_are_an_answer_or_blamed_on_their_sender(damage: bytes | tuple[int, bytes]) -> None:
    data = damage if isinstance(damage, bytes) else VALID[: damage[0]] + damage[1] + VALID[damage[0] + 1 :]
    for read in (lambda: read_found(data, KEY, "sender"), lambda: read_addresses(data, PEERS[0], "sender")):
        try:
            read()
        except ProtocolViolation as error:
            assert error.peer == "sender"


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_addresses_over_tcp_are_read_and_no_others() -> None:
    listed = ["/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::1/tcp/4001", "/ip4/192.0.2.7/udp/4001/quic-v1", "/dns/a/tcp/1"]
    peer = base58.b58decode(PEERS[0])
    other = field(1, base58.b58decode(PEERS[1])) + field(2, encode_multiaddr("/ip4/192.0.2.8/tcp/1"))
    known = field(1, peer) + b"".join(field(2, encode_multiaddr(address)) for address in listed) + field(2, b"\x04")
    assert read_addresses(field(8, other) + field(8, known), PEERS[0], "sender") == tuple(listed[:2])
    assert read_addresses(field(8, other), PEERS[0], "sender") == ()


def test_libp2ps_table_is_asked_for_a_peer() -> None:
    assert address_request(PEERS[0]) == b"\x08\x04" + field(2, base58.b58decode(PEERS[0]))


@given(st.integers(0, 2**64 - 1))
def test_a_number_is_read_as_it_was_written(number: int) -> None:
    assert read_varint(varint(number) + b"rest") == (number, len(varint(number)))


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("/ip4/192.0.2.7/tcp/4001", ("192.0.2.7", 4001)),
        (f"/ip6/2001:db8::1/tcp/4001/p2p/{PEERS[0]}", ("2001:db8::1", 4001)),
        (f"/dns4/example.org/tcp/1/p2p/{PEERS[0]}", ("example.org", 1)),
        (f"/ip4/192.0.2.7/tcp/4001/tls/p2p/{PEERS[0]}", None),
        (f"/ip4/192.0.2.7/tcp/4001/p2p/{PEERS[0]}/p2p-circuit/p2p/{PEERS[1]}", None),
        ("/ip4/192.0.2.7/udp/4001/quic-v1", None),
        ("/ip4/192.0.2.7/tcp/4001/ws", None),
        ("/ip4/192.0.2/tcp/4001", None),
        ("/ip4/192.0.2.7/tcp/70000", None),
        ("/tcp/4001", None),
        ("", None),
    ],
)
def test_only_what_p2pd_listens_on_over_tcp_is_dialled(address: str, endpoint: tuple[str, int] | None) -> None:
    assert tcp_endpoint(address) == endpoint
