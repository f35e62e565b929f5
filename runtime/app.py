"""Puts one peer together, keys, network, model and rounds, and takes it apart when the user or the run says so."""

import asyncio
import math
import os
import random
import secrets
import signal
import socket
import threading
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from rich.status import Status as StatusLine

from peers.addresses import MARK
from peers.direct import DirectTransport
from peers.discovery import DhtDiscovery
from peers.errors import NetworkError, PeerError, ProtocolViolation
from peers.identity import Identity
from peers.messages import Role, Status
from peers.p2pd import P2pdTransport
from peers.service import Mesh
from peers.transport import Stream, Transport
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.averaging.statesync import STATE_PROTOCOL, State
from runtime.averaging.transfer import PIECE_PROTOCOL, PUSH_PROTOCOL
from runtime.config import PeerConfig, RunConfig
from runtime.errors import ConfigError
from runtime.folder import MOST_BOOTSTRAP, Folder, lock, unwritable
from runtime.invite import Invite, format_invite
from runtime.log import EventLog
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest, open_manifest, sign_manifest
from runtime.trainer import ReplicaTrainer, share_threads
from runtime.training.checkpoint import STATE_FILE, TrainingState, load_state, save_state
from runtime.view import View

T = TypeVar("T")

MANIFEST_PROTOCOL = "atoll-manifest-1"
# Saving takes at most this share of the time: small models are saved at every outer step.
SAVING_SHARE = 0.05
LOOK_BACK_S = 5.0
HINT_AFTER_S = 10.0
# Some 120 characters each: an invite is to be pasted.
MOST_INVITING = 8
EXIT_INTERRUPTED = 130


async def start(run_config: RunConfig, peer_config: PeerConfig) -> int:
    """Open a run as its first peer, or go on with it from this folder. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    view, folder = View(), Folder(peer_config.folder)
    async with AsyncExitStack() as stack:
        known = folder.addresses[:MOST_BOOTSTRAP]
        peer = await _Peer.go_online(stack, peer_config, known, view, alone=True)
        with view.waiting("reading the data and building the model"):
            trainer = await peer.build(run_config)
        manifest = folder.manifest()
        if manifest is None:
            nonce = secrets.token_hex(8)
            manifest = sign_manifest(peer.identity, run_config, trainer.state_digest(), nonce)
        if (manifest.config, manifest.organiser) != (run_config, peer.identity.peer):
            raise ConfigError(f"{peer_config.folder} belongs to another run: name another folder with --folder")
        folder.claim(manifest)
        peer.enter(stack, manifest.run_id)
        await peer.print_invite()
        return await peer.take_part(manifest, trainer, opens=not known)


async def join(invite: Invite, peer_config: PeerConfig) -> int:
    """Join a run. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    view, folder = View(), Folder(peer_config.folder)
    async with AsyncExitStack() as stack:
        known = (*invite.addresses, *folder.addresses[:MOST_BOOTSTRAP])
        manifest = folder.manifest()
        if manifest is not None and manifest.run_id != invite.run_id:
            raise ConfigError(f"{peer_config.folder} belongs to another run: name another folder with --folder")
        with view.waiting("connecting"):
            peer = await _Peer.go_online(stack, peer_config, known, view, alone=manifest is not None)
        peer.enter(stack, invite.run_id)
        if manifest is None:
            with view.waiting("looking for a member of the run"):
                manifest = await peer.until_leaving(peer.find_manifest(invite.addresses))
        if manifest is None:
            return await peer.leave()
        folder.claim(manifest)
        with view.waiting("reading the data and building the model"):
            trainer = await peer.build(manifest.config)
        await peer.print_invite(invite.addresses)
        return await peer.take_part(manifest, trainer)


