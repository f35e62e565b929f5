"""What a run's state costs: joining while others train, catching up, checkpoints.

    python benchmarks/state.py [join] [join_slow] [eight] [donor] [catch_up] [checkpoint] [--quick]

All but the last use real peers on hosts of their own with links of 50 Mbit/s, or 10 where many join, so they need root
and iproute2; their inner steps are mostly asleep, as in ``chaos.py``. ``checkpoint`` is one process: how long training
stands still.
Prints Markdown tables, and JSON at the end.
"""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from chaos_swarm import ChaosSwarm, commits_of
from hosts import Hosts
from parts import run_parts

from runtime.config import RunConfig
from runtime.demo.processes import PeerProcess
from runtime.training.data import load_corpus
from runtime.training.model import build_model
from runtime.training.replica import Replica

# For many on a few cores: what their starts take is to be little beside what their downloads do.
MBIT, SLOW_MBIT = 50.0, 10.0
PRESET = "small"
N_MEMBERS = 4
_HERE = "state_downloaded"


def join(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Four that train, and one after the other that joins: until it has the state, and the others' rounds meanwhile.

    All five share this machine's cores: what its processor costs the others is in their rounds as well.
    """
    return _joins(stack, 1 if quick else 10, MBIT)


def join_slow(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """The same on links so slow that they alone are waited for."""
    return _joins(stack, 1 if quick else 5, SLOW_MBIT)


def _joins(stack: ExitStack, n_joins: int, mbit: float) -> dict[str, Any]:
    swarm = _swarm(stack, N_MEMBERS + n_joins, mbit)
    members = swarm.peers[:N_MEMBERS]
    rows, calm, during = [], list[tuple[float, float]](), list[tuple[float, float]]()
    state_bytes = 8 * n_elements()
    bound_s = state_bytes * 8 / (mbit * 1e6) * 1.15
    for _ in range(n_joins):
        # In turns: what else the machine does changes in minutes. The step in which a joiner goes is neither.
        swarm.until_all_commit(1, members)
        since = time.time()
        swarm.until_all_commit(4, members)
        calm += _steps(members[0], since, time.time())
        joiner = swarm.join()
        swarm.until(lambda peer=joiner: peer.is_member, "the joiner is no member")  # type: ignore[misc]
        downloaded = _first(joiner, "state_downloaded")
        linked, joined = _first(joiner, "link"), _first(joiner, "joined")
        during += _steps(members[0], linked, downloaded)
        rows.append({"download_s": downloaded - linked, "join_s": joined - linked})
        swarm.until_all_commit(1, [*members, joiner])
        joiner.kill()
    step_s, round_s = (median(times) for times in zip(*calm, strict=True))
    longer_step, longer_round = (median(times) for times in zip(*during, strict=True))
    print(
        "\n| joins | MB | median s until the state is there | bound | the others' rounds meanwhile | and their steps |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    took_s = median(row["join_s"] for row in rows)
    print(
        f"| {n_joins} | {state_bytes / 1e6:.1f} | {took_s:.2f} | {bound_s + step_s:.2f} "
        f"| {longer_round / round_s:.1%} | {longer_step / step_s:.1%} |",
        flush=True,
    )
    return {"state_bytes": state_bytes, "bound_s": bound_s, "calm": calm, "meanwhile": during, "joins": rows}


def eight(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Eight that join at once: from the first link of the first to the last state, against one member's link alone."""
    n_joiners = 2 if quick else 8
    swarm = _swarm(stack, N_MEMBERS + n_joiners, SLOW_MBIT, inner_step_s=3.0)
    joiners = [swarm.join() for _ in range(n_joiners)]
    swarm.until(lambda: all(peer.is_member for peer in joiners), "not all have joined", 300.0)
    began, ended = (pick(_first(peer, kind) for peer in joiners) for pick, kind in ((min, "link"), (max, _HERE)))
    own_s = [_first(peer, _HERE) - _first(peer, "link") for peer in joiners]
    alone_s = n_joiners * 8 * n_elements() * 8 / (SLOW_MBIT * 1e6)
    print("\n| joiners | MB each | s until all have it | median of each | from one member alone | times better |")
    print("|--:|--:|--:|--:|--:|--:|")
    megabytes, took_s = 8 * n_elements() / 1e6, ended - began
    row = f"| {n_joiners} | {megabytes:.1f} | {took_s:.1f} | {median(own_s):.1f} | {alone_s:.1f} "
    print(f"{row}| {alone_s / took_s:.1f} |", flush=True)
    return {"joiners": n_joiners, "took_s": took_s, "each_s": own_s, "alone_s": alone_s}


def donor(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """A member dies when half of the state is there: how many bytes more than the state the joiner takes for it."""
    rows = []
    print("\n| state, MB | taken for it, MB | more than it |\n|--:|--:|--:|")
    for _ in range(1 if quick else 3):
        with ExitStack() as own:
            swarm = _swarm(own, N_MEMBERS + 1, SLOW_MBIT, inner_step_s=3.0)
            joiner = swarm.join()
            swarm.until(lambda peer=joiner: _progress(peer) >= 0.5, "no download")  # type: ignore[misc]
            swarm.peers[0].kill()
            swarm.until(lambda peer=joiner: peer.is_member, "the joiner is no member")  # type: ignore[misc]
            here = next(event for event in joiner.events if event["event"] == _HERE)
        rows.append({"bytes": here["bytes"], "received_bytes": here["received_bytes"]})
        more = here["received_bytes"] / here["bytes"] - 1
        print(f"| {here['bytes'] / 1e6:.2f} | {here['received_bytes'] / 1e6:.2f} | {more:.1%} |", flush=True)
    return {"killed_at_half": rows}


def catch_up(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """A peer that stood still for five outer steps: what it takes to have them, a parameter and step."""
    swarm = _swarm(stack, N_MEMBERS)
    frozen, others = swarm.peers[-1], swarm.peers[:-1]
    rows = []
    print("\n| missed steps | bytes a parameter and step | a state is downloaded |\n|--:|--:|---|")
    for _ in range(1 if quick else 3):
        swarm.until_all_commit(2)
        frozen.freeze()
        at = max(peer.outer_step for peer in others)
        swarm.until(lambda at=at: others[0].outer_step >= at + 5, "the others stand still")  # type: ignore[misc]
        before = commits_of(frozen)[-1]
        thawed_at, missed = time.time(), others[0].outer_step - before["outer_step"]
        frozen.thaw()
        swarm.until(lambda: frozen.outer_step >= others[0].outer_step, "it does not catch up")
        since = [event for event in frozen.events if event["time"] > thawed_at]
        # The last step that it had no part in; from then on it takes part, which is not catching up.
        absent = [one for one in commits_of(frozen) if one["time"] > thawed_at and one["round_s"] is None]
        moved = absent[-1]["bytes_received"] - before["bytes_received"]
        n_steps = absent[-1]["outer_step"] - before["outer_step"]
        downloaded = any(event["event"] == "state_downloaded" for event in since)
        rows.append({"missed": missed, "bytes": moved / n_elements() / n_steps, "downloaded": downloaded})
        print(f"| {missed} | {rows[-1]['bytes']:.3f} | {'yes' if downloaded else 'no'} |", flush=True)
    return {"catch_ups": rows}


def checkpoint(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """How long training stands still for a checkpoint: while its moments are copied; all else is beside it."""
    preset = "medium" if quick else "large"
    config = RunConfig()
    config = replace(config, model=replace(config.model, preset=preset), inner=replace(config.inner, batch=1, steps=2))
    replica = Replica(config, load_corpus("stdlib", None, 0.05), device="cpu", peer_seed=0)
    replica.train(lambda: False)
    replica.apply_outer_step(replica.pseudo_gradient())
    # As in the event loop while nobody trains.
    torch.set_num_threads(1)
    took_s = []
    for _ in range(3 if quick else 15):
        began = time.perf_counter()
        replica.inner_state()
        took_s.append(time.perf_counter() - began)
    # Anchor, momentum, two moments, what the codec lost.
    megabytes, later_s = 20 * replica.n_elements / 1e6, median(took_s[1:])
    print("\n| MB | median ms that training stands still | the first time | of 500 MB |\n|--:|--:|--:|--:|")
    of_500 = 1e3 * later_s * 500 / megabytes
    print(f"| {megabytes:.0f} | {1e3 * later_s:.0f} | {1e3 * took_s[0]:.0f} | {of_500:.0f} |", flush=True)
    return {"megabytes": megabytes, "blocked_s": took_s}


def n_elements() -> int:
    return sum(parameter.numel() for parameter in build_model(PRESET, 0).parameters())


def _swarm(stack: ExitStack, n_hosts: int, mbit: float = MBIT, inner_step_s: float = 0.15) -> ChaosSwarm:
    if not Hosts.available():
        raise SystemExit("shaped links need hosts of their own: run this as root, with iproute2")
    hosts = stack.enter_context(Hosts(n_hosts, mbit))
    folder = Path(tempfile.mkdtemp(prefix="atoll-state-"))
    options = {"inner_steps": 10, "inner_step_s": inner_step_s, "quorum": 2, "preset": PRESET}
    return stack.enter_context(ChaosSwarm(folder, hosts, N_MEMBERS, **options))  # type: ignore[arg-type]


def _progress(peer: PeerProcess) -> float:
    """How much of the state is there, as last told."""
    told = [event for event in peer.events if event["event"] == "state_downloading"]
    return told[-1]["bytes"] / told[-1]["of_bytes"] if told else 0.0


def _first(peer: PeerProcess, kind: str) -> float:
    return float(next(event["time"] for event in peer.events if event["event"] == kind))


def _steps(peer: PeerProcess, since: float, until: float) -> list[tuple[float, float]]:
    """Seconds from commit to commit of all members, and from descriptor to commit, where that is within this time."""
    steps = commits_of(peer)
    return [
        (float(later["time"] - sooner["time"]), float(later["round_s"]))
        for sooner, later in pairwise(steps)
        if len(sooner["members"]) == len(later["members"]) == N_MEMBERS and since < later["time"] <= until
    ]


if __name__ == "__main__":
    run_parts("state", __doc__, [join, join_slow, eight, donor, catch_up, checkpoint])
