"""What a peer says in its rounds, sealed and sent; and what others say, opened."""

from collections.abc import Mapping

from peers.identity import Identity
from peers.service import Mesh
from runtime.averaging.claims import Claim
from runtime.averaging.events import Message
from runtime.averaging.messages import ROUND, Commit, Committed, Past
from runtime.averaging.results import Results
from runtime.averaging.seals import Seals


class Post:
    """Args: claims of this peer for the last outer steps, by outer step; results of the same steps."""

    def __init__(self, identity: Identity, mesh: Mesh, claims: Mapping[int, Claim], results: Results) -> None:
        self._seals = Seals(identity)
        self._mesh, self._claims, self._results = mesh, claims, results

    def send(self, to: str | None, message: Message) -> None:
        """To one peer, or to all linked ones."""
        body = self._seals.encode(message)
        for peer in self._mesh.members() if to is None else [to]:
            self._mesh.send(peer, body)

    def open(self, body: bytes, sender: str) -> Message:
        """Raises: ProtocolViolation blaming the sender."""
        return self._seals.decode(body, sender)

    def forward_commit(self, to: str, outer_step: int, pending: Commit | None) -> None:
        """Send the sealed commit of an outer step, or word that it is past.

        Args: pending is the commit of the present step, if it is known.
        """
        if pending is not None and pending.descriptor.outer_step == outer_step:
            sealed = self._seals.sealed(pending)
        else:
            sealed = self._results.sealed_commit(outer_step)
        known = self._claims.get(outer_step)
        past = Past(outer_step, known.lineage if known else b"")
        self._mesh.send(to, ROUND.encode(past if sealed is None else Committed(sealed)))

    def keep(self, commit: Commit) -> None:
        """Keep the commit that is being applied, and its results, for those who come later."""
        if (sealed := self._seals.sealed(commit)) is not None:
            self._results.keep(commit, sealed)