class _Peer:
    """The parts of one peer that live as long as its process."""

    def __init__(self, config: PeerConfig, p2pd: P2pdTransport, discovery: DhtDiscovery, view: View) -> None:
        self.identity = Identity.load(config.key)
        self.config, self.folder, self.view = config, Folder(config.folder), view
        bulk = (PUSH_PROTOCOL, PIECE_PROTOCOL, STATE_PROTOCOL)
        self._direct = DirectTransport(self.identity, p2pd, bulk)
        self.transport: Transport = self._direct
        self.run_id = ""
        self.log: EventLog
        self.mesh: Mesh
        self._p2pd, self._discovery = p2pd, discovery
        self._save_again_at = 0.0
        self._saving: asyncio.Task[None] | None = None
        self._forks: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()
        self._exit_code = 0
        self._reason = ""

    @classmethod
    async def go_online(
        cls, stack: AsyncExitStack, config: PeerConfig, bootstrap: tuple[str, ...], view: View, *, alone: bool
    ) -> "_Peer":
        """Listen and find the DHT; ``stack`` undoes it. With ``alone``, dead bootstrap addresses are no error."""
        for path in (config.folder, config.key):
            stack.callback(lock(path))
        folder = Folder(config.folder)
        kind = "ip6" if ":" in config.host else "ip4"
        listen = [f"/{kind}/{config.host}/tcp/{config.port or _if_free(config.host, folder.port)}"]
        try:
            p2pd = await P2pdTransport.create(config.key, listen=listen, bootstrap=bootstrap)
        except NetworkError:
            if not (alone and bootstrap):
                raise
            # Discovery goes on trying them.
            p2pd = await P2pdTransport.create(config.key, listen=listen)
        stack.push_async_callback(p2pd.close)
        for address in (await p2pd.addresses())[:1]:
            folder.keep_port(int(address.split("/tcp/")[1].split("/")[0]))
        discovery = await DhtDiscovery.create(p2pd, bootstrap)
        stack.push_async_callback(discovery.close)
        peer = cls(config, p2pd, discovery, view)
        # Beside p2pd's own port, so that whoever opens one in a router knows the other.
        await peer._direct.listen(config.host, folder.port + 1 if folder.port < 65535 else 0)
        stack.push_async_callback(peer._direct.close)
        return peer

    async def build(self, run_config: RunConfig) -> ReplicaTrainer:
        """Data and model of the run. Raises: ConfigError."""
        n_threads = share_threads(self.config.threads)
        return await asyncio.to_thread(ReplicaTrainer, run_config, self.config, self.identity.peer, n_threads)

    def enter(self, stack: AsyncExitStack, run_id: str) -> None:
        """Be one of the run's peers, without a state of it as yet."""
        self.run_id = run_id
        try:
            self.log = EventLog(self.folder.path / "events.jsonl", self.identity.peer)
        except OSError as error:
            raise unwritable(self.folder.path, error) from None
        stack.callback(self.log.close)
        self._direct.linked = lambda member, kind: self.log.report("link", member=member, kind=kind)
        self.log.listener = self._on_event
        nothing = Status(Role.JOINING, 0, bytes(32), 0)
        # Dialled by this peer: theirs to it may still be held back after what failed while it was away.
        known = self.folder.addresses
        self.mesh = Mesh(
            self.identity,
            run_id,
            self.transport,
            self._discovery,
            nothing,
            random.Random(),
            self._strike,
            known=known,
        )
        meshing = asyncio.create_task(self.mesh.run())
        stack.push_async_callback(_end, meshing)
        self._listen_to_the_user()

    def _strike(self, peer: str, reason: str) -> None:
        self.log.report("strike", member=peer, reason=reason)

    def _on_event(self, event: str, fields: dict[str, object]) -> None:
        self.view.show(event, fields)
        if event in ("member_up", "joined") and (addresses := self.mesh.known_addresses()):
            # What finds the DHT again; a direct address changes with every start.
            self.folder.keep_addresses([address for address in addresses if MARK not in address])

    def _listen_to_the_user(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._ask_to_leave, "interrupted", EXIT_INTERRUPTED)
        loop.add_signal_handler(signal.SIGTERM, self._ask_to_leave, "told to end", 0)
        if self.config.exit_with_stdin:

            def wait_for_end() -> None:
                # Unbuffered: a daemon thread that holds the buffer's lock at exit would abort the process.
                while os.read(0, 4096):
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

    async def print_invite(self, others: Sequence[str] = ()) -> None:
        """To this peer, and to some that others have invited with: a newcomer needs one that lives."""
        addresses = dict.fromkeys((*await self._p2pd.addresses(), *others))
        print(f"invite: {format_invite(Invite(self.run_id, tuple(addresses)[:MOST_INVITING]))}", flush=True)

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

    async def finds_members(self) -> bool:
        """Whether a member of the run shows up within a few seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK_BACK_S
        while loop.time() < until:
            if any(status.role == Role.MEMBER for status in self.mesh.members().values()):
                return True
            await asyncio.sleep(0.1)
        return False

    async def take_part(self, manifest: Manifest, trainer: ReplicaTrainer, opens: bool = False) -> int:
        """Everything from having a model to saying goodbye.

        Args: opens if the run is this peer's own and nobody else has ever been in it.
        """
        config = manifest.config

        async def serve_manifest(stream: Stream) -> None:
            await stream.send(manifest.sealed)
            await stream.receive(1)

        await self.transport.serve(MANIFEST_PROTOCOL, serve_manifest)
        lineage, tokens = first_lineage(manifest.run_id, trainer.state_digest()), 0
        group: tuple[str, ...] = ()
        if kept := load_state(self.folder.path):
            trainer.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
            lineage, tokens, group = kept.lineage, kept.tokens, kept.group
        established = opens or ((tokens > 0 or self.config.anew) and not await self._finds_members())
        if not (established or tokens or self.mesh.members()):
            self.view.say(
                "this folder has no outer step of the run, and only who has one can go on with it: waiting for a member"
                " (--anew begins the run again from its first weights)"
            )
        if established and not tokens and trainer.state_digest() != manifest.initial_state:
            raise ConfigError(
                "this machine makes other first weights than the organiser's: join while a member is there"
            )
        if trainer.outer_step == 0 and established:
            await self._validate(trainer)
        averager = Averager(
            self.identity,
            manifest.run_id,
            self.mesh,
            self.transport,
            trainer,
            lineage=lineage,
            tokens=tokens,
            group=group,
            established=established,
            codec=config.averaging.codec,
            quorum=config.averaging.quorum,
            on_partition=config.averaging.on_partition,
            last_outer_step=config.outer.steps,
            report=self.log.report,
            committed=lambda: self._keep_state(trainer, averager),
            abandoned=self._keep_fork,
        )
        self.view.run(config, manifest.run_id, trainer.n_elements)
        with self.view.training() as line:
            moving = asyncio.create_task(_keep_moving(line, trainer, config, self.view))
            await self.until_leaving(averager.run())
            await _end(moving)
        if averager.finished and not self._leaving.is_set():
            await self._validate(trainer)
            self._reason = "the run is over"
        # First the goodbye: nobody is to wait for this peer while it writes.
        exit_code = await self.leave()
        for task in (self._saving, *self._forks):
            if task is not None:
                await task
        if averager.established:
            await self._save(averager.state(), STATE_FILE)
        return exit_code

    async def _finds_members(self) -> bool:
        """Whether the run goes on without this peer: what it has on disk is then to be measured against theirs."""
        if not self.folder.addresses:
            return False
        with self.view.waiting("looking for those who were here before"):
            return bool(await self.until_leaving(self.finds_members()))

    def _keep_state(self, trainer: ReplicaTrainer, averager: Averager) -> None:
        """Write a copy of the state in a thread, as often as it costs little; training and rounds go on."""
        now = asyncio.get_running_loop().time()
        if now >= self._save_again_at and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save(averager.state(), STATE_FILE))

    def _keep_fork(self, state: State) -> str:
        """Write the state of a history that this peer leaves, under its lineage; where."""
        name = f"state-{state.outer_step}-{state.lineage.hex()[:12]}.safetensors"
        task = asyncio.create_task(self._save(state, name))
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)
        return name

    async def _save(self, state: State, name: str) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        saved = TrainingState(
            state.outer_step, state.lineage, state.tokens, state.group, state.anchor_P, state.momentum_P
        )
        try:
            await asyncio.to_thread(save_state, self.folder.path, saved, name)
        except OSError as error:
            # A full disk: the state before stands, and the run goes on.
            self.log.report("checkpoint_failed", outer_step=state.outer_step, reason=str(error))
        self._save_again_at = loop.time() + (loop.time() - began) / SAVING_SHARE

    async def leave(self) -> int:
        self.log.report("left", reason=self._reason)
        # What comes from now on is the others' answer to the goodbye, and no news.
        self.mesh.listener = lambda event: None
        await self.mesh.leave(self._reason)
        return self._exit_code

    async def _validate(self, trainer: ReplicaTrainer) -> None:
        loss = await asyncio.to_thread(trainer.replica.validation_loss)
        shown = loss if math.isfinite(loss) else None
        self.log.report("validated", outer_step=trainer.outer_step, val_loss=shown)


def _if_free(host: str, port: int) -> int:
    """The port, or 0 for any where another program has it by now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError, OverflowError), socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return port
    return 0


async def _keep_moving(line: StatusLine, trainer: ReplicaTrainer, config: RunConfig, view: View) -> None:
    loop = asyncio.get_running_loop()
    moved, last, hinted = loop.time(), -1, False
    while True:
        done, step = trainer.replica.inner_steps_done, trainer.outer_step + 1
        line.update(f"outer step {step}: inner step {done} of {config.inner.steps}")
        if trainer.progress != last:
            moved, last, hinted = loop.time(), trainer.progress, False
        elif not hinted and done == config.inner.steps and loop.time() - moved > HINT_AFTER_S:
            hinted = True
            view.say(f"outer step {step}: waiting for others; a step needs {config.averaging.quorum} contributions")
        await asyncio.sleep(0.25)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
