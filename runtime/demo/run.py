"""``atoll demo``: a swarm of real processes on this machine, one of them killed, one of them late; or a storm."""

import json
import math
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from runtime.config import RunConfig
from runtime.demo.processes import PeerProcess, end_all
from runtime.demo.report import Demo, Happening, build_report, render_report
from runtime.demo.storm import RESTART_S, Storm
from runtime.demo.toll import Toll
from runtime.demo.view import DemoView
from runtime.errors import ConfigError
from runtime.log import commits
from runtime.runfile import render_run_file
from runtime.training.data import load_corpus
from runtime.training.model import PRESETS, build_model

KILL_AT, KILL_ANYWAY_AT, LATE_AT = 0.4, 0.7, 0.6
# A round on loopback lasts some tens of milliseconds: who wants to hit the middle of one has to look this often.
HUNT_POLL_S = 0.002
POLL_S = 0.05
OPENING_TIMEOUT_S = 120.0
# By then every peer has the last outer step or is about to; a goodbye takes five seconds at most.
FINISH_TIMEOUT_S = 30.0
# At least as long is an outer step that a late joiner is to come to: beside a GPU all of them would be over before it
# has imported what it needs.
LEAST_STEP_S = 1.2
# A storm ends so long before the run does, by its pace: who was killed last is back in time.
CALM_S = 15.0


@dataclass(frozen=True)
class DemoOptions:
    peers: int = 4
    """At the start; a late joiner comes on top."""
    outer_steps: int = 20
    inner_steps: int = 25
    data: str | None = None
    """Text file, folder or glob; None for the standard library's sources."""
    kill: bool = True
    late_joiner: bool = True
    seed: int = 0
    quorum: int | None = None
    """Fewest contributions to a step; None for half of the peers, so that the first does not run ahead alone."""
    workdir: Path | None = None
    """None for a temporary folder, which stays."""
    storm: float | None = None
    """Kills an hour, each followed by a new start; None for the one kill of ``kill``."""


