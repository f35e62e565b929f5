"""A storm: peers killed at random moments and started again."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from runtime.demo.processes import PeerProcess
from runtime.demo.toll import Toll, toll

RESTART_S = 5.0


class Storm:
    """SIGKILLs members at the rate of a Poisson process and starts each again after ``RESTART_S`` seconds.

    ``least`` members are always left: with fewer the run would wait for the next start, and not for the protocol.

    Args: restart starts a peer's process again. Times are the caller's clock, Unix in seconds.
    """

    def __init__(
        self, faults_per_hour: float, rng: random.Random, restart: Callable[[PeerProcess], None], least: int = 1
    ) -> None:
        self.deaths: dict[str, list[float]] = defaultdict(list)
        """Peer -> when it was killed."""
        self._per_s, self._rng, self._restart, self._least = faults_per_hour / 3600.0, rng, restart, least
        self._next_at: float | None = None
        self._restarts: dict[PeerProcess, float] = {}

    @property
    def faults(self) -> int:
        return sum(map(len, self.deaths.values()))

    def toll(self, peers: Sequence[PeerProcess], since: float, until: float, tokens_per_s: float | None = None) -> Toll:
        """See ``runtime.demo.toll``."""
        logs = {peer.name: peer.events for peer in peers}
        return toll(logs, self.deaths, {peer.name: peer.peer_id for peer in peers}, since, until, tokens_per_s)

    def act(self, now: float, peers: Sequence[PeerProcess], strike: bool = True) -> PeerProcess | None:
        """Do what is due by now; the peer that was killed, if one was. Without ``strike`` only start again."""
        for peer, at in list(self._restarts.items()):
            if now >= at:
                del self._restarts[peer]
                self._restart(peer)
        if self._next_at is None:
            self._next_at = now + self._rng.expovariate(self._per_s)
        if not strike or now < self._next_at:
            return None
        self._next_at += self._rng.expovariate(self._per_s)
        members = [peer for peer in peers if peer.exit_code is None and peer.is_member]
        if len(members) <= self._least:
            return None
        victim = self._rng.choice(members)
        victim.kill()
        self.deaths[victim.name].append(now)
        self._restarts[victim] = now + RESTART_S
        return victim
