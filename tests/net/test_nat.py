"""Peers behind routers that drop what they did not ask for: found out by themselves, in every group, without a shard.

Network namespaces, so root, iproute2 and nftables are needed: ``apt-get install nftables``.
"""

import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from swarm import Event, Peer, Swarm, swarm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.hosts import Hosts

pytestmark = pytest.mark.skipif(not Hosts.can_hide(), reason="needs root, iproute2 and nftables")

OUTER_STEPS = 4


def start_all(made: Swarm, hosts: Hosts, n_peers: int, outer_steps: int = OUTER_STEPS) -> list[Peer]:
    """One a host, the first on host 0. Every outer step needs all of them."""
    first, invite = made.start(outer_steps=outer_steps, quorum=n_peers, prefix=hosts.prefix(0))
    joined = [made.join(f"peer{host}", invite, prefix=hosts.prefix(host)) for host in range(1, n_peers)]
    return [first, *joined]


def reducers(peer: Peer) -> set[str]:
    return {reducer for event in peer.all("round_began") for reducer in event["reducers"]}


def reach(peer: Peer) -> Event:
    return peer.wait_for("reach")


@pytest.mark.parametrize(
    ("n_peers", "hidden"), [(3, (2,)), (4, (2, 3)), (4, (1, 2, 3))], ids=["one", "two behind two", "all but one"]
)
def test_peers_behind_nat_are_in_every_group_and_reduce_nothing(
    tmp_path: Path, n_peers: int, hidden: Collection[int]
) -> None:
    with Hosts(n_peers, hidden=hidden) as hosts, swarm(tmp_path) as made:
        peers = start_all(made, hosts, n_peers)
        for peer in peers:
            assert peer.wait_for_exit() == 0, made.story()
        everyone = sorted(peer.id for peer in peers)
        for peer in peers:
            assert peer.commits() == peers[0].commits()
            for commit in peer.all("outer_step_committed"):
                assert commit["members"] == everyone
                assert all(weight > 0 for weight in commit["weights"])
        assert len(peers[0].commits()) == OUTER_STEPS
        unseen = {peers[host].id for host in hidden}
        for host, peer in enumerate(peers):
            assert not reducers(peer) & unseen, made.story()
            assert not peer.all("strike"), made.story()
            if host in hidden:
                assert not reach(peer)["dialable"]
                assert reach(peer)["seen_at"] == hosts.address(host)
                assert "cannot be dialled from outside" in peer.output
            else:
                assert not peer.all("reach"), made.story()
