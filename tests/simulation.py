"""A swarm in one process on a virtual clock: the real machines and drivers, a seeded network, seeded faults.

A seed replays a run exactly. Time jumps to the next thing due, so minutes of a swarm take fractions of a second. Every
invariant is checked after each event of each peer (``invariants.py``); ``make sim`` runs many seeds (``seeds.py``).
"""

import asyncio
import contextvars
import functools
import hashlib
import itertools
import math
import random
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from invariants import Ledger
from torch import Tensor
from virtual_clock import PEER, VirtualClockLoop, run_virtual

from peers.identity import Identity
from peers.memory import MemoryNetwork
from peers.messages import Role, Status
from peers.service import Mesh
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.pieces import PieceList
from runtime.state import State
from runtime.training.outer import apply_outer_step, outer_momentum

RUN_ID = "5" * 40
N_ELEMENTS = 2 * 4096 + 1000
TOKENS = 1000
# Fields that make a story long and no clearer.
UNTOLD = frozenset(("anchor_sha256", "figures", "losses"))
# As the real peer looks for those who went on without it.
LOOK_BACK_S = 5.0
# Sixteen peers need about ten seconds.
MOST_CPU_S = 90.0


@dataclass(frozen=True)
class Work:
    tokens: int
    loss: float


class SimulatedTrainer:
    """Takes virtual time for its inner steps; its pseudo-gradient depends on peer and outer step alone."""

    def __init__(
        self,
        peer: str,
        rng: random.Random,
        phase_s: float,
        trained: dict[str, int] | None = None,
        n_elements: int = N_ELEMENTS,
    ) -> None:
        self.n_elements, self.outer_step, self.progress, self.trains = n_elements, 0, 0, True
        self.device = "cpu"
        self.anchor_P = torch.linspace(-1, 1, n_elements)
        self.momentum_P = torch.zeros(n_elements)
        self.phase_s, self.inner_steps, self.hangs = phase_s, 10, False
        self._trained = {peer: 0} if trained is None else trained
        self._peer, self._rng = peer, rng
        self._carried_P = torch.zeros(n_elements)
        self._carried_tokens = 0
        self._done = 0.0
        self._trained_from = -1

    async def train(self, stop: threading.Event) -> Work:
        if not self.trains:
            return Work(0, 0.0)
        loop = asyncio.get_running_loop()
        self._trained_from = self.outer_step
        began, duration_s = loop.time(), self.phase_s * self._rng.uniform(0.8, 1.3)
        # A stop is seen between two inner steps.
        while self.hangs or (loop.time() - began < duration_s and not stop.is_set()):
            await asyncio.sleep(duration_s / self.inner_steps)
            self.progress += not self.hangs
        self._done = min((loop.time() - began) / duration_s, 1.0)
        self._trained[self._peer] += int(TOKENS * self._done)
        return Work(int(TOKENS * self._done) + self._carried_tokens, math.exp(-self.outer_step / 10))

    def pseudo_gradient(self) -> Tensor:
        assert self._trained_from == self.outer_step, "no contribution is of another state than it is trained from"
        return self._moved()

    def _moved(self) -> Tensor:
        seed = int.from_bytes(self._peer.encode()[-4:], "big") * 1000 + self.outer_step
        return self._done * _noise(seed, self.n_elements) + self._carried_P

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        own_P, carried_P = self._moved(), torch.zeros(self.n_elements)
        for start, stop in missed:
            carried_P[start:stop] = own_P[start:stop]
        n_missed = sum(stop - start for start, stop in missed)
        self._carried_P = carried_P
        self._carried_tokens = (int(TOKENS * self._done) + self._carried_tokens) * n_missed // self.n_elements
        self._done = 0.0
        momentum = outer_momentum(self.outer_step, 0.9, 20)
        apply_outer_step(self.anchor_P, self.momentum_P, mean_pseudo_gradient_P, learning_rate=0.7, momentum=momentum)
        self.outer_step += 1

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        self.outer_step = outer_step
        self.anchor_P.copy_(anchor_P)
        self.momentum_P.copy_(momentum_P)
        self._carried_P, self._carried_tokens, self._done = torch.zeros(self.n_elements), 0, 0.0

    def state_digest(self) -> bytes:
        return PieceList.of(self.anchor_P, self.momentum_P).digest


@functools.lru_cache(maxsize=64)
def _noise(seed: int, n_elements: int) -> Tensor:
    """Float32 (P,), not written to: asked for again when its step is applied."""
    return torch.randn(n_elements, generator=torch.Generator().manual_seed(seed))


