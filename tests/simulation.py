"""A swarm in one process on a virtual clock: the real machines and drivers, a seeded network, seeded faults.

A seed replays a run exactly. Time jumps to the next thing due, so minutes of a swarm take fractions of a second. Every
invariant of one peer is checked after each of its events, the ones between peers after each applied step.
"""

import asyncio
import math
import random
import selectors
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from peers.identity import Identity
from peers.memory import MemoryNetwork
from peers.messages import Role, Status
from peers.service import Mesh
from runtime.averaging import events
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.training.model import digest
from runtime.training.outer import apply_outer_step, outer_momentum

T = TypeVar("T")
RUN_ID = "5" * 40
N_ELEMENTS = 3 * 4096 + 1000
TOKENS = 1000


class _JumpingSelector:
    """Waits for nothing: where a real selector would sleep, the clock jumps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits for something that nobody will do")
        self.now += max(timeout, 0.0)
        return self._real.select(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` passes only when nothing is left to do."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._virtual.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class Work:
    tokens: int
    loss: float


class SimulatedTrainer:
    """Takes virtual time for its inner steps; its pseudo-gradient depends on peer and outer step alone."""

    def __init__(self, peer: str, rng: random.Random, phase_s: float) -> None:
        self.n_elements, self.outer_step, self.progress = N_ELEMENTS, 0, 0
        self.anchor_P = torch.linspace(-1, 1, N_ELEMENTS)
        self.momentum_P = torch.zeros(N_ELEMENTS)
        self.phase_s = phase_s
        self._peer, self._rng = peer, rng
        self._carried_P = torch.zeros(N_ELEMENTS)
        self._carried_tokens = 0
        self._done = 0.0

    async def train(self, stop: threading.Event) -> Work:
        loop = asyncio.get_running_loop()
        began, duration_s = loop.time(), self.phase_s * self._rng.uniform(0.8, 1.3)
        # A stop is seen between two inner steps, of which there are 25.
        while loop.time() - began < duration_s and not stop.is_set():
            await asyncio.sleep(duration_s / 25)
            self.progress += 1
        self._done = min((loop.time() - began) / duration_s, 1.0)
        return Work(int(TOKENS * self._done) + self._carried_tokens, math.exp(-self.outer_step / 10))

    def pseudo_gradient(self) -> Tensor:
        seed = int.from_bytes(self._peer.encode()[-4:], "big") * 1000 + self.outer_step
        noise_P = torch.randn(N_ELEMENTS, generator=torch.Generator().manual_seed(seed))
        return self._done * noise_P + self._carried_P

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        own_P, carried_P = self.pseudo_gradient(), torch.zeros(N_ELEMENTS)
        for start, stop in missed:
            carried_P[start:stop] = own_P[start:stop]
        n_missed = sum(stop - start for start, stop in missed)
        self._carried_P = carried_P
        self._carried_tokens = (int(TOKENS * self._done) + self._carried_tokens) * n_missed // N_ELEMENTS
        self._done = 0.0
        momentum = outer_momentum(self.outer_step, 0.9, 20)
        apply_outer_step(self.anchor_P, self.momentum_P, mean_pseudo_gradient_P, learning_rate=0.7, momentum=momentum)
        self.outer_step += 1

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        self.outer_step = outer_step
        self.anchor_P.copy_(anchor_P)
        self.momentum_P.copy_(momentum_P)

    def state_digest(self) -> bytes:
        return digest(self.anchor_P, self.momentum_P)

    def anchor_digest(self) -> bytes:
        return digest(self.anchor_P)


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
    """Peers on one network, and what all of them have committed.

    ``steps`` maps an outer step to what each peer that committed it holds: lineage and anchor hash.
    """

    seed: int
    last_outer_step: int
    codec: str = "int8"
    quorum: int = 1
    story: list[str] = field(default_factory=list)
    steps: dict[int, dict[str, tuple[str, str]]] = field(default_factory=dict)
    participation: dict[int, list[str]] = field(default_factory=dict)
    peers: dict[str, SimulatedPeer] = field(default_factory=dict)
    forks_allowed: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.network = MemoryNetwork(random.Random(self.rng.random()))
        self.loop = asyncio.get_running_loop()

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {what}")

    def start(self, name: str, *, established: bool = False, phase_s: float = 2.0) -> SimulatedPeer:
        """Start a peer, fresh, under a key of its own."""
        identity = Identity.from_seed(self.rng.randbytes(32))
        trainer = SimulatedTrainer(identity.peer, random.Random(self.rng.random()), phase_s)
        lineage = first_lineage(RUN_ID, trainer.state_digest())
        strike = lambda peer, reason: self._report(name, "strike", member=peer, reason=reason)  # noqa: E731
        mesh = Mesh(
            identity,
            RUN_ID,
            transport := self.network.transport(identity.peer),
            self.network.discovery(),
            Status(Role.MEMBER if established else Role.JOINING, 0, lineage, 0),
            random.Random(self.rng.random()),
            strike,
            self.network.unix_time,
        )
        averager = Averager(
            identity,
            RUN_ID,
            mesh,
            transport,
            trainer,
            lineage=lineage,
            established=established,
            codec=self.codec,
            quorum=self.quorum,
            last_outer_step=self.last_outer_step,
            report=lambda event, **fields: self._report(name, event, **fields),
        )
        _validate_after_each(averager)

        async def live() -> None:
            async with asyncio.TaskGroup() as tasks:
                meshing = tasks.create_task(mesh.run())
                try:
                    await averager.run()
                    await mesh.leave("the run is over")
                finally:
                    meshing.cancel()
            await transport.close()

        task = self.loop.create_task(live(), name=name)
        self.peers[name] = SimulatedPeer(name, identity.peer, averager, trainer, mesh, task)
        self.tell(f"{name} starts as {identity.peer[-6:]}")
        return self.peers[name]

    async def crash(self, name: str) -> None:
        """The process is gone between two instructions; what it had in memory is lost."""
        victim = self.peers.pop(name)
        self.tell(f"{name} crashes")
        self.network.crash(victim.peer)
        victim.task.cancel()
        await asyncio.wait([victim.task])

    async def finish(self, timeout_s: float) -> None:
        """Wait until every living peer has ended its run.

        Raises: AssertionError, with the story, if one fails or is not done in time.
        """
        async with asyncio.timeout(timeout_s):
            while running := [peer.task for peer in self.peers.values() if not peer.task.done()]:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for peer in self.peers.values():
            if error := peer.task.exception():
                raise error

    def _report(self, name: str, event: str, **fields: Any) -> None:
        shown = {key: value for key, value in fields.items() if key not in ("lineage", "anchor_sha256", "members")}
        self.tell(f"{name} {event} {shown}")
        if event == "outer_step_committed":
            held = self.steps.setdefault(fields["outer_step"], {})
            held[name] = fields["lineage"], fields["anchor_sha256"]
            self.participation[fields["outer_step"]] = fields["members"]
            assert self.forks_allowed or len(set(held.values())) == 1, (
                f"outer step {fields['outer_step']} has {len(set(held.values()))} results"
            )
            assert sum(fields["weights"]) > 0, "an outer step without any work in it"


def _validate_after_each(averager: Averager) -> None:
    handle = averager.machine.handle

    def checked(event: events.Event, now: float) -> list[events.Action]:
        actions = handle(event, now)
        averager.machine.validate()
        return actions

    averager.machine.handle = checked  # type: ignore[method-assign]


def simulate(seed: int, scenario: Callable[[Swarm], Coroutine[Any, Any, None]], **options: Any) -> Swarm:
    """Run a scenario under a seed; a failure names the seed and carries the last of its story."""
    told: list[Swarm] = []

    async def main() -> Swarm:
        swarm = Swarm(seed, **options)
        told.append(swarm)
        await scenario(swarm)
        return swarm

    try:
        return run_virtual(main())
    except BaseException as error:
        story = "\n".join(told[0].story[-80:]) if told else ""
        raise AssertionError(f"seed {seed}: {error!r}\n{story}") from error
