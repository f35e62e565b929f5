"""Whom an observer knows of in a run, whom it asks next, and how long it waits when nobody answers."""

from collections.abc import Iterable, Sequence

from peers.addresses import MARK
from peers.membership import Known

# Hundreds of volunteers may have come and gone within the lifetime of a record: the latest announced are kept.
MOST_FOUND = 64

RETRY_LEAST_S, RETRY_MOST_S = 0.2, 10.0


class Members:
    """A pass asks everybody once; in the next one, who was asked longest ago comes first.

    ``invited`` has multiaddrs, each with ``/p2p/<peer id>``, which are never forgotten.
    """

    def __init__(self, invited: Sequence[str]) -> None:
        self._invited: dict[str, tuple[str, ...]] = {}
        for address in invited:
            peer = address.rpartition("/p2p/")[2]
            self._invited[peer] = (*self._invited.get(peer, ()), address)
        self._found: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._asked: dict[str, int] = {}
        self._questions = 0
        self._pass_began = 0

    def __len__(self) -> int:
        return len(self._invited.keys() | self._found.keys())

    def learn(self, found: Iterable[tuple[Known, float]]) -> None:
        """Members by their own word, each with the Unix time at which its record expires."""
        for known, expires_at in found:
            self._found[known.peer] = max((expires_at, tuple(known.addresses)), self._found.get(known.peer, (0.0, ())))
        latest = sorted(self._found, key=lambda peer: (-self._found[peer][0], peer))[:MOST_FOUND]
        self._found = {peer: self._found[peer] for peer in latest}
        self._asked = {peer: asked for peer, asked in self._asked.items() if peer in self}

    def __contains__(self, peer: object) -> bool:
        return peer in self._invited or peer in self._found

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Where it can be dialled through libp2p, those in its newest record first."""
        _, announced = self._found.get(peer, (0.0, ()))
        known = dict.fromkeys((*announced, *self._invited.get(peer, ())))
        return tuple(address for address in known if MARK not in address)

    def to_ask(self) -> list[str]:
        """Whom this pass has not asked yet.

        Never asked before asked, then long ago before lately; of the former, who announced itself last: a record
        outlives its peer by hours.
        """
        waiting = [peer for peer in self._invited.keys() | self._found.keys() if not self._is_asked(peer)]
        return sorted(waiting, key=lambda peer: (self._asked.get(peer, 0), -self._found.get(peer, (0.0, ()))[0], peer))

    def ask(self, peer: str) -> None:
        """``peer`` is asked now."""
        self._questions += 1
        self._asked[peer] = self._questions

    def begin_pass(self) -> None:
        """Everybody may be asked again."""
        self._pass_began = self._questions

    def _is_asked(self, peer: str) -> bool:
        return self._asked.get(peer, 0) > self._pass_began


class Backoff:
    """Waits that double, from 0.2 s to 10 s, until somebody has been followed for a while."""

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self, luck: float) -> float:
        """How long to wait after one more failure; ``luck``, from 0 to 1, keeps observers from coming all at once."""
        wait_s = min(RETRY_MOST_S, RETRY_LEAST_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        return wait_s * (0.75 + 0.25 * luck)

    def reset(self) -> None:
        self._failures = 0