@dataclass
class SimulatedPeer:
    name: str
    peer: str
    averager: Averager
    trainer: SimulatedTrainer
    mesh: Mesh
    task: asyncio.Task[None]


@dataclass
class Swarm:
    """Peers on one network, what all of them have committed, and what each has on its disk."""

    seed: int
    last_outer_step: int
    codec: str = "int8"
    quorum: int = 1
    on_partition: str = "fork"
    skew: bool = True
    n_elements: int = N_ELEMENTS
    story: list[str] = field(default_factory=list)
    steps: dict[int, dict[str, tuple[str, str]]] = field(default_factory=dict)
    """Outer step -> peer -> lineage and anchor hash."""
    participation: dict[int, list[str]] = field(default_factory=dict)
    peers: dict[str, SimulatedPeer] = field(default_factory=dict)
    """Those whose process lives."""
    disks: dict[str, State] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    """How often each kind has struck."""
    kept: dict[str, list[State]] = field(default_factory=dict)
    """States of forks that a peer has left."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.network = MemoryNetwork(random.Random(self.rng.random()))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        self.loop = loop
        self.ledger = Ledger(self.quorum)
        self.failure: BaseException | None = None
        """What the first peer to fail has failed of."""
        self._scenario = asyncio.current_task()
        self._identities: dict[str, Identity] = {}
        # A generator of its own: a run with and without skew is to be the same in everything else.
        self._clocks = random.Random(self.seed)

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {what}")

    def fault(self, what: str) -> None:
        self.tell(f"** {what}")

    def start(
        self, name: str, *, established: bool = False, phase_s: float = 2.0, trains: bool = True, scale: float = 1.0
    ) -> SimulatedPeer:
        """Start a peer's process: fresh, or with what its name has on its disk.

        Args: scale is of its first weights; those of another build of PyTorch are others too.
        """
        if name not in self._identities:
            self._identities[name] = Identity.from_seed(self.rng.randbytes(32))
        identity, kept = self._identities[name], self.disks.get(name)
        trainer_rng, mesh_rng = random.Random(self.rng.random()), random.Random(self.rng.random())
        offset_s = self._clocks.uniform(-3600.0, 3600.0) if self.skew else 0.0
        trainer = SimulatedTrainer(identity.peer, trainer_rng, phase_s, self.ledger.trained, self.n_elements)
        trainer.trains = trains
        trainer.anchor_P *= scale
        lineage = first_lineage(RUN_ID, trainer.state_digest())
        self.ledger.root(lineage, trainer.state_digest())
        if kept is not None:
            trainer.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
            lineage = kept.lineage

        def report(event: str, **fields: Any) -> None:
            if self.peers.get(name) is peer:
                self._report(name, event, **fields)

        async def saved() -> None:
            self.disks[name] = averager.state()

        async def live() -> None:
            async with asyncio.TaskGroup() as tasks:
                meshing = tasks.create_task(peer.mesh.run())
                try:
                    if kept is not None and kept.tokens:
                        peer.averager._own.established = not await self._finds_members(peer.mesh)
                    await peer.averager.run()
                    await peer.mesh.leave("the run is over")
                finally:
                    meshing.cancel()
            await transport.close()

        def made() -> tuple[Mesh, Averager]:
            mesh = Mesh(
                identity,
                RUN_ID,
                transport,
                self.network.discovery(),
                Status(Role.MEMBER if established else Role.JOINING, 0, lineage, 0),
                mesh_rng,
                lambda peer, reason: report("strike", member=peer, reason=reason),
                lambda: self.network.unix_time() + offset_s,
            )
            averager = Averager(
                identity,
                RUN_ID,
                mesh,
                transport,
                trainer,
                lineage=lineage,
                tokens=kept.tokens if kept else 0,
                group=kept.group if kept else (),
                established=established,
                codec=self.codec,
                # Alone a peer chooses float32; with others int8, since nothing in here is long enough to be a rate.
                codec_costs={"int8": 2e-9, "float32": 1e-9},
                quorum=self.quorum,
                on_partition=self.on_partition,
                last_outer_step=self.last_outer_step,
                report=report,
                committed=saved,
                abandoned=lambda state: self._keep(name, state),
            )
            return mesh, averager

        # All that the peer makes and starts is its own, to be frozen with it.
        own = contextvars.copy_context()
        own.run(PEER.set, identity.peer)
        transport = own.run(self.network.transport, identity.peer)
        mesh, averager = own.run(made)
        self.ledger.watch(averager)
        peer = SimulatedPeer(name, identity.peer, averager, trainer, mesh, None)  # type: ignore[arg-type]
        peer.task = self.loop.create_task(live(), name=name, context=own)
        peer.task.add_done_callback(self._on_end)
        self.peers[name] = peer
        self.tell(f"{name} starts as {identity.peer[-6:]}" + (f" at outer step {kept.outer_step}" if kept else ""))
        return peer

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() and self.failure is None and self._scenario:
            self.failure = task.exception()
            self._scenario.cancel()

    def _keep(self, name: str, state: State) -> str:
        self.kept.setdefault(name, []).append(state)
        return f"disk of {name}"

    async def _finds_members(self, mesh: Mesh) -> bool:
        until = self.loop.time() + LOOK_BACK_S
        while self.loop.time() < until:
            if any(status.is_member for status in mesh.members().values()):
                return True
            await asyncio.sleep(0.1)
        return False

    async def crash(self, name: str) -> None:
        """The process is gone between two instructions; what it had in memory is lost, and it says nothing more."""
        victim = self.peers.pop(name)
        self.fault(f"{name} crashes")
        if not any(self._knows(peer, max(self.ledger.steps, default=0)) for peer in self.peers.values()):
            # All that have gone on, or hold what was committed, are dead: who is left may go on otherwise.
            self.ledger.forks_allowed = True
        self.network.crash(victim.peer)
        self.loop.kill(victim.peer)
        victim.task.cancel()
        self.loop.thaw(victim.peer)
        await asyncio.wait([victim.task])

    def _knows(self, peer: SimulatedPeer, outer_step: int) -> bool:
        """Whether it has the outer step, or would tell a leader what was accepted as it."""
        step = peer.averager.machine._step
        if not peer.averager.established or step is None:
            return False
        holds = step.accepted is not None or step.commit is not None
        return step.outer_step >= outer_step or (step.outer_step == outer_step - 1 and holds)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self.fault(f"{name} freezes")
        self.loop.freeze(self.peers[name].peer)

    def thaw(self, name: str) -> None:
        """SIGCONT, if it still lives."""
        if name in self.peers:
            self.fault(f"{name} thaws")
            self.loop.thaw(self.peers[name].peer)

    async def until(self, condition: Callable[[], object]) -> None:
        """Look every hundredth of a second."""
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0.01)

    async def finish(self, timeout_s: float) -> None:
        """Wait until every living peer has ended its run.

        Raises: TimeoutError if one is not done in time.
        """
        async with asyncio.timeout(timeout_s):
            while running := [peer.task for peer in self.peers.values() if not peer.task.done()]:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _report(self, name: str, event: str, **fields: Any) -> None:
        names = {peer.peer: peer.name for peer in self.peers.values()}
        shown = {key: _brief(value, names) for key, value in fields.items() if key not in UNTOLD}
        self.tell(f"{name} {event} {shown}")
        if event == "outer_step_committed":
            held = self.steps.setdefault(fields["outer_step"], {})
            held[name] = fields["lineage"], fields["anchor_sha256"]
            self.participation[fields["outer_step"]] = fields["members"]
        if event == "fork_healed" and fields["member"] == self.peers[name].peer:
            assert fields["tokens"] >= fields["left_tokens"], "forks heal: to the heavier side"

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.story).encode()).hexdigest()


class Spins(KeyboardInterrupt):
    """Virtual time stands still while real time passes: no task keeps this one to itself."""


def _spins(*_: object) -> None:
    raise Spins(f"more than {MOST_CPU_S:.0f} s of CPU")


def simulate(seed: int, scenario: Callable[[Swarm], Coroutine[Any, Any, None]], **options: Any) -> Swarm:
    """Run a scenario under a seed; a failure names the seed and carries the last of its story."""
    told: list[Swarm] = []

    async def main() -> Swarm:
        swarm = Swarm(seed, **options)
        told.append(swarm)
        try:
            await scenario(swarm)
        finally:
            # What is frozen could not end.
            for peer in list(swarm.loop.held_back):
                swarm.loop.thaw(peer)
        return swarm

    # Threads of torch that wait for each other would count as work.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = signal.signal(signal.SIGVTALRM, _spins)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S, 5.0)
    try:
        return run_virtual(main())
    except BaseException as error:
        story = "\n".join(told[0].story[-100:]) if told else ""
        cause = _first_cause(told[0].failure or error if told else error)
        raise AssertionError(f"seed {seed}: {cause!r}\n{story}") from cause
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
        torch.set_num_threads(n_threads)


def _brief(value: object, names: dict[str, str]) -> object:
    """Peers by their names, hashes by their first digits."""
    if isinstance(value, list):
        return [_brief(one, names) for one in value]
    return names.get(value, value[:8] if len(value) >= 40 else value) if isinstance(value, str) else value


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
