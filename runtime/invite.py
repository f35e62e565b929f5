"""The invite: one string, pasted, scanned or mailed, with which a volunteer joins a run."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.config import shown
from runtime.errors import ConfigError

EXAMPLE = "atoll:0123456789abcdef0123456789abcdef01234567@/ip4/203.0.113.7/tcp/31337/p2p/12D3KooW..."
# Far above any real invite (some 120 characters an address); a pasted file is refused before it is taken apart.
MAX_CHARACTERS = 16_384
MAX_ADDRESSES = 64
# Of one that is printed, some 120 characters each: an invite is to be pasted.
MOST_INVITING = 8

HOST_PROTOCOLS = ("ip4", "ip6", "dns4", "dns6", "dns")
# The identity multihash of an Ed25519 public key (38 bytes) is always 52 characters and always begins like this.
PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
RUN_ID = re.compile(r"[0-9a-f]{40}")
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
TOKEN = re.compile(r"[A-Za-z0-9._~-]+")


@dataclass(frozen=True)
class Invite:
    run_id: str
    """40 lower-case hexadecimal digits: the hash of the signed manifest."""
    addresses: tuple[str, ...]
    """Multiaddrs of peers of the run, each ending in ``/p2p/<peer id>``; any one of them that lives is enough."""
    token: str | None = None
    """Admission token, for runs that ask for one."""


def format_invite(invite: Invite) -> str:
    """The invite as one line without spaces; ``parse_invite`` reads it back equal."""
    return f"atoll:{invite.run_id}@{','.join(invite.addresses)}{f'?token={invite.token}' if invite.token else ''}"


def parse_invite(text: str) -> Invite:
    """Read an invite as people hand it over: mail programs' line breaks and surrounding quotes are no mistake.

    Raises: ConfigError that says which part is wrong, with an example.
    """
    if len(text) > MAX_CHARACTERS:
        raise _malformed(f"it has {len(text)} characters, an invite at most {MAX_CHARACTERS}")
    compact = "".join(text.split()).strip("<>\"'`").removeprefix("invite:")
    if not compact.startswith("atoll:"):
        raise _malformed(f"it must begin with atoll:, this is {shown(compact)}")
    run_id, at, rest = compact.removeprefix("atoll:").partition("@")
    if not at:
        raise _malformed("there is no @ between the run id and the addresses")
    if not RUN_ID.fullmatch(run_id):
        raise _malformed(f"the run id must be 40 lower-case hexadecimal digits, this is {shown(run_id)}")
    listed, question, query = rest.partition("?")
    addresses = tuple(dict.fromkeys(listed.split(",")))
    if len(addresses) > MAX_ADDRESSES:
        raise _malformed(f"it has {len(addresses)} addresses, an invite at most {MAX_ADDRESSES}")
    for address in addresses:
        if problem := address_problem(address):
            raise _malformed(f"address {shown(address)} {problem}")
    return Invite(run_id, addresses, _parse_token(query) if question else None)


def nearest_last(addresses: Sequence[str]) -> list[str]:
    """First those that strangers can dial, then those of a private network, then of this machine alone."""
    return sorted(addresses, key=_nearness)


def _nearness(address: str) -> int:
    """0 for the open internet and for names, of which nothing is known, 1 for a private network, 2 for loopback."""
    protocol, host = address.split("/")[1:3]
    if not protocol.startswith("ip"):
        return 0
    ip = ipaddress.ip_address(host)
    return 2 if ip.is_loopback else 0 if ip.is_global else 1


def _parse_token(query: str) -> str:
    name, _, token = query.partition("=")
    if name != "token" or not TOKEN.fullmatch(token):
        raise _malformed(f"after ? comes token=..., this is {shown(query)}")
    return token


def address_problem(address: str) -> str | None:
    """What is wrong with a multiaddr ``/ip4|ip6|dns4|dns6|dns/HOST/tcp/PORT[...]/p2p/PEER_ID``; None if nothing is."""
    if not address.startswith("/") or not address.isascii() or not address.isprintable():
        return "must have the form /ip4/HOST/tcp/PORT/p2p/PEER_ID"
    parts = address.split("/")[1:]
    if len(parts) < 6 or parts[2] != "tcp" or parts[-2] != "p2p" or "" in parts:
        return "must have the form /ip4/HOST/tcp/PORT/p2p/PEER_ID"
    protocol, host, _, port = parts[:4]
    if protocol not in HOST_PROTOCOLS:
        return f"must begin with one of {', '.join('/' + known for known in HOST_PROTOCOLS)}"
    if not _is_host(protocol, host):
        return f"has {shown(host)} where the {protocol} host belongs"
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return f"has {shown(port)} where a port from 1 to 65535 belongs"
    if not PEER_ID.fullmatch(parts[-1]):
        return "must end in a peer id, 52 characters that begin with 12D3KooW"
    return None


def _is_host(protocol: str, host: str) -> bool:
    try:
        match protocol:
            case "ip4":
                ipaddress.IPv4Address(host)
            case "ip6":
                ipaddress.IPv6Address(host)
            case _:
                return len(host) <= 253 and HOST_NAME.fullmatch(host) is not None
    except ValueError:
        return False
    return True


def _malformed(reason: str) -> ConfigError:
    return ConfigError(f"the invite is malformed: {reason}; an invite looks like {EXAMPLE}")
