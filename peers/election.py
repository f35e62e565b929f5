"""Who leads a round, computed alike by everyone from hashes alone."""

import hashlib
from collections.abc import Iterable


def leadership_order(run_id: str, outer_step: int, attempt: int, candidates: Iterable[str]) -> list[str]:
    """Candidates from the first in line to lead this attempt to the last.

    The order is a fresh pseudo-random one for each attempt, so a leader that nobody can reach loses its place, and
    nobody leads twice in a row by right.
    """

    def rank(peer: str) -> tuple[bytes, str]:
        ticket = f"{run_id}/{outer_step}/{attempt}/{peer}".encode()
        return hashlib.sha256(ticket).digest(), peer

    return sorted(set(candidates), key=rank)
