"""Puts one peer together, keys, network, model and rounds, and takes it apart when the user or the run says so."""

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.status import Status as StatusLine
from torch import Tensor

from peers.discovery import DhtDiscovery
from peers.errors import NetworkError, PeerError, ProtocolViolation
from peers.identity import Identity
from peers.messages import Role, Status
from peers.p2pd import P2pdTransport
from peers.service import Mesh
from peers.transport import Stream, Transport
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.config import PeerConfig, RunConfig
from runtime.errors import ConfigError
from runtime.invite import Invite, format_invite
from runtime.log import EventLog
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest, open_manifest, sign_manifest
from runtime.training.checkpoint import TrainingState, load_state, save_state
from runtime.training.data import load_corpus
from runtime.training.replica import InnerResult, Replica
from runtime.view import View

T = TypeVar("T")

MANIFEST_PROTOCOL = "atoll-manifest-1"
MANIFEST_FILE = "manifest"
CHECKPOINT_EVERY = 10
# An inner step of a large model on a CPU can outlast the five seconds that leaving may take.
LAST_INNER_STEP_S = 2.0
HINT_AFTER_S = 10.0
EXIT_INTERRUPTED = 130


async def start(run_config: RunConfig, peer_config: PeerConfig) -> int:
    """Open a run as its first peer, or go on with it from this folder. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    identity = Identity.load(peer_config.key)
    view = View()
    with view.waiting("reading the data and building the model"):
        trainer = await asyncio.to_thread(ReplicaTrainer, run_config, peer_config, identity.peer)
        manifest = sign_manifest(identity, run_config, trainer.state_digest())
        _claim_folder(peer_config.folder, manifest)
    async with AsyncExitStack() as stack:
        peer = await _Peer.create(stack, identity, peer_config, manifest.run_id, (), view)
        addresses = await peer.transport.addresses()
        print(f"invite: {format_invite(Invite(manifest.run_id, addresses))}", flush=True)
        return await peer.take_part(manifest, trainer, established=True)


async def join(invite: Invite, peer_config: PeerConfig) -> int:
    """Join a run. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    identity = Identity.load(peer_config.key)
    view = View()
    async with AsyncExitStack() as stack:
        with view.waiting("connecting"):
            peer = await _Peer.create(stack, identity, peer_config, invite.run_id, invite.addresses, view)
        with view.waiting("looking for a member of the run"):
            manifest = await peer.until_leaving(peer.find_manifest(invite.addresses))
        if manifest is None:
            return await peer.leave()
        _claim_folder(peer_config.folder, manifest)
        with view.waiting("reading the data and building the model"):
            trainer = await asyncio.to_thread(ReplicaTrainer, manifest.config, peer_config, identity.peer)
        return await peer.take_part(manifest, trainer, established=False)


class ReplicaTrainer:
    """A ``Replica`` as the driver wants it: its inner steps run in a thread of their own, one phase at a time."""

    def __init__(self, run_config: RunConfig, peer_config: PeerConfig, peer: str) -> None:
        if peer_config.threads:
            torch.set_num_threads(peer_config.threads)
        data = run_config.data
        corpus = load_corpus(data.source, peer_config.data, data.validation_fraction)
        seed = int.from_bytes(peer.encode()[-7:], "big") ^ run_config.model.seed
        self.replica = Replica(run_config, corpus, device=peer_config.device, peer_seed=seed)
        self.n_elements = self.replica.n_elements
        self._inner_steps = run_config.inner.steps

    @property
    def outer_step(self) -> int:
        return self.replica.outer_step

    @property
    def anchor_P(self) -> Tensor:
        return self.replica.anchor_P

    @property
    def momentum_P(self) -> Tensor:
        return self.replica.momentum_P

    @property
    def progress(self) -> int:
        """Inner steps since the run began, as far as this peer knows."""
        return self.outer_step * self._inner_steps + self.replica.inner_steps_done

    async def train(self, stop: threading.Event) -> InnerResult:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[InnerResult] = loop.create_future()

        def tell(set_outcome: Callable[[object], None], outcome: object) -> None:
            # The loop may be gone: this thread is a daemon, so that no inner step keeps the process from ending.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: None if done.done() else set_outcome(outcome))

        def work() -> None:
            try:
                result = self.replica.train(stop.is_set)
            except BaseException as error:
                tell(done.set_exception, error)  # type: ignore[arg-type]
            else:
                tell(done.set_result, result)  # type: ignore[arg-type]

        thread = threading.Thread(target=work, name="training", daemon=True)
        thread.start()
        try:
            return await done
        except asyncio.CancelledError:
            stop.set()
            await asyncio.to_thread(thread.join, LAST_INNER_STEP_S)
            raise

    def pseudo_gradient(self) -> Tensor:
        return self.replica.pseudo_gradient()

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        self.replica.apply_outer_step(mean_pseudo_gradient_P, missed)

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        self.replica.load_state(outer_step, anchor_P, momentum_P)

    def state_digest(self) -> bytes:
        return self.replica.state_digest()

    def anchor_digest(self) -> bytes:
        return self.replica.anchor_digest()


