"""The run manifest: what must be equal on every peer, signed by the organiser; the run id is its hash."""

import hashlib
import json
from dataclasses import asdict, dataclass

from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.messages import PROTOCOL_VERSION
from peers.wire import seal, unseal
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.runfile import run_config_from_table

MANIFEST_CONTEXT = "atoll run manifest"
MAX_MANIFEST_BYTES = 1 << 16


@dataclass(frozen=True)
class Manifest:
    """``initial_state`` is the digest of the anchor and momentum that the run begins with."""

    config: RunConfig
    initial_state: bytes
    organiser: str
    run_id: str
    sealed: bytes


def sign_manifest(identity: Identity, config: RunConfig, initial_state: bytes) -> Manifest:
    """The manifest of a run that ``identity`` organises. The same inputs make the same run."""
    content = {
        "protocol": PROTOCOL_VERSION,
        "organiser": identity.peer,
        "initial_state": initial_state.hex(),
        "config": asdict(config),
    }
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return Manifest(config, initial_state, identity.peer, run_id_of(body), seal(identity, MANIFEST_CONTEXT, body))


def open_manifest(sealed: bytes, run_id: str, sender: str) -> Manifest:
    """The manifest of the run ``run_id`` from what ``sender`` says it is.

    Raises: ProtocolViolation blaming the sender if it is another run's, forged or malformed; ConfigError if it is
    genuine but asks for what this version does not know.
    """
    signer, body = unseal(sealed, MANIFEST_CONTEXT, sender)
    if run_id_of(body) != run_id:
        raise ProtocolViolation(sender, "sent the manifest of another run")
    try:
        content = json.loads(body)
        organiser, initial_state = content["organiser"], bytes.fromhex(content["initial_state"])
        protocol, table = content["protocol"], content["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolViolation(sender, f"sent a malformed manifest: {error!r}") from None
    if organiser != signer:
        raise ProtocolViolation(sender, "sent a manifest that its organiser did not sign")
    if protocol != PROTOCOL_VERSION:
        raise ConfigError(
            f"the run speaks protocol {protocol!r} and this Atoll {PROTOCOL_VERSION}: install the release that it uses"
        )
    return Manifest(run_config_from_table(table, "manifest"), initial_state, organiser, run_id, sealed)


def run_id_of(body: bytes) -> str:
    """40 hex digits: 160 bits of SHA-256, as short as is safe to paste."""
    return hashlib.sha256(body).hexdigest()[:40]
