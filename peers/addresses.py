"""Multiaddrs: the text of ``/ip4/203.0.113.5/tcp/4001/p2p/12D3KooW...`` checked, and as the bytes that p2pd takes."""

import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import Iterable

import base58

from peers.errors import NetworkError
from peers.identity import is_peer_id

# A record may list any number of addresses; p2pd dials all of them at once.
MARK = "/tls/p2p/"
"""In the addresses at which a peer is dialled without p2pd."""
_MAX_ADDRESSES = 16
# Component -> its number in https://github.com/multiformats/multiaddr/blob/master/protocols.csv
_CODES = {
    "ip4": 4,
    "tcp": 6,
    "ip6": 41,
    "ip6zone": 42,
    "dns": 53,
    "dns4": 54,
    "dns6": 55,
    "dnsaddr": 56,
    "udp": 273,
    "p2p-circuit": 290,
    "p2p": 421,
    "tls": 448,
    "quic": 460,
    "quic-v1": 461,
    "ws": 477,
    "wss": 478,
}
_WITHOUT_VALUE = {"p2p-circuit", "tls", "quic", "quic-v1", "ws", "wss"}


def encode_multiaddr(text: str) -> bytes:
    """The binary form. hivemind's own encoder writes Ed25519 ids in ``/p2p/`` wrongly.

    Raises: ValueError, also for components that no p2pd of ours listens on or dials.
    """
    if "," in text:
        raise ValueError("a comma in a multiaddr")  # p2pd takes lists separated by commas
    empty, *parts = text.rstrip("/").split("/")
    if empty or not parts:
        raise ValueError("it does not begin with /")
    encoded = bytearray()
    rest = iter(parts)
    for name in rest:
        if name not in _CODES:
            raise ValueError(f"{name!r} is no part of an address")
        encoded += varint(_CODES[name])
        if name not in _WITHOUT_VALUE:
            value = next(rest, "")
            if not value:
                raise ValueError(f"nothing follows {name}")
            encoded += _encode_value(name, value)
    return bytes(encoded)


def _encode_value(name: str, value: str) -> bytes:
    match name:
        case "ip4":
            return ipaddress.IPv4Address(value).packed
        case "ip6":
            if "%" in value:
                raise ValueError("the zone of an address is a part of its own, /ip6zone/")
            return ipaddress.IPv6Address(value).packed
        case "tcp" | "udp":
            if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) < 1 << 16):
                raise ValueError(f"{value!r} is no port")
            return int(value).to_bytes(2, "big")
        case "p2p":
            if not is_peer_id(value):
                raise ValueError(f"{value!r} is not an Ed25519 peer id")
            raw = base58.b58decode(value)
        case _:
            if not (value.isascii() and value.isprintable() and len(value) <= 253):
                raise ValueError(f"{value!r} is no name")
            raw = value.encode("ascii")
    return varint(len(raw)) + raw


def dialable(peer: str, addresses: Iterable[str]) -> list[bytes]:
    """Binary addresses without the final ``/p2p/<peer>``; what is malformed or names another peer is left out."""
    found = []
    for address in list(addresses)[:_MAX_ADDRESSES]:
        with contextlib.suppress(ValueError):
            rest = address.removesuffix(f"/p2p/{peer}")
            if encoded := b"" if is_peer_id(rest.rpartition("/p2p/")[2]) else encode_multiaddr(rest):
                found.append(encoded)
    return found


def direct_address(address: str, port: int) -> str | None:
    """Where ``peers.direct`` is dialled, on the host of p2pd's own address; None for one that is no host of TCP."""
    parts = address.split("/")
    if len(parts) != 7 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return None
    return f"/{parts[1]}/{parts[2]}/tcp/{port}{MARK}{parts[6]}"


def host_and_port(address: str) -> tuple[str, int]:
    """Of a direct address.

    Raises: ValueError if it is none.
    """
    parts = address.partition(MARK)[0].split("/")
    if len(parts) != 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp" or not parts[4].isascii():
        raise ValueError(f"{address!r} is no direct address")
    if not 0 < (port := int(parts[4])) < 1 << 16:
        raise ValueError(f"{address!r} has no such port")
    return str(ipaddress.ip_address(parts[2])), port


