"""What faults cost real peers: time to the next commit, storms, a partition, links that are full.

    python benchmarks/chaos.py [commit] [storm] [partition] [saturated] [--quick]

Peers are processes with a host of their own each, a network namespace, where this is root, and on loopback otherwise
(then no link can be cut: those trials are left out, and so is ``partition`` and ``saturated``). The model is the toy of
the demo. Its inner steps are real and then asleep until their time is over, so that many peers fit on a few cores: no
figure here is a speed of training. Prints Markdown tables, and JSON at the end.
"""

import random
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from chaos_swarm import ChaosSwarm, commits_of
from hosts import Hosts
from parts import run_parts

from runtime.demo.processes import PeerProcess
from runtime.demo.storm import Storm
from runtime.demo.toll import mismatches
from runtime.log import Event, commits

# A storm of real life runs this many times as fast here: faults an hour are multiplied by it.
STORM_SPEED = 5
# Faults an hour -> how many are waited for.
STORMS = {69: 100, 85: 120, 125: 290}


def commit(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Time to commit: after a fault at a random moment, all survivors' next commit, less a normal round."""
    hosts = _hosts(stack, 4)
    swarm = _swarm(stack, hosts, 4, inner_steps=10, inner_step_s=0.1, quorum=2)
    rng = random.Random(0)
    kinds = ["kill -9", "SIGSTOP", *(["link down"] if hosts else [])]
    n_trials = 3 if quick else 30
    late_s: dict[str, list[float]] = defaultdict(list)
    for trial in range(n_trials * len(kinds)):
        kind = kinds[trial % len(kinds)]
        victim = rng.randrange(len(swarm.peers))
        peer, others = swarm.peers[victim], [one for one in swarm.peers if one is not swarm.peers[victim]]
        normal_s = _normal_round_s(others)
        time.sleep(rng.uniform(0.0, normal_s))
        swarm.read()
        struck_at = time.time()
        _strike(kind, peer, hosts, victim)
        _until_next_commit(swarm, others, struck_at)
        last = max(_next_commit(one, struck_at) for one in others)
        before = max(event["time"] for one in others for event in commits_of(one) if event["time"] < struck_at)
        late_s[kind].append(last - before - normal_s)
        _mend(kind, peer, hosts, victim, swarm)
        swarm.until_all_commit()
        print(f"{trial + 1}: {kind}, {late_s[kind][-1]:.2f} s late", file=sys.stderr)
    print("\n| fault | trials | median s beyond a normal round | p90 | longest |\n|---|--:|--:|--:|--:|")
    for kind, values in late_s.items():
        ranked = sorted(values)
        p90 = ranked[int(0.9 * (len(ranked) - 1))]
        print(f"| {kind} | {len(values)} | {median(values):.2f} | {p90:.2f} | {ranked[-1]:.2f} |")
    return {
        "late_s": late_s,
        "different_anchors": mismatches([event for peer in swarm.peers for event in commits_of(peer)]),
    }


def storm(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Storms of kills, restarts after five seconds, of 510 faults together."""
    rows = []
    print("\n| faults an hour | faults | outer steps | efficiency | participation | back after | differ | forks |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for per_hour, n_faults in STORMS.items():
        with ExitStack() as own:
            swarm = _swarm(own, _hosts(own, 6), 6, inner_steps=25, inner_step_s=0.1, quorum=1)
            wild = Storm(STORM_SPEED * per_hour, random.Random(per_hour), swarm.restart)
            since = time.time()
            while wild.faults < (5 if quick else n_faults):
                swarm.read()
                wild.act(time.time(), swarm.peers)
                time.sleep(0.02)
            until = time.time()
            cost = wild.toll(swarm.peers, since, until, swarm.tokens_per_s)
            rows.append({"faults_per_hour": per_hour, "seconds": until - since, **vars(cost)})
        back = "-" if cost.back_s is None else f"{cost.back_s:.1f} s"
        print(
            f"| {per_hour} | {cost.faults} | {cost.outer_steps} | {cost.efficiency:.1%} | {cost.participation:.1%} "
            f"| {back} | {cost.mismatches} | {cost.forks} |",
            flush=True,
        )
    return {"speed": STORM_SPEED, "storms": rows}


def partition(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Six peers, cut into three and three for 20 rounds, three times: how many rounds until all are together again."""
    hosts = _hosts(stack, 6)
    if hosts is None:
        raise SystemExit("a partition needs hosts that can be cut off: run this as root")
    swarm = _swarm(stack, hosts, 6, inner_steps=20, inner_step_s=0.1, quorum=2)
    n_rounds = 4 if quick else 20
    rows = []
    print("\n| rounds apart | until one history | until one group | fork_found | fork_healed | states kept |")
    print("|--:|--:|--:|--:|--:|--:|")
    for _ in range(1 if quick else 3):
        row = _part_and_heal(swarm, hosts, n_rounds)
        rows.append(row)
        print(f"| {n_rounds} | {' | '.join(str(value) for value in row.values())} |", flush=True)
    return {"rounds_apart": n_rounds, "partitions": rows}


def _part_and_heal(swarm: ChaosSwarm, hosts: Hosts, n_rounds: int) -> dict[str, int]:
    halves = swarm.peers[:3], swarm.peers[3:]
    first = [max(peer.outer_step for peer in half) for half in halves]
    began_at = time.time()
    hosts.split(range(3, 6))
    swarm.until(
        lambda: all(half[0].outer_step >= step + n_rounds for half, step in zip(halves, first, strict=True)),
        "a half stands still",
        600.0,
    )
    hosts.split(())
    healed_at, steps_then = time.time(), max(peer.outer_step for peer in swarm.peers)
    swarm.until_all_commit(1)
    later: dict[int, list[Event]] = defaultdict(list)
    for peer in swarm.peers:
        for event in commits_of(peer):
            if event["time"] > healed_at:
                later[event["outer_step"]].append(event)
    everyone = len(swarm.peers)
    of_all = {step for step, events in later.items() if len(events) == everyone}
    one_history = min(step for step in of_all if len({event["lineage"] for event in later[step]}) == 1)
    one_group = min(step for step in of_all if len(later[step][0]["members"]) == everyone)
    news = [event for peer in swarm.peers for event in peer.events if event["time"] > began_at]
    went_over = [event for event in news if event["event"] == "fork_healed" and event.get("kept")]
    return {
        "rounds_to_one_history": one_history - steps_then,
        "rounds_to_one_group": one_group - steps_then,
        "fork_found": sum(event["event"] == "fork_found" for event in news),
        "fork_healed": sum(event["event"] == "fork_healed" for event in news),
        "states_kept": len(went_over),
    }


def saturated(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """Four peers on links of 10 Mbit/s that rounds fill most of the time: is anybody taken for dead?"""
    hosts = _hosts(stack, 4, rate_mbit=10.0)
    if hosts is None:
        raise SystemExit("shaped links need hosts of their own: run this as root")
    swarm = _swarm(stack, hosts, 4, inner_steps=10, inner_step_s=0.05, quorum=2, preset="small")
    seconds = 30.0 if quick else 600.0
    began, sent = time.time(), hosts.sent_bytes(0)
    deadline = time.monotonic() + seconds
    swarm.until(lambda: time.monotonic() > deadline, "", seconds + 10.0)
    sent = hosts.sent_bytes(0) - sent
    events = [event for peer in swarm.peers for event in peer.events if event["time"] > began]
    suspicions = sum(event["event"] in ("member_down", "member_still") for event in events)
    steps = commits(events)
    full = sum(len(event["members"]) == len(swarm.peers) for event in steps)
    busy = sent * 8 / seconds / 10e6
    print("\n| seconds | outer steps | with all members | link in use | false suspicions |\n|--:|--:|--:|--:|--:|")
    n_steps = len({event["outer_step"] for event in steps})
    print(f"| {seconds:.0f} | {n_steps} | {full / max(len(steps), 1):.0%} | {busy:.0%} | {suspicions} |", flush=True)
    return {"seconds": seconds, "outer_steps": n_steps, "link_in_use": busy, "false_suspicions": suspicions}


def _hosts(stack: ExitStack, n_hosts: int, rate_mbit: float | None = None) -> Hosts | None:
    return stack.enter_context(Hosts(n_hosts, rate_mbit)) if Hosts.available() else None


def _swarm(stack: ExitStack, hosts: Hosts | None, n_peers: int, **options: Any) -> ChaosSwarm:
    folder = Path(tempfile.mkdtemp(prefix="atoll-chaos-"))
    return stack.enter_context(ChaosSwarm(folder, hosts, n_peers, **options))


def _normal_round_s(peers: list[PeerProcess]) -> float:
    """Median time between two commits that had everyone, of all that these peers have logged."""
    gaps = [
        later["time"] - sooner["time"]
        for peer in peers
        for sooner, later in zip(commits_of(peer), commits_of(peer)[1:], strict=False)
        if len(sooner["members"]) == len(later["members"]) == len(peers) + 1
        and later["outer_step"] == sooner["outer_step"] + 1
    ]
    return float(median(gaps))


def _until_next_commit(swarm: ChaosSwarm, peers: list[PeerProcess], after: float) -> None:
    swarm.until(lambda: all(_next_commit(peer, after) for peer in peers), "the survivors do not commit")


def _next_commit(peer: PeerProcess, after: float) -> float:
    """When (Unix) the peer next committed; 0 if it has not."""
    return min((float(event["time"]) for event in commits_of(peer) if event["time"] > after), default=0.0)


def _strike(kind: str, peer: PeerProcess, hosts: Hosts | None, host: int) -> None:
    if kind == "kill -9":
        peer.kill()
    elif kind == "SIGSTOP":
        peer.freeze()
    elif hosts is not None:
        hosts.link(host, up=False)


def _mend(kind: str, peer: PeerProcess, hosts: Hosts | None, host: int, swarm: ChaosSwarm) -> None:
    if kind == "kill -9":
        swarm.restart(peer)
    elif kind == "SIGSTOP":
        peer.thaw()
    elif hosts is not None:
        hosts.link(host, up=True)


if __name__ == "__main__":
    run_parts("chaos", __doc__, [commit, storm, partition, saturated])
