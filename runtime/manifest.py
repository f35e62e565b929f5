"""The run manifest: what must be equal on every peer, signed by the organiser; the run id is its hash."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.messages import PROTOCOL_VERSION
from peers.wire import seal, unseal
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.runfile import run_config_from_table
from runtime.version import version

MANIFEST_CONTEXT = "atoll run manifest"
MAX_MANIFEST_BYTES = 1 << 16
MANIFEST_PROTOCOL = "atoll-manifest-1"
"""Whoever opens such a stream is sent the manifest; by a bootstrap peer, which has none, an empty frame."""
RELEASE = re.compile(r"[0-9][0-9A-Za-z.+-]{0,40}")


@dataclass(frozen=True)
class Manifest:
    """``initial_state`` is the digest of the anchor and momentum that the run begins with.

    ``nonce`` is drawn when the run is opened: whoever opens it again without its folder opens another run, so that
    fresh weights never stand under the name of a run that has taken a step.
    """

    config: RunConfig
    initial_state: bytes
    nonce: str
    organiser: str
    run_id: str
    sealed: bytes


def sign_manifest(identity: Identity, config: RunConfig, initial_state: bytes, nonce: str) -> Manifest:
    """The manifest of a run that ``identity`` organises. The same inputs make the same run."""
    content = {
        "protocol": PROTOCOL_VERSION,
        "release": version() or "",
        "organiser": identity.peer,
        "initial_state": initial_state.hex(),
        "nonce": nonce,
        "config": asdict(config),
    }
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    sealed = seal(identity, MANIFEST_CONTEXT, body)
    return Manifest(config, initial_state, nonce, identity.peer, run_id_of(body), sealed)


def open_manifest(sealed: bytes, run_id: str | None, sender: str) -> Manifest:
    """The manifest of the run ``run_id``, or of whichever run it is of, from what ``sender`` says it is.

    Raises: ProtocolViolation blaming the sender if it is another run's, forged or malformed; ConfigError if it is
    genuine but of another protocol version, or asks for what this release does not know.
    """
    signer, body = unseal(sealed, MANIFEST_CONTEXT, sender)
    if run_id not in (None, run_id_of(body)):
        raise ProtocolViolation(sender, "sent the manifest of another run")
    try:
        content = json.loads(body)
        protocol, release = int(content["protocol"]), str(content.get("release", ""))
        # First, since all else may mean something else there.
        if protocol != PROTOCOL_VERSION:
            raise _other_version(protocol, release)
        organiser, initial_state = content["organiser"], bytes.fromhex(content["initial_state"])
        table, nonce = content["config"], str(content["nonce"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolViolation(sender, f"sent a malformed manifest: {error!r}") from None
    if organiser != signer:
        raise ProtocolViolation(sender, "sent a manifest that its organiser did not sign")
    return Manifest(run_config_from_table(table, "manifest"), initial_state, nonce, organiser, run_id_of(body), sealed)


def _other_version(protocol: int, release: str) -> ConfigError:
    age = "newer" if protocol > PROTOCOL_VERSION else "older"
    theirs = f", {release}" if RELEASE.fullmatch(release) else ""
    return ConfigError(
        f"the run speaks protocol {protocol} and this Atoll {PROTOCOL_VERSION}: its peers are {age}, so install the"
        f" release that they use{theirs}"
    )


def run_id_of(body: bytes) -> str:
    """40 hex digits: 160 bits of SHA-256, as short as is safe to paste."""
    return hashlib.sha256(body).hexdigest()[:40]
