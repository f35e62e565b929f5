"""One peer of a system that averages a vector, told what to do on standard input: see ``collective.py``.

    python benchmarks/collective_peer.py SYSTEM INDEX PEERS ELEMENTS HOST DELAY_MS

SYSTEM is atoll:CODEC, hivemind:8bit, hivemind:float32 or gloo:float32. The peer prints one JSON line for each thing
that happens: {"address": ...} when others can reach it, {"ready": true} when a round can begin, {"seconds": ...} for
each round, which begins with a line on standard input: the seconds to sleep before it. What it averages is a float32
vector of Gaussian numbers, other ones for each peer.
"""

import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RUN_ID = "c" * 40
# Held, so that their standard input ends with this process, and they with it.
proxies: list[asyncio.subprocess.Process] = []


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def hear() -> str:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return line.strip()


def own_vector(index: int, n_elements: int) -> Tensor:
    return torch.randn(n_elements, generator=torch.Generator().manual_seed(index))


@dataclass(frozen=True)
class Work:
    tokens: int = 1
    loss: float = 1.0


class IdleTrainer:
    """Its inner phase is to wait for the word to go, its outer step to take note of the time."""

    def __init__(self, vector_P: Tensor) -> None:
        self.n_elements, self.trains, self.device = vector_P.numel(), True, "cpu"
        self.outer_step = 0
        self.anchor_P = self.momentum_P = torch.zeros(1)
        self._vector_P, self._own_P = vector_P, vector_P.clone()
        self._went_at = 0.0

    @property
    def progress(self) -> int:
        return int(10 * time.monotonic())

    async def train(self, stop: threading.Event) -> Work:
        # A trainer's pseudo-gradient is its own to change, and what it takes to make one is training's.
        self._own_P.copy_(self._vector_P)
        say(ready=True)
        work_s = float(await asyncio.to_thread(hear))
        self._went_at = time.perf_counter()
        await asyncio.sleep(work_s)
        return Work()

    def pseudo_gradient(self) -> Tensor:
        return self._own_P

    def apply_outer_step(self, mean_pseudo_gradient_P: Tensor, missed: Sequence[tuple[int, int]] = ()) -> None:
        assert not missed
        norm = float(mean_pseudo_gradient_P[:1000].norm())
        self.outer_step += 1
        say(seconds=time.perf_counter() - self._went_at, norm=norm)

    def load_state(self, outer_step: int, anchor_P: Tensor, momentum_P: Tensor) -> None:
        raise AssertionError("nobody joins late")


async def delay_proxy(host: str, port: int, delay_s: float) -> int:
    """Begin a process that passes connections on to a port and holds every byte back; the port that it listens at."""
    command = [sys.executable, str(Path(__file__).with_name("delay_proxy.py")), host, str(port), str(delay_s)]
    proxy = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    proxies.append(proxy)
    assert proxy.stdout is not None
    return int(await proxy.stdout.readline())


