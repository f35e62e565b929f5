"""Peers behind routers that drop what they did not ask for: found out by themselves, in every group, without a shard.

Network namespaces, so root, iproute2 and nftables are needed: ``apt-get install nftables``.
"""

import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from swarm import Peer, Swarm, swarm

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from hosts import Hosts

pytestmark = pytest.mark.skipif(not Hosts.can_hide(), reason="needs root, iproute2 and nftables")

OUTER_STEPS = 4


def start_all(
    made: Swarm, hosts: Hosts, n_peers: int, quorum: int, outer_steps: int = OUTER_STEPS, *options: str
) -> list[Peer]:
    """One a host, the first on host 0."""
    first, invite = made.start(outer_steps=outer_steps, quorum=quorum, options=options, prefix=hosts.prefix(0))
    joined = [made.join(f"peer{host}", invite, *options, prefix=hosts.prefix(host)) for host in range(1, n_peers)]
    return [first, *joined]


def reducers(peer: Peer) -> set[str]:
    return {reducer for event in peer.all("round_began") for reducer in event["reducers"]}


@pytest.mark.parametrize(("n_peers", "hidden"), [(3, (2,)), (4, (1, 2, 3))], ids=["one", "all but one"])
def test_peers_behind_nat_are_in_every_group_and_reduce_nothing(
    tmp_path: Path, n_peers: int, hidden: Collection[int]
) -> None:
    with Hosts(n_peers, hidden=hidden) as hosts, swarm(tmp_path) as made:
        # Every outer step needs all of them.
        peers = start_all(made, hosts, n_peers, quorum=n_peers)
        for peer in peers:
            assert peer.wait_for_exit() == 0, made.story()
        everyone = sorted(peer.id for peer in peers)
        assert len(peers[0].commits()) == OUTER_STEPS
        for peer in peers:
            assert peer.commits() == peers[0].commits()
            for commit in peer.all("outer_step_committed"):
                assert commit["members"] == everyone
                assert all(weight > 0 for weight in commit["weights"])
        unseen = {peers[host].id for host in hidden}
        for host, peer in enumerate(peers):
            assert not reducers(peer) & unseen, made.story()
            assert not peer.all("strike"), made.story()
            found = peer.all("reach")
            if host in hidden:
                assert [(event["dialable"], event["seen_at"]) for event in found] == [(False, hosts.address(host))]
                assert "cannot be dialled from outside" in peer.output
            else:
                assert not found, made.story()


def test_two_behind_different_routers_go_on_when_one_that_passes_on_for_them_is_killed(tmp_path: Path) -> None:
    with Hosts(4, hidden=(2, 3)) as hosts, swarm(tmp_path) as made:
        peers = start_all(made, hosts, 4, 3, 1000, "--inner-step-s", "0.05")
        everyone = sorted(peer.id for peer in peers)
        before = peers[0].wait_for("outer_step_committed", lambda event: event["members"] == everyone)
        peers[1].kill()
        left = [peers[0], *peers[2:]]
        rest = sorted(peer.id for peer in left)
        for peer in left:
            # These three may have been here before the fourth.
            after = peer.wait_for(
                "outer_step_committed",
                lambda event: event["members"] == rest and event["outer_step"] > before["outer_step"],
            )
            peer.wait_for_step(after["outer_step"] + 2)
        for peer in left[1:]:
            known, own = left[0].commits(), peer.commits()
            assert known.keys() & own.keys()
            assert all(known[step] == own[step] for step in known.keys() & own.keys())
            assert not reducers(peer) & {peers[2].id, peers[3].id}, made.story()
            assert not peer.all("strike"), made.story()
