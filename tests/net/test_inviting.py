"""The invite of a peer's folder is the one that its peer has printed."""

import subprocess
import sys
from pathlib import Path

from swarm import Peer, environment, swarm

from runtime.invite import parse_invite


def told(peer: Peer) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime.cli", "invite", str(peer.folder)],
        env=environment(peer.folder.parent),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_the_invite_is_the_printed_one_while_the_peer_runs_and_after_it(tmp_path: Path) -> None:
    with swarm(tmp_path) as made:
        peer, invite = made.start(outer_steps=1000, options=("--inner-step-s", "0.05"))
        there = told(peer)
        assert parse_invite(there.stdout) == parse_invite(invite)
        assert there.stderr == ""
        peer.kill()
        gone = told(peer)
        assert gone.stdout == there.stdout
        assert "no peer runs in" in gone.stderr
