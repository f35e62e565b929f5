"""When a peer's state goes to disk: as often as it costs little, in a thread, beside training and rounds."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from runtime.averaging.arithmetic import in_thread
from runtime.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_name,
    clear_unfinished,
    found,
    nth_of,
    prune,
    remove,
)
from runtime.disk import Allotment, folder_bytes
from runtime.errors import reason_of
from runtime.state import State
from runtime.training.checkpoint import save_checkpoint
from runtime.training.inner import InnerState

# Saving takes at most this share of the time: small models are saved at every outer step.
SAVING_SHARE = 0.05
# More than events and history grow by from one checkpoint to the next.
LOG_BYTES = 1 << 20


class Saver:
    """Writes the checkpoints of one peer. A full disk is reported, and the run goes on.

    Args:
        copy: a copy of the peer's present state, from any thread, in the memory that it is given.
        inner: this peer's own training, None while that is not still.
        keep: how many of the newest stay, and of every ``keep_every``-th outer step (0: none) one.
        disk, checkpoint_bytes: what the folder may hold, and the most that a checkpoint takes of it. With less room
            fewer stay, at least one, and none goes in vain; with none beside that one, none is written.
    """

    def __init__(
        self,
        folder: Path,
        copy: Callable[[Sequence[Tensor | None]], State],
        inner: Callable[[], InnerState | None],
        keep: int,
        keep_every: int,
        report: Callable[..., None],
        disk: Allotment,
        checkpoint_bytes: int,
    ) -> None:
        self._folder, self._copy, self._inner, self._report = folder, copy, inner, report
        self._keep, self._keep_every = keep, keep_every
        self._disk, self._checkpoint_bytes = disk, checkpoint_bytes
        self._again_at = 0.0
        self._saving: asyncio.Task[None] | None = None
        self.problem = ""
        """Why the last checkpoint could not be written; empty if it could."""
        self._forks: set[asyncio.Task[None]] = set()
        self._memory: Sequence[Tensor | None] = (None, None, None)
        clear_unfinished(folder)

    async def keep(self, outer_step: int, lineage: bytes) -> None:
        """Write the state that this is, unless one is being written or has just been.

        What only this peer has is copied here, before training goes on; all else is done beside it.
        """
        if asyncio.get_running_loop().time() >= self._again_at and (self._saving is None or self._saving.done()):
            inner = await in_thread(self._inner)
            self._saving = asyncio.create_task(self._save(outer_step, lineage, inner))

    def keep_fork(self, state: State) -> str:
        """Write the state of a history that this peer leaves; where, in its folder, "" if it has no room for it.

        It stays until its owner deletes it: the next checkpoint needs room beside it.
        """
        self._disk.look()
        if self._disk.lacks(2 * self._checkpoint_bytes + LOG_BYTES) > 0:
            return ""

        def write() -> None:
            with self._disk.writing(self._checkpoint_bytes):
                save_checkpoint(self._folder, state, fork=True)

        task = asyncio.create_task(self._attempt(state.outer_step, write))
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)
        return f"{CHECKPOINTS}/{checkpoint_name(state.outer_step, 0, state.lineage, fork=True)}"

    async def finish(self, outer_step: int, lineage: bytes) -> None:
        """Wait for what is being written, and write the last state."""
        await self.wait()
        await self._save(outer_step, lineage, self._inner())

    async def wait(self) -> None:
        """For what is being written."""
        for task in (self._saving, *self._forks):
            if task is not None:
                await task

    async def _save(self, outer_step: int, lineage: bytes, inner: InnerState | None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._attempt(outer_step, partial(self._copy_and_write, lineage, inner))
        self._again_at = loop.time() + (loop.time() - began) / SAVING_SHARE

    async def _attempt(self, outer_step: int, write: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            # A full disk: the state before stands, and the run goes on. It may be full for long: told once.
            if not self.problem:
                self._report("checkpoint_failed", outer_step=outer_step, reason=reason_of(error))
            self.problem = reason_of(error)
        else:
            self.problem = ""

    # In a thread.

    def _thin(self) -> None:
        """Let go of checkpoints that are not to stay, and of more if then another has room, and the log."""
        prune(self._folder, self._keep, self._keep_every)
        self._disk.look()
        lacking = self._disk.lacks(self._checkpoint_bytes + LOG_BYTES)
        newest_first, _ = found(self._folder)
        nth, going = nth_of(newest_first, self._keep_every), list[Checkpoint]()
        # The oldest first, but last those that are kept for good.
        for one in sorted(newest_first[:0:-1], key=lambda one: one in nth):
            if lacking > 0:
                going.append(one)
                lacking -= folder_bytes(one.path)
        # The log may do without its room, and so write no more; a checkpoint may not.
        if lacking <= LOG_BYTES:
            remove(going)
            self._disk.look()

    def _copy_and_write(self, lineage: bytes, inner: InnerState | None) -> None:
        self._thin()
        with self._disk.writing(self._checkpoint_bytes):
            state = self._copy(self._memory)
            self._memory = state.anchor_P, state.momentum_P, state.lost_P
            # The next outer step may have been quicker; what this peer has trained since the one before is not of it.
            save_checkpoint(self._folder, state, inner if state.lineage == lineage else None)
        self._thin()
