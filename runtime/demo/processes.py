"""The demo's peers: processes of their own, and the ends by which the demo holds them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peers.identity import Identity
from runtime.log import EVENTS_FILE, Event, parse_events
from runtime.rotation import Tail

# Issue and manual promise that a peer says goodbye within five seconds of SIGTERM.
GOODBYE_S = 5.0
# One training thread each: the peers share this machine's cores.
PEER_FLAGS = ("--threads", "1", "--exit-with-stdin")


class PeerProcess:
    """One ``atoll start`` or ``atoll join`` in a session of its own: a Ctrl-C at the terminal is the demo's to handle.

    Its standard input is a pipe from the demo. Should the demo be SIGKILLed, the pipe ends, and with it the peer.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        arguments: Sequence[str],
        *,
        flags: Sequence[str] = ("--host", "127.0.0.1"),
        prefix: Sequence[str] = (),
    ) -> None:
        """``prefix`` is a command that runs the peer's in its place, such as ``ip netns exec NAME``."""
        folder.mkdir(parents=True)
        identity = Identity.generate()
        identity.save(folder / "identity.key")
        self.name = name
        self.peer_id = identity.peer
        self.events: list[Event] = []
        self.folder = folder
        self._tail = Tail(folder / EVENTS_FILE)
        self._output = Tail(folder / "output.log")
        self._output_lines: list[str] = []
        self._prefix, self._flags = prefix, flags
        self.start(arguments)

    def start(self, arguments: Sequence[str]) -> None:
        """Start the process; one that has ended goes on from what is in its folder."""
        self.killed = False
        self.read_events()
        self._lived_before = len(self.events)
        own = ("--folder", str(self.folder), "--key", str(self.folder / "identity.key"))
        # -P: a folder named `runtime` where the user happens to stand is not to be imported.
        python = (*self._prefix, sys.executable, "-P", "-m", "runtime.cli")
        command = [*python, *arguments, *own, *PEER_FLAGS, *self._flags]
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def read_events(self) -> list[Event]:
        """Take in what the peer has logged since the last call; returns only that."""
        new = parse_events(self._tail.read())
        self.events += new
        return new

    def output(self) -> list[str]:
        """Every line that the process has printed, on either stream."""
        self._output_lines += self._output.read().decode("utf-8", "replace").splitlines()
        return self._output_lines

    def invite(self) -> str | None:
        """What ``atoll start`` prints once the run is open; None until then."""
        for line in self.output():
            if line.startswith("invite: "):
                return line.removeprefix("invite: ").strip()
        return None

    @property
    def is_member(self) -> bool:
        """Whether the process that runs now has the run's state."""
        return any(event["event"] in ("joined", "outer_step_committed") for event in self.events[self._lived_before :])

    @property
    def outer_step(self) -> int:
        """Outer steps that the peer has behind it."""
        done = [event["outer_step"] for event in self.events if event["event"] in ("outer_step_committed", "joined")]
        return max(done, default=0)

    def has_committed(self, outer_step: int) -> bool:
        return any(
            event["event"] == "outer_step_committed" and event["outer_step"] >= outer_step for event in self.events
        )

    def freeze(self) -> None:
        """SIGSTOP, and wait until every thread stands still: only then is what it has logged all it ever will."""
        self._signal(signal.SIGSTOP)
        # WNOWAIT leaves the state change, and an exit, to be seen by others.
        flags = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, flags)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL of the peer's own process alone, as a crash or an out-of-memory killer would have it."""
        self.killed = True
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.close()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill_session(self) -> None:
        """SIGKILL of whatever is left of the peer and of all that it started."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def _environment() -> dict[str, str]:
    """This process's own; a package that was found in the current folder must be found there by the peers too."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    found_in_cwd = root == str(Path.cwd()) and Path(sys.path[0] or ".").resolve() == Path(root)
    pythonpath = {"PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root} if found_in_cwd else {}
    return {**os.environ, **pythonpath, "PYTHONUNBUFFERED": "1"}


def end_all(peers: Sequence[PeerProcess]) -> None:
    """SIGTERM to all, up to five seconds for their goodbyes, then SIGKILL. A second Ctrl-C cuts the goodbyes short."""
    alive = [peer for peer in peers if peer.exit_code is None]
    try:
        for peer in alive:
            peer.terminate()
        deadline = time.monotonic() + GOODBYE_S
        while time.monotonic() < deadline and any(peer.exit_code is None for peer in alive):
            time.sleep(0.02)
    except KeyboardInterrupt:
        pass
    finally:
        for peer in peers:
            peer.kill_session()
            peer.close()
