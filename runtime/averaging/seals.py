"""Round messages as they travel: what a leader decides is signed by it, so that anyone can pass it on."""

from typing import Any

from peers.errors import ProtocolViolation
from peers.identity import Identity
from peers.wire import seal, unseal
from runtime.averaging.events import Message
from runtime.averaging.messages import (
    COMMIT_CONTEXT,
    DESCRIPTOR_CONTEXT,
    ROUND,
    SIGNED,
    Begin,
    Commit,
    Committed,
    Descriptor,
)

# One commit a step is the rule; a peer that sends others only pushes out the oldest.
MOST_COMMITS = 64


class Seals:
    """Seals and opens, and remembers the seals of the last commits for those who will need them."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._commits: dict[Commit, bytes] = {}

    def encode(self, message: Message) -> bytes:
        if isinstance(message, Descriptor):
            return ROUND.encode(Begin(seal(self._identity, DESCRIPTOR_CONTEXT, SIGNED.encode(message))))
        if isinstance(message, Commit):
            return ROUND.encode(
                Committed(self._keep(message, seal(self._identity, COMMIT_CONTEXT, SIGNED.encode(message))))
            )
        return ROUND.encode(message)

    def decode(self, body: bytes, sender: str) -> Message:
        """Raises: ProtocolViolation blaming the sender for malformed bytes, or what its leader did not sign."""
        message: Any = ROUND.decode(body, sender)
        if not isinstance(message, Begin | Committed):
            return message  # type: ignore[no-any-return]
        context = DESCRIPTOR_CONTEXT if isinstance(message, Begin) else COMMIT_CONTEXT
        signer, signed_body = unseal(message.sealed, context, sender)
        signed: Descriptor | Commit = SIGNED.decode(signed_body, sender)
        leader = signed.leader if isinstance(signed, Descriptor) else signed.descriptor.leader
        if signer != leader or isinstance(signed, Descriptor) != isinstance(message, Begin):
            raise ProtocolViolation(sender, f"a {context} that its leader did not sign")
        if isinstance(signed, Commit):
            self._keep(signed, message.sealed)
        return signed

    def _keep(self, commit: Commit, sealed: bytes) -> bytes:
        kept = self._commits.setdefault(commit, sealed)
        while len(self._commits) > MOST_COMMITS:
            del self._commits[next(iter(self._commits))]
        return kept

    def sealed(self, commit: Commit) -> bytes | None:
        """As its leader has sealed it, None if too many have come since."""
        return self._commits.get(commit)
