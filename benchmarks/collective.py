"""Groups of real processes that average one vector, one process a peer, each told when to begin."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cpu import cpu_s

PEER = Path(__file__).with_name("collective_peer.py")


@dataclass(frozen=True)
class Round:
    seconds: float
    """Until the last peer had the mean."""
    cpu_s: float
    """Of all peers together and of what they have started (p2pd above all)."""


class Group:
    """The peers of one system; a context manager that ends them.

    Args:
        system: as ``collective_peer.py`` has it.
        prefix: what runs a command on the host of a peer; ``address`` where it listens.
        delay_ms: of a proxy before each of Atoll's peers.
    """

    def __init__(
        self,
        system: str,
        n_peers: int,
        n_elements: int,
        prefix: Callable[[int], Sequence[str]] = lambda peer: (),
        address: Callable[[int], str] = lambda peer: "127.0.0.1",
        delay_ms: float = 0.0,
    ) -> None:
        self.system = system
        self._peers: list[subprocess.Popen[str]] = []
        self._command = (system, n_peers, n_elements)
        self._prefix, self._address, self._delay_ms = prefix, address, delay_ms
        self._ready = False

    def __enter__(self) -> "Group":
        system, n_peers, n_elements = self._command
        try:
            for index in range(n_peers):
                # Gloo asks the host's name for its address otherwise, which a namespace shares with the machine.
                interface = {"GLOO_SOCKET_IFNAME": "eth0" if self._prefix(index) else "lo"}
                environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEER.parents[1]), **interface}
                numbers = map(str, (index, n_peers, n_elements))
                arguments = [system, *numbers, self._address(index), str(self._delay_ms)]
                self._peers.append(
                    subprocess.Popen(
                        [*self._prefix(index), sys.executable, str(PEER), *arguments],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=sys.stderr if os.environ.get("VERBOSE") else subprocess.DEVNULL,
                        text=True,
                        bufsize=1,
                        env={**os.environ, **environment},
                        start_new_session=True,
                    )
                )
            first = self._hear(0)["address"]
            for index in range(1, n_peers):
                self._tell(index, str(first))
            for index in range(1, n_peers):
                self._hear(index)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for peer in self._peers:
            # With what it has started: hivemind's processes outlive the one that began them.
            with suppress(ProcessLookupError):
                os.killpg(peer.pid, signal.SIGKILL)
        for peer in self._peers:
            peer.wait()

    def until_ready(self) -> None:
        """Until every peer waits for its round to begin: nothing of this group runs then."""
        if not self._ready:
            for index in range(len(self._peers)):
                assert self._hear(index)["ready"]
            self._ready = True

    def round(self, work_s: float = 0.0) -> Round:
        """Wait until every peer is ready, let all begin at once, wait until every one has the mean.

        Args: work_s is slept by each before its round; in the time that is measured.
        """
        self.until_ready()
        self._ready = False
        before = cpu_s(peer.pid for peer in self._peers)
        for index in range(len(self._peers)):
            self._tell(index, str(work_s))
        heard = [self._hear(index) for index in range(len(self._peers))]
        if len({one.get("norm") for one in heard}) != 1:
            raise RuntimeError(f"{self.system}: the means differ: {heard}")
        return Round(max(float(str(one["seconds"])) for one in heard), cpu_s(peer.pid for peer in self._peers) - before)

    def _tell(self, index: int, line: str) -> None:
        stdin = self._peers[index].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def _hear(self, index: int) -> dict[str, object]:
        stdout = self._peers[index].stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith("{"):
                heard: dict[str, object] = json.loads(line)
                return heard
        raise RuntimeError(f"{self.system}: peer {index} ended (VERBOSE=1 shows why)")