def tcp_endpoint(address: str) -> tuple[str, int] | None:
    """Host, a name or an IP address, and port at which p2pd itself takes TCP; None for every other way to reach it."""
    parts = address.split("/")
    named = len(parts) == 5 or (len(parts) == 7 and parts[5] == "p2p")
    if not named or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp":
        return None
    try:
        encode_multiaddr(address)
    except ValueError:
        return None
    return parts[2], int(parts[4])


def is_public(address: str) -> bool:
    """Whether it may lead here from anywhere: a name, or an IP address that is not of a network of one's own."""
    parts = address.split("/")
    if len(parts) < 3 or "p2p-circuit" in parts:
        return False
    if parts[1] in ("ip4", "ip6"):
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(parts[2]).is_global
    return parts[1].startswith("dns")


def seen_endpoint(encoded: bytes) -> tuple[str, int] | None:
    """IP address and port at the beginning of a binary multiaddr, as p2pd has whom it is connected with.

    None for a way through a relay, or one that is not TCP: nothing can be dialled there.
    """
    n_bytes = {_CODES["ip4"]: 4, _CODES["ip6"]: 16}.get(encoded[0] if encoded else 0)
    if n_bytes is None or len(encoded) < n_bytes + 4 or encoded[n_bytes + 1] != _CODES["tcp"]:
        return None
    if varint(_CODES["p2p-circuit"]) in encoded[n_bytes + 4 :]:
        return None
    host = str(ipaddress.ip_address(encoded[1 : n_bytes + 1]))
    return host, int.from_bytes(encoded[n_bytes + 2 : n_bytes + 4], "big")


def if_free(host: str, port: int) -> int:
    """The port, or 0 for any where another program has it by now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError, OverflowError), socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return port
    return 0


def check_bootstrap_address(address: str) -> None:
    """Refuse what is malformed or does not say whom to expect.

    Raises: NetworkError, a sentence for the user.
    """
    try:
        encode_multiaddr(address)
        if not is_peer_id(address.rpartition("/p2p/")[2]):
            raise ValueError("it does not end in /p2p/<peer id>")
    except ValueError as error:
        raise NetworkError(
            f"{address!r} is no address of a peer ({error}): it looks like /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW..."
        ) from error


def hold_listen_address(address: str) -> socket.socket:
    """Refuse what is malformed, and a port in use: p2pd shares ports (SO_REUSEPORT) with other p2pds, silently.

    Returns: what keeps others that are started in the same moment from it, until it is closed.
    Raises: NetworkError, a sentence for the user.
    """
    parts = address.split("/")
    try:
        encode_multiaddr(address)
        _, ip, host, protocol, port_text = parts[:5]
        family = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}[ip]
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
        port = int(port_text)
    except (ValueError, KeyError) as error:
        raise NetworkError(
            f"{address!r} is no address to listen on ({error}): it looks like /ip4/0.0.0.0/tcp/4001."
        ) from error
    try:
        with socket.socket(family, kind) as probe:
            if protocol == "tcp":
                # Connections of an earlier run in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return _held(address if port else "")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"port {port} is in use: choose another with --port, or 0 for any.") from None
        raise NetworkError(f"cannot listen on {address} ({error.strerror}): choose another address or port.") from None


def _held(name: str) -> socket.socket:
    """On Linux a name that only one process of a network namespace can have, and that ends with it.

    Raises: OSError (EADDRINUSE).
    """
    holder = socket.socket(socket.AF_UNIX)
    try:
        if name and sys.platform == "linux":
            holder.bind(f"\0atoll{name}")
    except OSError:
        holder.close()
        raise
    return holder


def varint(number: int) -> bytes:
    """``number``, not negative, seven bits a byte, the lowest first (as in protobuf)."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
