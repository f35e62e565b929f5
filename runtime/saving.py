"""When a peer's state goes to disk: as often as it costs little, in a thread, beside training and rounds."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from runtime.averaging.statesync import State
from runtime.training.checkpoint import STATE_FILE, TrainingState, save_state

# Saving takes at most this share of the time: small models are saved at every outer step.
SAVING_SHARE = 0.05


class Saver:
    """Writes the states of one peer to its folder. A full disk is reported, and the run goes on."""

    def __init__(self, folder: Path, report: Callable[..., None]) -> None:
        self._folder, self._report = folder, report
        self._again_at = 0.0
        self._saving: asyncio.Task[None] | None = None
        self._forks: set[asyncio.Task[None]] = set()

    def keep(self, state: Callable[[], State]) -> None:
        """Write a copy of the state, unless one is being written or has just been."""
        if asyncio.get_running_loop().time() >= self._again_at and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save(state(), STATE_FILE))

    def keep_fork(self, state: State) -> str:
        """Write the state of a history that this peer leaves, under its lineage; where."""
        name = f"state-{state.outer_step}-{state.lineage.hex()[:12]}.safetensors"
        task = asyncio.create_task(self._save(state, name))
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)
        return name

    async def finish(self, state: State | None) -> None:
        """Wait for what is being written, and write the last state."""
        for task in (self._saving, *self._forks):
            if task is not None:
                await task
        if state is not None:
            await self._save(state, STATE_FILE)

    async def _save(self, state: State, name: str) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        saved = TrainingState(
            state.outer_step, state.lineage, state.tokens, state.group, state.anchor_P, state.momentum_P
        )
        try:
            await asyncio.to_thread(save_state, self._folder, saved, name)
        except OSError as error:
            # A full disk: the state before stands, and the run goes on.
            self._report("checkpoint_failed", outer_step=state.outer_step, reason=str(error))
        self._again_at = loop.time() + (loop.time() - began) / SAVING_SHARE