def run_demo(options: DemoOptions) -> int:
    """Run the swarm to its end, print the report and write it to ``report.json``.

    Returns: 0, or 1 if the anchors differ, the loss did not fall, or a step or a peer was lost unasked.
    Raises: ConfigError, before any process is started, if the data or the folder cannot be used.
    """
    console = Console()
    defaults = RunConfig()
    config = RunConfig(
        name="demo",
        model=replace(defaults.model, preset="toy", seed=options.seed),
        data=replace(defaults.data, source="stdlib" if options.data is None else "files"),
        inner=replace(defaults.inner, steps=options.inner_steps),
        outer=replace(defaults.outer, steps=options.outer_steps),
        averaging=replace(defaults.averaging, quorum=options.quorum or (options.peers + 1) // 2),
    )
    with console.status("Reading the text ..."):
        load_corpus(config.data.source, options.data, config.data.validation_fraction)
        n_parameters = sum(parameter.numel() for parameter in build_model(config.model.preset, 0).parameters())
    workdir = _prepare_folder(options.workdir)
    (workdir / "run.toml").write_text(render_run_file(config), encoding="utf-8")
    console.print(f"Logs and report: {workdir}", markup=False, highlight=False, soft_wrap=True)
    with _signals_as_exceptions(), DemoView(console, options.outer_steps) as view:
        swarm = Swarm(options, config, workdir, view)
        began = time.monotonic()
        try:
            swarm.run()
        finally:
            if any(peer.exit_code is None for peer in swarm.peers):
                view.say("ending the peers that are left")
            end_all(swarm.peers)
        wall_s = time.monotonic() - began
    for peer in swarm.peers:
        peer.read_events()
    demo = Demo(
        config=config,
        n_parameters=n_parameters,
        context=PRESETS[config.model.preset].context,
        peer_ids={peer.name: peer.peer_id for peer in swarm.peers},
        wall_s=wall_s,
        killed=swarm.killed,
        late=swarm.late,
        problems=tuple(swarm.problems),
        down=frozenset(peer.name for peer in swarm.peers if peer.killed),
        storm=swarm.toll(),
    )
    report = build_report({peer.name: peer.events for peer in swarm.peers}, demo)
    (workdir / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    console.print(render_report(report))
    for problem in report.problems:
        console.print(f"FAILED: {problem}", markup=False, highlight=False)
    return 1 if report.problems else 0


class Swarm:
    """The demo's peers, and what it does to them."""

    def __init__(self, options: DemoOptions, config: RunConfig, workdir: Path, view: DemoView) -> None:
        self.peers: list[PeerProcess] = []
        self.killed: Happening | None = None
        self.late: Happening | None = None
        self.problems: list[str] = []
        self._options = options
        self._workdir = workdir
        self._view = view
        self._invite = ""
        self._committed = 0
        self._last_progress = self._began = time.monotonic()
        self._first_commit: tuple[int, float] | None = None
        self._joiners_spawned = math.inf
        self._startup_s: float | None = None
        self._late_peer: PeerProcess | None = None
        self._storm: Storm | None = None
        if options.storm is not None:
            rng, least = random.Random(options.seed), config.averaging.quorum
            self._storm = Storm(options.storm, rng, self._start_again, least)
        self._storm_since = math.inf
        # Every peer's share of two cores: at the toy size an inner step takes about 10 ms of one.
        self._stall_s = OPENING_TIMEOUT_S + 0.1 * config.inner.steps * (options.peers + 1)

    def run(self) -> None:
        """Until the peers have ended by themselves, or nothing has moved for too long.

        Raises: ConfigError if the first peer cannot open the run.
        """
        self._view.say("starting peer-1, which opens the run")
        self._open()
        self._view.say(f"the run is open; starting {self._options.peers - 1} joiners")
        self._joiners_spawned = time.monotonic()
        for _ in range(self._options.peers - 1):
            self._spawn(*self._join)
        self._last_progress = time.monotonic()
        finished_at: float | None = None
        while any(peer.exit_code is None for peer in self.peers):
            now = time.monotonic()
            self._look_at_peers(now)
            if self._options.kill and self.killed is None:
                self._hunt()
            if self._storm is not None and finished_at is None:
                self._blow(self._storm, now)
            if self._options.late_joiner and self._late_peer is None and self._is_time_for_late_joiner(now):
                self._view.say(f"outer step {self._committed}: starting {self._next_name()}, the late joiner")
                self._late_peer = self._spawn(*self._join)
            if finished_at is None and self._committed >= self._options.outer_steps:
                finished_at = now
            if finished_at is not None:
                self._end_late_starters()
            if finished_at is not None and now > finished_at + FINISH_TIMEOUT_S:
                late = ", ".join(peer.name for peer in self.peers if peer.exit_code is None)
                self.problems.append(f"{late} did not end within {FINISH_TIMEOUT_S:.0f} s of the last outer step")
                break
            if now > self._last_progress + self._stall_s:
                self.problems.append(f"no outer step was committed for {self._stall_s:.0f} s")
                break
            self._view.refresh(self.peers)
            time.sleep(HUNT_POLL_S if self._is_hunting() else POLL_S)
        self._look_at_peers(time.monotonic())
        self._note_exits()

    def _open(self) -> None:
        data = ("--data", self._options.data) if self._options.data is not None else ()
        first = self._spawn("start", str(self._workdir / "run.toml"), *data)
        deadline = time.monotonic() + OPENING_TIMEOUT_S
        while (invite := first.invite()) is None:
            if first.exit_code is not None or time.monotonic() > deadline:
                said = [line for line in first.output() if line.startswith("atoll: ")]
                why = said[-1].removeprefix("atoll: ") if said else f"see {self._workdir / 'peer-1' / 'output.log'}"
                raise ConfigError(f"the first peer could not open the run: {why}")
            self._view.refresh(self.peers)
            time.sleep(POLL_S)
        self._invite = invite

    def _next_name(self) -> str:
        return f"peer-{len(self.peers) + 1}"

    def _spawn(self, *arguments: str) -> PeerProcess:
        name = self._next_name()
        step_s = LEAST_STEP_S if self._options.late_joiner else 0.0
        pace = ("--inner-step-s", str(step_s / self._options.inner_steps))
        peer = PeerProcess(name, self._workdir / name, (*arguments, *pace))
        self.peers.append(peer)
        return peer

    @property
    def _join(self) -> tuple[str, ...]:
        data = ("--data", self._options.data) if self._options.data is not None else ()
        return ("join", self._invite, *data)

    # The storm.

    def _blow(self, storm: Storm, now: float) -> None:
        """From the first outer step that had everyone until shortly before the end."""
        if self._first_commit is None or self._storm_since == math.inf:
            return
        step_s = (now - self._first_commit[1]) / max(1, self._committed - self._first_commit[0])
        left_s = (self._options.outer_steps - self._committed) * step_s
        if victim := storm.act(time.time(), self.peers, strike=left_s > CALM_S):
            self._view.say(f"outer step {self._committed}: killed {victim.name}; it starts again in {RESTART_S:.0f} s")

    def _start_again(self, peer: PeerProcess) -> None:
        self._look_at(peer, time.monotonic())
        peer.start(self._join)

    def _end_late_starters(self) -> None:
        """The run is over: who has only just started would find nobody, and wait."""
        alive = [peer for peer in self.peers if peer.exit_code is None]
        starting = [peer for peer in alive if not peer.is_member]
        # Whoever has the last step waits a while for those who are about to have it too.
        if self._storm is not None or starting == alive == [self._late_peer]:
            for peer in starting:
                peer.kill()

    def toll(self) -> Toll | None:
        """What the storm cost, once all logs are read; None without one."""
        if self._storm is None:
            return None
        times = [event["time"] for peer in self.peers for event in commits(peer.events)]
        return self._storm.toll(self.peers, self._storm_since, max(times, default=0.0))

    def _look_at_peers(self, now: float) -> None:
        for peer in self.peers:
            self._look_at(peer, now)

    def _look_at(self, peer: PeerProcess, now: float) -> None:
        for event in peer.read_events():
            if event["event"] == "joined":
                self._note_joined(peer, event["outer_step"], now)
            elif event["event"] == "outer_step_committed" and event["outer_step"] > self._committed:
                self._committed = event["outer_step"]
                self._last_progress = now
                self._first_commit = self._first_commit or (self._committed, now)
                if len(event["members"]) == self._options.peers:
                    self._storm_since = min(self._storm_since, event["time"])
                self._view.committed(self._committed, len(event["members"]), event["loss"])

    def _note_joined(self, peer: PeerProcess, outer_step: int, now: float) -> None:
        again = "is back" if self._storm is not None and peer.name in self._storm.deaths else "joined"
        self._view.say(f"{peer.name} {again} at outer step {outer_step}")
        if peer is self._late_peer:
            self.late = Happening(peer.name, outer_step)
        elif peer is not self.peers[0]:
            # The last joiner's, since all of them start at once and share the cores.
            self._startup_s = now - self._joiners_spawned

    def _is_time_for_late_joiner(self, now: float) -> bool:
        """Early enough to arrive, after seconds of imports, at about 60 % of the run: judged by the joiners before."""
        wanted = max(1, round(LATE_AT * self._options.outer_steps))
        if self._first_commit is None or self._committed <= self._first_commit[0]:
            return self._committed >= wanted
        steps_per_s = (self._committed - self._first_commit[0]) / (now - self._first_commit[1])
        return self._committed + (self._startup_s or 0.0) * steps_per_s >= wanted

    def _kill_step(self, share: float) -> int:
        return max(1, round(share * self._options.outer_steps))

    def _is_hunting(self) -> bool:
        wanted = self._options.kill and self.killed is None
        return wanted and self._committed + 1 >= self._kill_step(KILL_AT)

    def _hunt(self) -> None:
        """Kill the last of the first joiners if it stands in the middle of a round; else let it go on."""
        victim = self.peers[self._options.peers - 1]
        if victim.exit_code is not None or not self._is_hunting() or not victim.outer_step:
            return
        if _is_in_round(victim):
            victim.freeze()
            self._look_at(victim, time.monotonic())
            if _is_in_round(victim):
                self._kill(victim, mid_round=True)
            else:
                victim.thaw()
        elif self._committed >= self._kill_step(KILL_ANYWAY_AT):
            self._kill(victim, mid_round=False)

    def _kill(self, victim: PeerProcess, mid_round: bool) -> None:
        victim.kill()
        self.killed = Happening(victim.name, victim.outer_step + 1, mid_round)
        place = "in the middle of the round of" if mid_round else "between rounds, before"
        self._view.say(f"killed {victim.name} (SIGKILL) {place} outer step {self.killed.outer_step}")

    def _note_exits(self) -> None:
        for peer in self.peers:
            if not peer.killed and peer.exit_code not in (0, None):
                said = [line for line in peer.output() if line.strip()][-1:]
                self.problems.append(f"{peer.name} exited with code {peer.exit_code}: {''.join(said)}")
        if self._options.kill and self.killed is None:
            self.problems.append("no peer was killed: the run was over, or the peer gone, before its turn")
        if self._options.late_joiner and self.late is None:
            self.problems.append("the late joiner did not join before the end of the run; try more --outer-steps")


def _is_in_round(peer: PeerProcess) -> bool:
    """Whether the last thing that the peer has logged about rounds is the beginning of one."""
    kinds = (event["event"] for event in reversed(peer.events))
    return next((kind for kind in kinds if kind in ("round_began", "outer_step_committed")), "") == "round_began"


def _prepare_folder(workdir: Path | None) -> Path:
    if workdir is None:
        return Path(tempfile.mkdtemp(prefix="atoll-demo-"))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        is_empty = next(workdir.iterdir(), None) is None
    except OSError as error:
        raise ConfigError(f"{workdir} cannot be the demo's folder ({error.strerror}); name another --workdir") from None
    if not is_empty:
        raise ConfigError(f"{workdir} is not empty and nothing is overwritten; name a new --workdir")
    return workdir.resolve()


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, so that the peers are ended; Ctrl-C does so anyway."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
