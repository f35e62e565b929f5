"""Every fault of the design, at random moments that a seed decides, in a swarm that trains: scenario ``chaos``."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable

from simulation import SimulatedPeer, Swarm

LAST = 30
# From here on nothing breaks any more: what is broken is to heal, and the run to end with one history.
CALM_FROM = 16
PHASE_S = 1.0
# Three peers cost a third of a second, sixteen ten seconds: the large are rare.
PEERS = {2: 6, 3: 62, 4: 20, 5: 6, 6: 2, 8: 2, 12: 1, 16: 1}
FAULTS = {
    "crash": 4,
    "crash in a round": 4,
    "crash between two frames": 8,
    "several crash": 1,
    "freeze": 4,
    "hang": 2,
    "isolate": 3,
    "cut": 4,
    "partition": 2,
    "slow link": 3,
    "newcomer": 1,
    "everybody crashes": 1,
}


class Chaos:
    """What is done to one swarm."""

    def __init__(self, swarm: Swarm) -> None:
        self.counts: Counter[str] = Counter()
        self._swarm, self._rng = swarm, swarm.rng
        self._mends: dict[asyncio.Task[None], Callable[[], object]] = {}
        self._phases: dict[str, float] = {}
        self._auxiliary: set[str] = set()
        self._falling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the calm; then everything is mended that was broken."""
        swarm, rng = self._swarm, self._rng
        n_peers = rng.choices([*PEERS], [*PEERS.values()])[0]
        swarm.quorum = swarm.ledger.quorum = rng.randint(1, max(1, n_peers // 2))
        # Those who only reduce, beside those who train.
        self._auxiliary = {f"a{index}" for index in range(rng.choice([0, 0, 0, 0, 1, 2]))}
        for name in [*(f"p{index}" for index in range(n_peers)), *sorted(self._auxiliary)]:
            self._start(name, established=name == "p0")
        mean_s = rng.choice([1.0, 2.0, 4.0])
        while await self._trouble_for(rng.expovariate(1 / mean_s)):
            kind = rng.choices([*FAULTS], [*FAULTS.values()])[0]
            if len(self._members()) >= 2:
                self.counts[kind] += await self._strike(kind)
        swarm.fault("calm")
        swarm.network.doomed.clear()
        for task, mend in list(self._mends.items()):
            task.cancel()
            mend()

    async def _trouble_for(self, seconds: float) -> bool:
        """Let time pass; False as soon as the calm has come."""
        while (troubled := max(self._swarm.steps, default=0) < CALM_FROM) and seconds > 0:
            await asyncio.sleep(min(seconds, PHASE_S / 4))
            seconds -= PHASE_S / 4
        return troubled

    def _start(self, name: str, established: bool = False) -> None:
        phase_s = self._phases.setdefault(name, PHASE_S * self._rng.choice([0.8, 1.0, 1.0, 1.2, 3.0]))
        self._swarm.start(name, established=established, phase_s=phase_s, trains=name not in self._auxiliary)

    def _members(self) -> list[SimulatedPeer]:
        """Peers that can be struck: they live, have a state and are not under a fault that takes them away."""
        swarm = self._swarm
        return [
            peer
            for peer in swarm.peers.values()
            if peer.averager.established
            and not peer.task.done()
            and not swarm.loop.frozen(peer.peer)
            and peer.peer not in swarm.network.isolated
        ]

    async def _strike(self, kind: str) -> bool:
        """Do it, and see to it that it ends some time; False if this is no time for it."""
        swarm, rng, members = self._swarm, self._rng, self._members()
        victim = rng.choice(members)
        match kind:
            case "crash":
                await self._crash([victim])
            case "crash in a round":
                in_round = [peer for peer in members if peer.averager.machine.descriptor is not None]
                leading = [peer for peer in in_round if peer.averager.machine.leads]
                if not in_round:
                    return False
                await self._crash([rng.choice(leading if leading and rng.random() < 0.5 else in_round)])
            case "crash between two frames":
                # Half-way through a commit to all, a result, a state: a frame goes out, and the next does not.
                n_frames = rng.randint(0, 60)
                swarm.fault(f"{victim.name} will crash after {n_frames} frames")
                swarm.network.doomed[victim.peer] = n_frames, functools.partial(self._fall, victim)
            case "several crash":
                if len(members) < 3:
                    return False
                n_victims = rng.randint(2, len(members) - 1)
                # Those who die may be all that have seen a commit.
                swarm.ledger.forks_allowed = True
                await self._crash(rng.sample(members, n_victims))
            case "everybody crashes":
                if not any(state.tokens for state in swarm.disks.values()) or rng.random() < 0.7:
                    return False
                swarm.ledger.forks_allowed = True
                await self._crash([*swarm.peers.values()])
            case "freeze":
                swarm.ledger.forks_allowed = True
                swarm.freeze(victim.name)
                self._later(rng.uniform(0.5, 12.0), lambda: swarm.thaw(victim.name))
            case "hang":
                swarm.fault(f"the training thread of {victim.name} hangs")
                victim.trainer.hangs = True
                self._later(rng.uniform(2.0, 20.0), lambda: setattr(victim.trainer, "hangs", False))
            case "isolate":
                swarm.ledger.forks_allowed = True
                swarm.fault(f"the link of {victim.name} is down")
                swarm.network.isolated.add(victim.peer)
                self._later(rng.uniform(1.0, 30.0), lambda: self._rejoin(victim))
            case "cut":
                one, other = rng.sample(members, 2)
                swarm.fault(f"the connections between {one.name} and {other.name} break")
                swarm.network.cut(one.peer, other.peer)
            case "partition":
                if len(members) < 4 or swarm.network.is_partitioned:
                    return False
                swarm.ledger.forks_allowed = True
                side = rng.sample(members, rng.randint(1, len(members) // 2))
                swarm.fault(f"a partition: {', '.join(peer.name for peer in side)} on one side")
                swarm.network.partition([peer.peer for peer in side])
                self._later(rng.uniform(5.0, 30.0), self._heal)
            case "slow link":
                swarm.ledger.forks_allowed = True
                rate = rng.choice([10e3, 30e3, 100e3])
                swarm.fault(f"the link of {victim.name} has {rate / 1e3:.0f} kB/s")
                swarm.network.bytes_per_s[victim.peer] = rate
                self._later(rng.uniform(5.0, 30.0), lambda: self._widen(victim))
            case "newcomer":
                self._start(f"n{len(self._phases)}")
        return True

    def _later(self, seconds: float, mend: Callable[[], object]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            del self._mends[task]
            mend()

        task = asyncio.get_running_loop().create_task(wait())
        self._mends[task] = mend

    async def _crash(self, victims: list[SimulatedPeer]) -> None:
        for victim in victims:
            if self._swarm.peers.get(victim.name) is not victim:
                continue
            await self._swarm.crash(victim.name)
            self._later(self._rng.uniform(0.5, 15.0), functools.partial(self._start, victim.name))

    def _fall(self, victim: SimulatedPeer) -> None:
        """Crash from within the peer's own code."""
        swarm = self._swarm
        if swarm.peers.get(victim.name) is victim:
            swarm.network.crash(victim.peer)
            swarm.loop.freeze(victim.peer)
            task = swarm.loop.create_task(self._crash([victim]), context=swarm.network.context)
            self._falling.add(task)
            task.add_done_callback(self._falling.discard)

    def _rejoin(self, victim: SimulatedPeer) -> None:
        self._swarm.fault(f"the link of {victim.name} is up")
        self._swarm.network.isolated.discard(victim.peer)

    def _heal(self) -> None:
        self._swarm.fault("the partition heals")
        self._swarm.network.heal()

    def _widen(self, victim: SimulatedPeer) -> None:
        self._swarm.fault(f"the link of {victim.name} is fast again")
        self._swarm.network.bytes_per_s.pop(victim.peer, None)


async def chaos(swarm: Swarm) -> None:
    """All faults for half of a run, then calm; in the end everybody has the last step of one history."""
    trouble = Chaos(swarm)
    async with asyncio.timeout(1500):
        await trouble.run()
    await swarm.finish(900)
    swarm.faults = dict(trouble.counts)
    ends = {peer.averager.lineage for peer in swarm.peers.values()}
    assert len(ends) == 1, f"{len(ends)} histories in the end"
    assert {peer.trainer.outer_step for peer in swarm.peers.values()} == {swarm.last_outer_step}
    assert {peer.trainer.state_digest() for peer in swarm.peers.values()} == {swarm.ledger.states[ends.pop()]}
