"""One Round machine in a situation made by hand."""

from dataclasses import replace

from round_table import N_ELEMENTS, ROOT, RUN_ID, begun, sha, weight_of

from peers.election import leadership_order
from peers.membership import Up
from peers.messages import Role, Status
from runtime.averaging import events
from runtime.averaging.messages import Descriptor, Ready
from runtime.averaging.plan import fresh_descriptor
from runtime.averaging.round import Round

PEERS = ["peer-a", "peer-b", "peer-c", "peer-d", "peer-e"]
NOW = 50.0
MEMBER = Status(Role.MEMBER, 0, ROOT, 0)


def ready_of(peer: str, attempt: int = 0, **changes: object) -> Ready:
    ready = Ready(0, attempt, ROOT, sha(ROOT), weight_of(peer), 2.0, None, None)
    return replace(ready, **changes)  # type: ignore[arg-type]


def plan_of(leader: str, peers: list[str], attempt: int = 0, **changes: object) -> Descriptor:
    readies = {peer: ready_of(peer) for peer in peers}
    fresh = fresh_descriptor(RUN_ID, 0, attempt, leader, readies, N_ELEMENTS, "int8")
    return replace(fresh, **changes)  # type: ignore[arg-type]


def seated(own: str, others: list[str], quorum: int = 1, ready: bool = True) -> Round:
    machine = Round(own, RUN_ID, N_ELEMENTS, "int8", quorum)
    machine.handle(begun(), NOW)
    for other in others:
        machine.handle(Up(other, MEMBER), NOW)
    if ready:
        machine.handle(events.ContributionReady(0, weight_of(own), 2.0), NOW)
    return machine


def order(peers: list[str], attempt: int = 0) -> list[str]:
    return leadership_order(RUN_ID, 0, attempt, peers)


def says(machine: Round, sender: str, message: events.Message, now: float = NOW) -> list[events.Action]:
    actions = machine.handle(events.MessageFrom(sender, message), now)
    machine.validate()
    return actions


def kinds(actions: list[events.Action]) -> set[type]:
    return {type(action) for action in actions}


def assert_never_spins(machine: Round, until: float) -> None:
    now = NOW
    while (deadline := machine.next_deadline()) is not None and deadline < until:
        now = max(now, deadline)
        actions = machine.handle(events.Tick(), now)
        machine.validate()
        later = machine.next_deadline()
        assert actions or later is None or later > now, f"spins at {now - NOW:.2f} s"
