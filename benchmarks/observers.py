"""What it costs members to be watched: CPU and wall of a swarm with observers, against the same without, in turns.

    python benchmarks/observers.py [--quick]

Four peers on loopback whose inner steps are mostly asleep, and a process with one observer and with a hundred in it,
which is run by the environment that ``make monitor`` makes. Prints a Markdown table, and JSON at the end.
"""

import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

from chaos_swarm import ChaosSwarm, commits_of
from cpu import cpu_s
from parts import run_parts

from runtime.invite import parse_invite

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-monitor" / "bin" / "python"
N_MEMBERS, COUNTS = 4, (1, 100)
SETTLE_S, BLOCK_S, REPEATS = 5.0, 60.0, 3


def observers(stack: ExitStack, quick: bool) -> dict[str, Any]:
    """A swarm that is watched by one and by a hundred, and before and after by nobody."""
    if not PYTHON.exists():
        raise SystemExit("observers need an environment of their own: make monitor")
    folder = Path(tempfile.mkdtemp(prefix="atoll-observers-"))
    swarm = stack.enter_context(ChaosSwarm(folder, None, N_MEMBERS, inner_steps=10, inner_step_s=0.1, quorum=2))
    invite = parse_invite(swarm.peers[0].invite() or "")
    addresses = [address for peer in swarm.peers for address in parse_invite(peer.invite() or "").addresses]
    block_s, results = 10.0 if quick else BLOCK_S, {}
    print("\n| observers | a member's CPU, of a core | without them | more | most of one | s a step | without them |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for count in COUNTS:
        watched, alone = [], []
        for _ in range(1 if quick else REPEATS):
            alone.append(_block(swarm, block_s))
            with _Watchers(count, invite.run_id, addresses):
                watched.append(_block(swarm, block_s))
            alone.append(_block(swarm, block_s))
        cpus, idle_cpus = (
            list(map(mean, zip(*(cpu for cpu, _ in blocks), strict=True))) for blocks in (watched, alone)
        )
        step_s, idle_step_s = (mean(step_s for _, step_s in blocks) for blocks in (watched, alone))
        more = [cpu - idle for cpu, idle in zip(cpus, idle_cpus, strict=True)]
        print(
            f"| {count} | {mean(cpus):.2%} | {mean(idle_cpus):.2%} | {mean(more):+.2%} | {max(more):+.2%} "
            f"| {step_s:.3f} | {idle_step_s:.3f} |",
            flush=True,
        )
        results[str(count)] = {"cpu": cpus, "without": idle_cpus, "step_s": step_s, "step_without_s": idle_step_s}
    return results


def _block(swarm: ChaosSwarm, block_s: float) -> tuple[list[float], float]:
    """How much of a core each member uses, and seconds an outer step."""
    time.sleep(SETTLE_S)
    began, used, n_steps = time.monotonic(), _used(swarm), _steps(swarm)
    while time.monotonic() < began + block_s:
        swarm.read()
        time.sleep(0.1)
    passed_s = time.monotonic() - began
    cpus = [(after - before) / passed_s for before, after in zip(used, _used(swarm), strict=True)]
    return cpus, passed_s / max(_steps(swarm) - n_steps, 1)


def _used(swarm: ChaosSwarm) -> list[float]:
    """CPU-seconds of each member and its p2pd."""
    return [cpu_s([peer.pid]) for peer in swarm.peers]


def _steps(swarm: ChaosSwarm) -> int:
    swarm.read()
    return len(commits_of(swarm.peers[0]))


class _Watchers:
    """So many observers in one process, all of which follow a member when the context is entered."""

    def __init__(self, count: int, run_id: str, addresses: list[str]) -> None:
        command = [str(PYTHON), str(Path(__file__).with_name("watchers.py")), str(count), run_id, *addresses]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        )

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().decode()
        if said.strip() != "all follow":
            self._process.kill()
            raise SystemExit(f"the observers did not come: {said}")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    run_parts("observers", __doc__, [observers])
