"""Training gives way to other programs, and keeps to the threads that its user allows, changed ones included."""

import asyncio
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from runtime.config import DataSection, InnerSection, PeerConfig, RunConfig
from runtime.trainer import ReplicaTrainer


@dataclass
class Noting:
    """A stop flag that notes in which thread it is asked for, and how that one stands."""

    seen: list[tuple[int, int]] = field(default_factory=list)
    """CPU threads and niceness."""

    def is_set(self) -> bool:
        who = threading.get_native_id() if sys.platform == "linux" else 0
        self.seen.append((torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, who)))
        return False

    def set(self) -> None: ...


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has one niceness for all of its threads")
def test_a_phase_has_the_threads_of_its_moment_and_is_nice_and_nobody_else_is(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words to learn from " * 2000)
    run_config = RunConfig(data=DataSection("files"), inner=InnerSection(steps=1, batch=1))
    allowed, before = [1], os.getpriority(os.PRIO_PROCESS, 0)
    config = PeerConfig(tmp_path, tmp_path / "key", data=str(tmp_path / "text"), nice=max(before, 7))

    async def main() -> list[tuple[int, int]]:
        trainer = ReplicaTrainer(run_config, config, "peer" * 4, lambda: allowed[0])
        noting = Noting()
        for n_threads in (1, 3):
            allowed[0] = n_threads
            await trainer.train(noting)  # type: ignore[arg-type]
            trainer.load_state(0, trainer.anchor_P.clone(), trainer.momentum_P.clone())
        return noting.seen

    seen = asyncio.run(main())
    assert set(seen) == {(1, max(before, 7)), (3, max(before, 7))}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
