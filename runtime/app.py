"""Puts one peer together, keys, network, model and rounds, and takes it apart when the user or the run says so."""

import asyncio
import math
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from peers.transport import Stream
from runtime.averaging.codecs.choice import AUTO, measured_costs
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.checkpoints import set_aside
from runtime.config import PeerConfig, RunConfig
from runtime.errors import ConfigError
from runtime.folder import MOST_BOOTSTRAP, Folder
from runtime.invite import Invite
from runtime.manifest import Manifest, sign_manifest
from runtime.partial import PartialState
from runtime.peer import HINT_AFTER_S, MANIFEST_PROTOCOL, Peer, end
from runtime.pieces import PieceList
from runtime.progress import Progress, Rates, given_before
from runtime.saving import Saver
from runtime.trainer import AuxiliaryTrainer, ReplicaTrainer, share_threads
from runtime.training.checkpoint import load_newest
from runtime.view import View

# How often a terminal's status area, and the figures for Prometheus, are brought up to date.
DRAW_S, LOOK_S = 0.25, 1.0

Trainer = ReplicaTrainer | AuxiliaryTrainer


async def start(run_config: RunConfig, peer_config: PeerConfig) -> int:
    """Open a run as its first peer, or go on with it from this folder. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    view, folder = View(), Folder(peer_config.folder)
    async with AsyncExitStack() as stack:
        known = folder.addresses[:MOST_BOOTSTRAP]
        peer = await Peer.go_online(stack, peer_config, known, view)
        trainer = await _build(run_config, peer)
        manifest = folder.manifest()
        if manifest is None:
            nonce = secrets.token_hex(8)
            manifest = sign_manifest(peer.identity, run_config, _state_digest(trainer), nonce)
        if (manifest.config, manifest.organiser) != (run_config, peer.identity.peer):
            raise ConfigError(f"{peer_config.folder} belongs to another run: name another folder with --folder")
        folder.claim(manifest)
        peer.enter(stack, manifest.run_id)
        await peer.print_invite()
        return await _take_part(stack, peer, manifest, trainer, opens=not known)


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
            peer = await Peer.go_online(stack, peer_config, known, view)
        peer.enter(stack, invite.run_id)
        if manifest is None:
            with view.waiting("looking for a member of the run"):
                manifest = await peer.until_leaving(peer.find_manifest(invite.addresses))
        if manifest is None:
            return await peer.leave()
        folder.claim(manifest)
        trainer = await _build(manifest.config, peer)
        await peer.print_invite(invite.addresses)
        return await _take_part(stack, peer, manifest, trainer, opens=False)


async def _build(run_config: RunConfig, peer: Peer) -> Trainer:
    """Data and model of the run. Raises: ConfigError."""
    n_threads = share_threads(peer.config.threads)
    if peer.config.auxiliary:
        return await asyncio.to_thread(AuxiliaryTrainer, run_config)
    with peer.view.waiting("reading the data and building the model"):
        return await asyncio.to_thread(ReplicaTrainer, run_config, peer.config, peer.identity.peer, n_threads)


async def _take_part(stack: AsyncExitStack, peer: Peer, manifest: Manifest, trainer: Trainer, *, opens: bool) -> int:
    """Everything from having a model to saying goodbye.

    Args: opens if the run is this peer's own and nobody else has ever been in it.
    """
    config = manifest.config

    async def serve_manifest(stream: Stream) -> None:
        await stream.send(manifest.sealed)
        await stream.receive(1)

    await peer.transport.serve(MANIFEST_PROTOCOL, serve_manifest)
    lineage, tokens = first_lineage(manifest.run_id, _state_digest(trainer)), 0
    group: tuple[str, ...] = ()
    lost_P = None

    def torn(checkpoint: Path, reason: str) -> None:
        peer.log.report("checkpoint_torn", path=str(checkpoint), reason=reason)
        set_aside(checkpoint)

    if loaded := await asyncio.to_thread(load_newest, peer.folder.path, torn):
        kept, inner = loaded
        trainer.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
        lineage, tokens, group, lost_P = kept.lineage, kept.tokens, kept.group, kept.lost_P
        if inner is not None:
            trainer.load_inner_state(inner)
    established = opens or ((tokens > 0 or peer.config.anew) and not await peer.finds_members())
    if not (established or tokens or peer.mesh.members()):
        peer.view.say(
            "this folder has no outer step of the run, and only who has one can go on with it: waiting for a member"
            " (--anew begins the run again from its first weights)"
        )
    if established and not tokens and _state_digest(trainer) != manifest.initial_state:
        raise ConfigError("this machine makes other first weights than the organiser's: join while a member is there")
    if trainer.outer_step == 0 and established:
        await _validate(peer, trainer)
    averager = Averager(
        peer.identity,
        manifest.run_id,
        peer.mesh,
        peer.transport,
        trainer,
        lineage=lineage,
        tokens=tokens,
        group=group,
        lost_P=lost_P,
        established=established,
        codec=config.averaging.codec,
        codec_costs=measured_costs() if config.averaging.codec == AUTO else None,
        quorum=config.averaging.quorum,
        on_partition=config.averaging.on_partition,
        last_outer_step=config.outer.steps,
        caps=peer.config.caps,
        partial=PartialState(peer.folder.path),
        report=peer.log.report,
        committed=lambda: saver.keep(trainer.outer_step, averager.lineage),
        abandoned=lambda state: saver.keep_fork(state),
    )
    keep, keep_every = peer.config.keep, peer.config.keep_every
    saver = Saver(peer.folder.path, averager.state, trainer.inner_state, keep, keep_every, peer.log.report)
    await peer.open_feed(stack, manifest, averager.doing)
    if peer.view.moves:
        peer.view.given = await asyncio.to_thread(given_before, peer.folder.path / "events.jsonl")
    peer.view.run(config, manifest.run_id, trainer.n_elements)
    with peer.view.area():
        watching = [
            asyncio.create_task(_keep_showing(peer, averager, trainer, config)),
            asyncio.create_task(_keep_measuring(peer, averager, trainer)),
        ]
        await peer.until_leaving(averager.run())
        for task in watching:
            await end(task)
    if averager.finished and not peer.leaving.is_set():
        await _validate(peer, trainer)
        peer.reason = "the run is over"
    # First the goodbye: nobody is to wait for this peer while it writes.
    exit_code = await peer.leave()
    if averager.established:
        await saver.finish(trainer.outer_step, averager.lineage)
    else:
        await saver.wait()
    return exit_code


def _state_digest(trainer: Trainer) -> bytes:
    return PieceList.of(trainer.anchor_P, trainer.momentum_P).digest


async def _validate(peer: Peer, trainer: Trainer) -> None:
    loss = await asyncio.to_thread(trainer.validation_loss)
    if loss is not None:
        shown = loss if math.isfinite(loss) else None
        peer.log.report("validated", outer_step=trainer.outer_step, val_loss=shown)


async def _keep_showing(peer: Peer, averager: Averager, trainer: Trainer, config: RunConfig) -> None:
    """How far this peer is, on a terminal; elsewhere a line when it has been waiting for long."""
    loop = asyncio.get_running_loop()
    began = moved = loop.time()
    last, hinted, rates = -1, False, Rates()
    while True:
        now, step, done = loop.time(), trainer.outer_step + 1, trainer.inner_steps_done
        if peer.view.moves:
            others = {member: str(at["doing"]) for member, at in averager.doing().items()}
            progress = Progress(
                outer_step=min(step, config.outer.steps),
                outer_steps=config.outer.steps,
                inner_step=done,
                inner_steps=config.inner.steps,
                tokens_per_s=trainer.tokens_per_s,
                doing=others.pop(peer.identity.peer, ""),
                others=others,
                quorum=config.averaging.quorum,
                rates=rates.look(now, averager.round_bytes),
                given=peer.view.given,
                run_s=now - began,
            )
            peer.view.draw(progress)
        elif trainer.progress != last:
            moved, last, hinted = now, trainer.progress, False
        elif not hinted and done == config.inner.steps and now - moved > HINT_AFTER_S:
            hinted = True
            needs = config.averaging.quorum
            peer.view.say(f"outer step {step}: waiting for others; a step needs {needs} contributions")
        await asyncio.sleep(DRAW_S)


async def _keep_measuring(peer: Peer, averager: Averager, trainer: Trainer) -> None:
    """What no event says, for Prometheus."""
    while peer.metrics is not None:
        peer.metrics.look(
            members=averager.machine.n_live,
            inner_steps=trainer.inner_steps_taken,
            round_bytes=averager.round_bytes,
            spent_s=averager.spent_s,
            watchers=peer.n_watchers,
        )
        await asyncio.sleep(LOOK_S)