class _Peer:
    """The parts of one peer that live as long as its process."""

    def __init__(self, identity: Identity, config: PeerConfig, run_id: str, view: View) -> None:
        self.identity, self.config, self.run_id, self.view = identity, config, run_id, view
        self.log = EventLog(config.folder / "events.jsonl", identity.peer)
        self.log.listener = view.show
        self.transport: Transport
        self.mesh: Mesh
        self._p2pd: P2pdTransport
        self._saving: asyncio.Future[None] | None = None
        self._leaving = asyncio.Event()
        self._exit_code = 0
        self._reason = ""

    @classmethod
    async def create(
        cls,
        stack: AsyncExitStack,
        identity: Identity,
        config: PeerConfig,
        run_id: str,
        bootstrap: tuple[str, ...],
        view: View,
    ) -> "_Peer":
        """Go online; ``stack`` undoes it."""
        self = cls(identity, config, run_id, view)
        stack.callback(self.log.close)
        kind = "ip6" if ":" in config.host else "ip4"
        listen = [f"/{kind}/{config.host}/tcp/{config.port}"]
        self._p2pd = await P2pdTransport.create(config.key, listen=listen, bootstrap=bootstrap)
        self.transport = self._p2pd
        stack.push_async_callback(self._p2pd.close)
        discovery = await DhtDiscovery.create(self._p2pd, bootstrap)
        stack.push_async_callback(discovery.close)
        nothing = Status(Role.JOINING, 0, bytes(32), 0)
        strike = lambda peer, reason: self.log.report("strike", member=peer, reason=reason)  # noqa: E731
        self.mesh = Mesh(identity, run_id, self.transport, discovery, nothing, random.Random(), strike)
        meshing = asyncio.create_task(self.mesh.run())
        stack.push_async_callback(_end, meshing)
        self._listen_to_the_user()
        return self

    def _listen_to_the_user(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._ask_to_leave, "interrupted", EXIT_INTERRUPTED)
        loop.add_signal_handler(signal.SIGTERM, self._ask_to_leave, "told to end", 0)
        if self.config.exit_with_stdin:

            def wait_for_end() -> None:
                # Unbuffered: a daemon thread that holds the buffer's lock at exit would abort the process.
                while os.read(sys.stdin.fileno(), 4096):
                    pass
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._ask_to_leave, "its parent ended", 0)

            threading.Thread(target=wait_for_end, name="stdin", daemon=True).start()

    def _ask_to_leave(self, reason: str, exit_code: int) -> None:
        self._reason, self._exit_code = reason, exit_code
        self._leaving.set()

    async def until_leaving(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, or None if the user wants to leave before it ends.

        Raises: NetworkError if the network underneath has failed.
        """
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        failed = asyncio.ensure_future(self._p2pd.wait_failed())
        try:
            await asyncio.wait([task, leaving, failed], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if failed.done():
                raise NetworkError(failed.result())
            return None
        finally:
            for one in (task, leaving, failed):
                await _end(one)

    async def find_manifest(self, addresses: Sequence[str]) -> Manifest:
        """Ask the peers at ``addresses``, and members as they are found, for the manifest until one has the right one.

        Raises: ConfigError if whoever is there is in another run.
        """
        loop = asyncio.get_running_loop()
        began, hinted = loop.time(), False
        invited = {address.rpartition("/p2p/")[2] for address in addresses}
        strangers: set[str] = set()
        while True:
            there = invited.intersection(await self._p2pd.connected_peers())
            if there and there <= strangers and not self.mesh.members():
                raise ConfigError("the peer of this invite is in another run by now: ask for a newer invite")
            for member in [*self.mesh.members(), *sorted(there - strangers - self.mesh.members().keys())]:
                try:
                    stream = await self.transport.open(member, (), MANIFEST_PROTOCOL)
                    try:
                        async with asyncio.timeout(5.0):
                            sealed = await stream.receive(MAX_MANIFEST_BYTES)
                    finally:
                        stream.close()
                    return open_manifest(sealed, self.run_id, member)
                except (PeerError, TimeoutError) as error:
                    if isinstance(error, ProtocolViolation) and member not in self.mesh.members():
                        strangers.add(member)
                    else:
                        self.log.report("manifest_failed", member=member, reason=str(error))
            await asyncio.sleep(0.1)
            if not hinted and loop.time() - began > HINT_AFTER_S:
                hinted = True
                self.view.say("nobody of this run answers yet; still looking (is the invite the newest one?)")

    async def take_part(self, manifest: Manifest, trainer: ReplicaTrainer, established: bool) -> int:
        """Everything from having a model to saying goodbye."""
        config = manifest.config

        async def serve_manifest(stream: Stream) -> None:
            await stream.send(manifest.sealed)
            await stream.receive(1)

        await self.transport.serve(MANIFEST_PROTOCOL, serve_manifest)
        lineage = first_lineage(manifest.run_id, trainer.state_digest())
        if kept := load_state(self.config.folder):
            trainer.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
            lineage = kept.lineage
        if trainer.outer_step == 0 and established:
            await self._validate(trainer)
        averager = Averager(
            self.identity,
            manifest.run_id,
            self.mesh,
            self.transport,
            trainer,
            lineage=lineage,
            established=established,
            codec=config.averaging.codec,
            quorum=config.averaging.quorum,
            last_outer_step=config.outer.steps,
            report=self.log.report,
            committed=lambda: self._keep_state(trainer, averager),
        )
        self.view.run(config, manifest.run_id, trainer.n_elements)
        with self.view.training() as line:
            moving = asyncio.create_task(_keep_moving(line, trainer, config))
            await self.until_leaving(averager.run())
            await _end(moving)
        if self._saving is not None:
            await asyncio.wait([self._saving])
        if averager.established:
            await asyncio.to_thread(save_state, self.config.folder, _state(trainer, averager))
        if averager.finished and not self._leaving.is_set():
            await self._validate(trainer)
            self._reason = "the run is over"
        return await self.leave()

    def _keep_state(self, trainer: ReplicaTrainer, averager: Averager) -> None:
        """Every so many outer steps, write a copy of the state in a thread; training and rounds go on."""
        if trainer.outer_step % CHECKPOINT_EVERY == 0 and (self._saving is None or self._saving.done()):
            state = _state(trainer, averager)
            self._saving = asyncio.ensure_future(asyncio.to_thread(save_state, self.config.folder, state))

    async def leave(self) -> int:
        self.log.report("left", reason=self._reason)
        # What comes from now on is the others' answer to the goodbye, and no news.
        self.mesh.listener = lambda event: None
        await self.mesh.leave(self._reason)
        return self._exit_code

    async def _validate(self, trainer: ReplicaTrainer) -> None:
        loss = await asyncio.to_thread(trainer.replica.validation_loss)
        self.log.report("validated", outer_step=trainer.outer_step, val_loss=loss)


def _state(trainer: ReplicaTrainer, averager: Averager) -> TrainingState:
    return TrainingState(trainer.outer_step, averager.lineage, trainer.anchor_P.clone(), trainer.momentum_P.clone())


def _claim_folder(folder: Path, manifest: Manifest) -> None:
    """Keep the manifest in the peer's folder, so that the state of one run never becomes another's.

    Raises: ConfigError if the folder has another run's.
    """
    file = folder / MANIFEST_FILE
    if not file.exists():
        file.write_bytes(manifest.sealed)
    elif file.read_bytes() != manifest.sealed:
        raise ConfigError(f"{folder} belongs to another run: name another folder with --folder, or remove it")


async def _keep_moving(line: StatusLine, trainer: ReplicaTrainer, config: RunConfig) -> None:
    while True:
        done, step = trainer.replica.inner_steps_done, trainer.outer_step + 1
        line.update(f"outer step {step}: inner step {done} of {config.inner.steps}")
        await asyncio.sleep(0.25)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
