"""Puts one peer together, keys, network, model and rounds, and takes it apart when the user or the run says so.

It takes part in turns: between two of them, while there is a reason to pause, nothing of it is left but the process.
"""

import asyncio
import math
import os
import secrets
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from peers.errors import NetworkError
from peers.identity import Identity
from runtime.averaging.arithmetic import in_thread
from runtime.averaging.codecs.choice import AUTO, measured_costs
from runtime.averaging.driver import Averager
from runtime.averaging.lineage import first_lineage
from runtime.checkpoints import CHECKPOINTS, has_torn_step, set_aside
from runtime.config import PeerConfig, RunConfig, first_difference, limits_in_force
from runtime.doctor.fitness import checks_for_run, warnings_of
from runtime.errors import ConfigError, NotNowError
from runtime.finding import give_manifest
from runtime.folder import MOST_BOOTSTRAP, Folder, lock
from runtime.invite import Invite
from runtime.limits import limits_words
from runtime.log import EVENTS_FILE
from runtime.manifest import MANIFEST_PROTOCOL, Manifest, sign_manifest
from runtime.partial import PartialState
from runtime.peer import HINT_AFTER_S, Peer
from runtime.pieces import PieceList
from runtime.planning import check_fits, checkpoint_needed
from runtime.progress import Progress, Rates, given_before
from runtime.saving import Saver
from runtime.tasks import abandonable, until_abandoned_end
from runtime.trainer import AuxiliaryTrainer, ReplicaTrainer, give_back_memory, share_threads
from runtime.training.checkpoint import load_newest
from runtime.training.replica import resolve_device
from runtime.user import User
from runtime.view import View

# How often a terminal's status area, and the figures for Prometheus, are brought up to date.
DRAW_S, LOOK_S = 0.25, 1.0

Trainer = ReplicaTrainer | AuxiliaryTrainer