async def atoll(codec: str, index: int, n_peers: int, n_elements: int, host: str, delay_ms: float) -> None:
    from peers.direct import DirectTransport
    from peers.discovery import DhtDiscovery
    from peers.identity import Identity
    from peers.messages import Role, Status
    from peers.p2pd import P2pdTransport
    from peers.service import Mesh
    from runtime.averaging.driver import Averager
    from runtime.averaging.statesync import STATE_PROTOCOL
    from runtime.averaging.transfer import PIECE_PROTOCOL, PUSH_PROTOCOL

    identity = Identity.generate()
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        identity.save(key)
        listen = [f"/ip4/{host}/tcp/0"]
        bootstrap = [hear()] if index else []
        p2pd = await P2pdTransport.create(key, listen=listen, bootstrap=bootstrap)
        say(address=(await p2pd.addresses())[0])
        discovery = await DhtDiscovery.create(p2pd, bootstrap)
        direct = DirectTransport(identity, p2pd, (PUSH_PROTOCOL, PIECE_PROTOCOL, STATE_PROTOCOL))
        await direct.listen(host, 0)
        if delay_ms:
            # Others are told the proxy's port, and dial nothing else.
            direct._port = await delay_proxy(host, direct._port, delay_ms / 1000)

        def strike(peer: str, reason: str) -> None:
            print(f"strike: {peer}: {reason}", file=sys.stderr)

        def report(event: str, **fields: object) -> None:
            if event in ("transfer_failed", "strike", "waiting", "link"):
                print(event, fields, file=sys.stderr)

        status = Status(Role.JOINING, 0, bytes(32), 0)
        mesh = Mesh(identity, RUN_ID, direct, discovery, status, random.Random(index), strike)
        mesh.met = direct.know
        meshing = asyncio.create_task(mesh.run())
        while len(mesh.members()) < n_peers - 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

        async def committed() -> None:
            """Nothing is kept."""

        averager = Averager(
            identity,
            RUN_ID,
            mesh,
            direct,
            IdleTrainer(own_vector(index, n_elements)),
            lineage=bytes(32),
            established=True,
            codec=codec,
            quorum=n_peers,
            last_outer_step=1 << 30,
            report=report,
            committed=committed,
            abandoned=lambda state: "",
        )
        await averager.run()
        meshing.cancel()


def hivemind(kind: str, index: int, n_peers: int, n_elements: int, host: str) -> None:
    import hivemind as hm
    from hivemind.averaging.control import AveragingStage
    from hivemind.compression import NoCompression, Uniform8BitQuantization

    compression: Any = Uniform8BitQuantization() if kind == "8bit" else NoCompression()
    maddrs = [f"/ip4/{host}/tcp/0"]
    initial = [hear()] if index else None
    dht = hm.DHT(initial_peers=initial, host_maddrs=maddrs, start=True)
    say(address=str(dht.get_visible_maddrs()[0]))
    vector_P = own_vector(index, n_elements)
    averager = hm.DecentralizedAverager(
        [vector_P],
        dht,
        prefix="collective",
        target_group_size=n_peers,
        min_group_size=n_peers,
        min_matchmaking_time=3.0,
        request_timeout=1.0,
        compression=compression,
        client_mode=False,
        start=True,
    )
    while True:
        control = averager.step(wait=False, require_trigger=True, timeout=300.0, allow_retries=True)
        while control.stage != AveragingStage.AWAITING_TRIGGER:
            # A StepControl's stage is a field that another process sets: nothing tells of it. Before what is timed.
            time.sleep(0.02)
        say(ready=True)
        work_s = float(hear())
        went_at = time.perf_counter()
        # In place of the training that --work-s stands for; 0 otherwise.
        time.sleep(work_s)
        control.allow_allreduce()
        control.result(timeout=600.0)
        say(seconds=time.perf_counter() - went_at)


def gloo(index: int, n_peers: int, n_elements: int, host: str) -> None:
    import torch.distributed as dist

    address = hear() if index else f"{host}:{random.Random().randrange(20_000, 60_000)}"
    if not index:
        say(address=address)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=index, world_size=n_peers)
    if index:
        say(address="")
    vector_P = own_vector(index, n_elements)
    while True:
        work_P = vector_P.clone()
        say(ready=True)
        work_s = float(hear())
        went_at = time.perf_counter()
        # In place of the training that --work-s stands for; 0 otherwise.
        time.sleep(work_s)
        dist.all_reduce(work_P)
        work_P.div_(n_peers)
        say(seconds=time.perf_counter() - went_at)


def main() -> None:
    system, index, n_peers, n_elements, host = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    torch.set_num_threads(1)
    name, _, kind = system.partition(":")
    if name == "atoll":
        import uvloop

        uvloop.run(atoll(kind, index, n_peers, n_elements, host, float(sys.argv[6])))
    elif name == "hivemind":
        hivemind(kind, index, n_peers, n_elements, host)
    else:
        gloo(index, n_peers, n_elements, host)


if __name__ == "__main__":
    main()
