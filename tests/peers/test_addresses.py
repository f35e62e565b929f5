"""Addresses in text and in bytes, as libp2p has them."""

import contextlib

from hivemind.utils.multiaddr import Multiaddr
from hypothesis import given
from hypothesis import strategies as st

from peers.addresses import dialable, encode_multiaddr
from peers.identity import Identity

NOBODY = Identity.from_seed(b"\x07" * 32).peer


@given(st.text())
def test_any_text_encodes_or_is_a_value_error(text: str) -> None:
    for address in (text, f"/{text}", f"/ip4/{text}", f"/ip4/1.2.3.4/tcp/{text}", f"/p2p/{NOBODY}/{text}"):
        with contextlib.suppress(ValueError):
            encode_multiaddr(address)


@given(
    st.one_of(
        st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}"),
        st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}"),
        st.from_regex(r"/(dns|dns4|dns6|dnsaddr)/[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,20}){0,3}", fullmatch=True),
    ),
    st.sampled_from(["/tcp/", "/udp/"]),
    st.integers(0, 65535),
    st.lists(st.sampled_from(["/quic", "/quic-v1", "/tls", "/ws", "/wss", "/p2p-circuit"]), max_size=3).map("".join),
)
def test_an_address_without_a_peer_id_encodes_as_hivemind_has_it(host: str, kind: str, port: int, tail: str) -> None:
    address = f"{host}{kind}{port}{tail}"
    assert encode_multiaddr(address) == Multiaddr(address).to_bytes()


def test_a_relay_address_encodes_as_libp2p_has_it() -> None:
    relay = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}/p2p-circuit"
    identity = (
        bytes.fromhex("a503260024080112 20") + Identity.from_seed(b"\x07" * 32)._key.public_key().public_bytes_raw()
    )
    assert encode_multiaddr(relay) == bytes.fromhex("047f000001060009") + identity + bytes.fromhex("a202")
    peer = Identity.from_seed(b"\x08" * 32).peer
    assert dialable(peer, [f"{relay}/p2p/{peer}"]) == [encode_multiaddr(relay)]
    assert dialable(peer, [f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}", f"/p2p/{peer}"]) == []