async def start(run_config: RunConfig, peer_config: PeerConfig) -> int:
    """Open a run as its first peer, or go on with it from this folder. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    return await _in_turns(peer_config, partial(_start, run_config))


async def join(invite: Invite, peer_config: PeerConfig) -> int:
    """Join a run. The exit code of the process.

    Raises: ConfigError, NetworkError, IdentityError: one sentence for the user.
    """
    return await _in_turns(peer_config, partial(_join, invite))


async def _in_turns(config: PeerConfig, take_part: Callable[[User], Coroutine[Any, Any, int | None]]) -> int:
    """Take part whenever the user's limits allow it, until the run is over or they end it.

    A pause is a goodbye and a return from the folder, as after Ctrl-C: no other part knows of pauses.
    """
    async with AsyncExitStack() as stack:
        for path in (config.folder, config.key):
            stack.callback(lock(path))
        user = User(config, View())
        await user.listen(stack)
        while await user.may_take_part():
            exit_code = await user.turn(take_part(user))
            if exit_code is not None:
                return exit_code
            # After what has begun, and has the model as long as it takes.
            await user.unless_ending(until_abandoned_end())
            await in_thread(give_back_memory)
        return user.exit_code or 0


async def _start(run_config: RunConfig, user: User) -> int | None:
    """As first peer, until the run is over or there is a reason to leave; the exit code, None for a pause."""
    folder = Folder(user.config.folder)
    manifest, own = folder.manifest(), Identity.load(user.config.key).peer
    if manifest is not None and (manifest.config, manifest.organiser) != (run_config, own):
        why = first_difference(manifest.config, run_config) or "it was opened with another --key"
        raise ConfigError(f"{folder.path} belongs to another run ({why}): name another folder with --folder")
    async with AsyncExitStack() as stack:
        _check_fits(run_config, user)
        known = folder.addresses[:MOST_BOOTSTRAP]
        peer = await Peer.go_online(stack, user, (*user.config.bootstrap_addresses, *known))
        trainer = await _build(run_config, peer)
        if manifest is None:
            nonce = secrets.token_hex(8)
            manifest = sign_manifest(peer.identity, run_config, await _state_digest(trainer), nonce)
        folder.claim(manifest)
        peer.enter(stack, manifest.run_id)
        peer.meet_others(stack)
        await peer.print_invite()
        return await _take_part(stack, peer, manifest, trainer, opens=user.alone or not known)


async def _join(invite: Invite, user: User) -> int | None:
    """As another peer, until the run is over or there is a reason to leave; the exit code, None for a pause."""
    view, folder = user.view, Folder(user.config.folder)
    async with AsyncExitStack() as stack:
        known = (*user.config.bootstrap_addresses, *invite.addresses, *folder.addresses[:MOST_BOOTSTRAP])
        manifest = folder.manifest()
        if manifest is not None and manifest.run_id != invite.run_id:
            raise ConfigError(f"{folder.path} belongs to another run: name another folder with --folder")
        with view.waiting("connecting"):
            peer = await Peer.go_online(stack, user, known)
        peer.enter(stack, invite.run_id)
        if manifest is None:
            with view.waiting("looking for a member of the run"):
                manifest = await peer.until_leaving(peer.find_manifest(invite.addresses))
        if manifest is None:
            return await peer.leave()
        folder.claim(manifest)
        _check_fits(manifest.config, user)
        for warning in warnings_of(await asyncio.to_thread(checks_for_run, manifest.config, user.config)):
            view.say(warning)
        peer.meet_others(stack)
        # Text and model may be large, and Ctrl-C, a pause or a limit are not to wait for them.
        trainer = await peer.until_leaving(_build(manifest.config, peer))
        if trainer is None:
            return await peer.leave()
        await peer.print_invite(invite.addresses)
        return await _take_part(stack, peer, manifest, trainer, opens=False)


def _check_fits(run_config: RunConfig, user: User) -> None:
    """Raises: ConfigError if the run needs more of the machine than its user lends."""
    if user.manifest is None:
        # After a pause what it really holds decides: limits that were changed meanwhile do not end a process.
        device = "" if user.config.auxiliary else resolve_device(user.config.device).type
        check_fits(run_config, user.limits, device, user.config.folder)


async def _build(run_config: RunConfig, peer: Peer) -> Trainer:
    """Data and model of the run. Raises: ConfigError."""
    own = share_threads()
    if peer.config.auxiliary:
        return await abandonable(partial(AuxiliaryTrainer, run_config))

    def n_threads() -> int:
        # More than there are cores only get in each other's way.
        return min(peer.user.limits.threads, os.cpu_count() or 1) or own

    with peer.view.waiting("reading the data and building the model"):
        return await abandonable(partial(ReplicaTrainer, run_config, peer.config, peer.identity.peer, n_threads))


async def _take_part(
    stack: AsyncExitStack, peer: Peer, manifest: Manifest, trainer: Trainer, *, opens: bool
) -> int | None:
    """Everything from having a model to saying goodbye.

    Args: opens if the run is this peer's own and nobody else has ever had its state.
    """
    config, user = manifest.config, peer.user
    user.manifest = manifest

    await peer.transport.serve(MANIFEST_PROTOCOL, partial(give_manifest, sealed=manifest.sealed))
    lineage, tokens = first_lineage(manifest.run_id, await _state_digest(trainer)), 0
    group: tuple[str, ...] = ()
    lost_P = None

    def torn(checkpoint: Path, reason: str) -> None:
        peer.log.report("checkpoint_torn", path=f"{CHECKPOINTS}/{checkpoint.name}", reason=reason)
        set_aside(checkpoint)

    if loaded := await asyncio.to_thread(load_newest, peer.folder.path, torn):
        kept, inner = loaded
        trainer.load_state(kept.outer_step, kept.anchor_P, kept.momentum_P)
        lineage, tokens, group = kept.lineage, kept.tokens, kept.group
        # Who trains nothing sends nothing.
        lost_P = kept.lost_P if trainer.trains else None
        if inner is not None:
            trainer.load_inner_state(inner)
    elif has_torn_step(peer.folder.path):
        # The run has gone on from its first weights, and who has only those is not to begin it again.
        opens = False
    established = opens or ((tokens > 0 or peer.config.anew) and not await peer.finds_members())
    if not (established or tokens or peer.mesh.members()):
        peer.view.say(
            "this folder has no outer step of the run, and only who has one can go on with it: waiting for a member"
            " (--anew begins the run again from its first weights)"
        )
    if established and not tokens and await _state_digest(trainer) != manifest.initial_state:
        raise NotNowError("this machine makes other first weights than the organiser's: join while a member is there")
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
        caps=lambda: user.limits.caps,
        partial=PartialState(peer.folder.path, peer.disk.take),
        report=peer.log.report,
        committed=lambda: saver.keep(trainer.outer_step, averager.lineage),
        abandoned=lambda state: saver.keep_fork(state),
    )
    keep, keep_every = peer.config.keep, peer.config.keep_every
    peer.checkpoint_bytes = checkpoint_needed(config, trainer.device)
    saver = Saver(
        peer.folder.path,
        averager.state,
        trainer.inner_state,
        keep,
        keep_every,
        peer.log.report,
        peer.disk,
        peer.checkpoint_bytes,
    )

    async def finish() -> None:
        if averager.established:
            await saver.finish(trainer.outer_step, averager.lineage)
        else:
            await saver.wait()

    await peer.open_feed(stack, manifest, averager.doing)
    if not peer.view.given.outer_steps:
        # Else this is after a pause.
        peer.view.given = await asyncio.to_thread(given_before, peer.folder.path / EVENTS_FILE)
    peer.view.run(config, manifest.run_id, trainer.n_elements, limits_words(limits_in_force(user.config)))
    try:
        with peer.view.area():
            await peer.until_leaving(
                averager.run(),
                _keep_showing(peer, averager, trainer, config, saver),
                _keep_measuring(peer, averager, trainer),
            )
        user.progress = None
        if over := averager.finished and not user.stop.is_set():
            await _validate(peer, trainer)
    except (ConfigError, NetworkError):
        # The network or the device is gone, and not what this peer has.
        await finish()
        raise
    # A state that nobody else has is this peer's to go on from, whoever else waits for one.
    others = peer.mesh.members().values()
    user.alone = opens and trainer.outer_step == 0 and not any(status.is_member for status in others)
    # First the goodbye: nobody is to wait for this peer while it writes.
    exit_code = await peer.leave(over)
    if exit_code is None:
        # The process stays, so there is time for the inner step that is being taken.
        await user.unless_ending(trainer.until_still())
    await finish()
    return exit_code


async def _state_digest(trainer: Trainer) -> bytes:
    return (await asyncio.to_thread(PieceList.of, trainer.anchor_P, trainer.momentum_P)).digest


async def _validate(peer: Peer, trainer: Trainer) -> None:
    """Unless the peer is to leave before that is done: for a large model it takes minutes."""
    loss = await peer.until_leaving(abandonable(trainer.validation_loss))
    if loss is not None:
        shown = loss if math.isfinite(loss) else None
        peer.log.report("validated", outer_step=trainer.outer_step, val_loss=shown)


async def _keep_showing(peer: Peer, averager: Averager, trainer: Trainer, config: RunConfig, saver: Saver) -> None:
    """How far this peer is, on a terminal; elsewhere a line when it has been waiting for long."""
    loop = asyncio.get_running_loop()
    began = moved = loop.time()
    last, was_doing, hinted, rates = -1, "", False, Rates()
    while True:
        now, step, done = loop.time(), trainer.outer_step + 1, trainer.inner_steps_done
        others = {member: str(at["doing"]) for member, at in averager.doing().items()}
        # Who has the run's state begins at once.
        doing = others.pop(peer.identity.peer, "training" if averager.established else "")
        if trainer.progress != last or doing != was_doing:
            moved, last, was_doing, hinted = now, trainer.progress, doing, False
        peer.user.progress = Progress(
            outer_step=min(step, config.outer.steps),
            outer_steps=config.outer.steps,
            inner_step=done,
            inner_steps=config.inner.steps,
            tokens_per_s=trainer.tokens_per_s,
            doing=doing,
            others=others,
            quorum=config.averaging.quorum,
            rates=rates.look(now, averager.round_bytes),
            given=peer.view.given,
            run_s=now - began,
            still_s=now - moved if doing == "training" else 0.0,
            limits=tuple(limits_words(limits_in_force(peer.user.config))),
            unsaved=saver.problem,
        )
        if peer.view.moves:
            peer.view.draw(peer.user.progress)
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
