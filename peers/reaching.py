"""Whether this peer can be dialled, found out by itself: asked of others when it comes, and now and then."""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence

from peers.addresses import tcp_endpoint
from peers.daemon import end_tasks
from peers.dialback import MOST_PORTS, Ask, Reach, Seen, ask_dialback, reach_of
from peers.direct import DirectTransport
from peers.errors import NetworkError, PeerError, ProtocolViolation
from peers.relay import RelayedTransport
from peers.transport import Transport

logger = logging.getLogger(__name__)

# So many say how it is: one may sit behind the same router.
ENOUGH = 3
# How often members are looked at for somebody who has not been asked, and after how long everything is asked anew: a
# router is set up in minutes, and forgets in hours. Who was not reached may only have been slow to answer.
FIRST_LOOK_S, LOOK_S, AGAIN_S, AGAIN_IF_NOT_S = 0.2, 2.0, 300.0, 30.0
# Without an answer by then the peer begins all the same.
FIRST_S = 4.0


class Reaching:
    """Args: the transports of one peer, lowest first; what is found is told to the upper ones."""

    def __init__(self, p2pd: Transport, direct: DirectTransport, relayed: RelayedTransport) -> None:
        self.changed: Callable[[Reach | None], object] = lambda reach: None
        self.strike: Callable[[str, str], object] = lambda peer, reason: None
        """Called with a peer that answers as no honest one does, and why."""
        self._p2pd, self._direct, self._relayed = p2pd, direct, relayed
        self._answers: dict[str, tuple[float, Seen]] = {}

    @property
    def found(self) -> Reach | None:
        """None while nobody has answered."""
        return self._direct.reach

    @property
    def answered(self) -> list[tuple[float, Seen]]:
        """What each has said last, and in loop time when."""
        return list(self._answers.values())

    async def ask(self, peers: Sequence[str]) -> None:
        """Ask some of these, all at once; whoever is asked has to be connected. Within 4 s.

        Whom is left to chance: nobody can choose a name by which everyone would ask it.
        """
        try:
            question = await self._question()
        except NetworkError:
            return
        asking = [
            asyncio.create_task(self._ask(peer, question)) for peer in random.sample(peers, min(len(peers), ENOUGH))
        ]
        try:
            if asking:
                await asyncio.wait(asking, timeout=FIRST_S)
        finally:
            await end_tasks(asking)
        self._decide()

    async def run(self, members: Callable[[], Collection[str]]) -> None:
        """Ask members that have not been asked until enough have answered, and after some minutes all anew."""
        loop = asyncio.get_running_loop()
        vain: dict[str, float] = {}
        while True:
            await asyncio.sleep(LOOK_S if self._answers else FIRST_LOOK_S)
            now = loop.time()
            old = [peer for peer in self._answers if self._is_old(peer, now)]
            relayed = self._relayed.relayed
            there = [peer for peer in members() if peer not in relayed and now > vain.get(peer, now - 1)]
            fresh = [peer for peer in there if peer not in self._answers]
            random.shuffle(fresh)
            wanted = [peer for peer in old if peer in there]
            wanted += fresh[: max(0, ENOUGH - len(self._answers) + len(old) - len(wanted))]
            if not wanted:
                continue
            await self.ask(wanted)
            for peer in wanted:
                if peer not in self._answers:
                    vain[peer] = now + AGAIN_S
                elif self._is_old(peer, now):
                    vain[peer] = now + AGAIN_IF_NOT_S
            for peer in old:
                if self._is_old(peer, now) and len(self._answers) > 1:
                    # It is gone, or says nothing any more.
                    del self._answers[peer]
            self._decide()

    def _is_old(self, peer: str, now: float) -> bool:
        at, seen = self._answers[peer]
        return now > at + (AGAIN_S if seen.direct and seen.ports else AGAIN_IF_NOT_S)

    async def _question(self) -> Ask:
        """Raises: NetworkError."""
        endpoints = [tcp_endpoint(address) for address in await self._p2pd.addresses()]
        ports = tuple(dict.fromkeys(endpoint[1] for endpoint in endpoints if endpoint))[:MOST_PORTS]
        return Ask(self._direct.port, ports)

    async def _ask(self, peer: str, question: Ask) -> None:
        try:
            seen = await ask_dialback(self._p2pd, peer, question)
        except PeerError as error:
            if isinstance(error, ProtocolViolation):
                self.strike(peer, error.reason)
            logger.debug("reach_not_told", extra={"peer": peer, "reason": error.reason})
            return
        self._answers[peer] = asyncio.get_running_loop().time(), seen

    def _decide(self) -> None:
        before, self._direct.reach = self._direct.reach, reach_of(seen for _, seen in self.answered)
        self._relayed.hidden = self._direct.reach is not None and not self._direct.reach.dialable
        if self._direct.reach != before:
            self.changed(self._direct.reach)
