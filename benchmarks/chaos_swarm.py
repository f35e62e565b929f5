"""Real peers on hosts of their own, whose inner steps are mostly asleep, so that many of them fit on a few cores."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from hosts import Hosts

from runtime.config import RunConfig
from runtime.demo.processes import PeerProcess, end_all
from runtime.log import Event, commits
from runtime.runfile import render_run_file
from runtime.training.model import PRESETS

# A run that no benchmark sees the end of.
OUTER_STEPS = 1_000_000
STALL_S = 120.0
POLL_S = 0.01


class ChaosSwarm:
    """A context manager; on leaving, the processes are gone.

    Args: hosts is None for loopback. An inner phase is ``inner_steps`` steps of ``inner_step_s`` seconds each.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Hosts | None,
        n_peers: int,
        *,
        inner_steps: int,
        inner_step_s: float,
        quorum: int,
        preset: str = "toy",
        flags: Sequence[str] = (),
    ) -> None:
        defaults = RunConfig()
        self.config = RunConfig(
            name="chaos",
            model=replace(defaults.model, preset=preset),
            data=replace(defaults.data, source="files"),
            inner=replace(defaults.inner, steps=inner_steps, batch=1, warmup_steps=0),
            outer=replace(defaults.outer, steps=OUTER_STEPS),
            averaging=replace(defaults.averaging, quorum=quorum),
        )
        self.tokens_per_s = PRESETS[preset].context / inner_step_s
        self.peers: list[PeerProcess] = []
        self._folder, self._hosts, self._n_peers = folder, hosts, n_peers
        # Little text: what a start costs is not to be the reading of it.
        text = folder / "text.txt"
        text.write_text("".join(f"{number} times {number} is {number * number}.\n" for number in range(5000)))
        self._flags = ("--inner-step-s", str(inner_step_s), "--data", str(text), *flags)
        self._invite = ""

    def __enter__(self) -> "ChaosSwarm":
        run_file = self._folder / "run.toml"
        run_file.write_text(render_run_file(self.config))
        try:
            self._add("start", str(run_file))
            self.until(lambda: self.peers[0].invite() is not None, "the first peer did not open the run")
            self._invite = self.peers[0].invite() or ""
            for _ in range(self._n_peers - 1):
                self._add("join", self._invite)
            self.until_all_commit()
        except BaseException:
            end_all(self.peers)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_all(self.peers)

    def restart(self, peer: PeerProcess) -> None:
        """As its owner would after a crash."""
        peer.start(("join", self._invite))

    def join(self) -> PeerProcess:
        """Start one more peer, on the next host: its start is to take little of cores that are the others' too."""
        self._add("join", self._invite, prefix=("nice", "-n", "19"))
        return self.peers[-1]

    def until(self, done: Callable[[], bool], otherwise: str, timeout_s: float = STALL_S) -> None:
        """Read what the peers log until ``done``; SystemExit after the timeout, or if a peer ends by itself."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self.read()
            if time.monotonic() > deadline:
                raise SystemExit(f"{otherwise} within {timeout_s:.0f} s; logs: {self._folder}")
            time.sleep(POLL_S)

    def read(self) -> None:
        for peer in self.peers:
            peer.read_events()
            if peer.exit_code is not None and not peer.killed:
                raise SystemExit(f"{peer.name} has ended: {peer.output()[-1:]}; logs: {self._folder}")

    def until_all_commit(self, n_steps: int = 2, peers: Sequence[PeerProcess] | None = None) -> None:
        """Until so many outer steps in a row have a contribution of every one of these peers, and all hold them."""
        wanted = self.peers if peers is None else peers
        begun = max(peer.outer_step for peer in wanted)
        ids = {peer.peer_id for peer in wanted}

        def all_in() -> bool:
            full = [
                {event["outer_step"] for event in commits_of(peer) if ids.issubset(event["members"])} for peer in wanted
            ]
            steps = set.intersection(*full)
            return any(all(step + more in steps for more in range(n_steps)) for step in steps if step > begun)

        self.until(all_in, "not all peers are in one outer step")

    def _add(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        host = len(self.peers)
        name = f"peer-{host + 1}"
        address = self._hosts.address(host) if self._hosts else "127.0.0.1"
        prefix = (*(self._hosts.prefix(host) if self._hosts else ()), *prefix)
        flags = ("--host", address, *self._flags)
        self.peers.append(PeerProcess(name, self._folder / name, arguments, flags=flags, prefix=prefix))


def commits_of(peer: PeerProcess) -> list[Event]:
    return commits(peer.events)
