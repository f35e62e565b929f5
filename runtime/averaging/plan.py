"""What a leader decides, as plain functions: a plan, who reduces what of it, and when its result stands."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median_low

from peers.election import leadership_order
from runtime.averaging.codecs.base import BLOCK
from runtime.averaging.messages import MAX_MEMBERS, Descriptor, MemberEntry, Ready
from runtime.averaging.shards import FAST_BYTES_PER_S, Link, shard_bounds, shard_parts

# 50 Mbit/s: what a link is taken for while most are not known.
USUAL_BYTES_PER_S = 6.25e6
# What a round measures of a link is good to a fifth or so. Links that differ by less from the usual one are taken to be
# like it: cut by such differences, the shards of equal links have been 3.5 to 7.4 of 20 million elements.
ALIKE = 1.25


def fresh_descriptor(
    run_id: str,
    outer_step: int,
    attempt: int,
    leader: str,
    readies: Mapping[str, Ready],
    n_elements: int,
    codec: str,
    electorate: Collection[str] = (),
) -> Descriptor:
    """A new plan for those that are ready: every member reduces what its link is good for, as far as there are blocks.

    Of more than fit a descriptor, other ones are left out in each step; their work is in their next contribution.
    Where an ``electorate`` is given, its members alone vote, and more than half of all of it decides.
    """
    chosen = leadership_order(run_id, outer_step, attempt, readies)[:MAX_MEMBERS]
    members = tuple(
        MemberEntry(peer, ready.weight, ready.loss, ready.trains, ready.figures)
        for peer, ready in sorted((peer, readies[peer]) for peer in chosen)
    )
    some = readies[chosen[0]]
    parts = shard_parts(_links([readies[entry.peer] for entry in members]))
    bounds, reducers = shard_bounds(n_elements, parts, BLOCK)
    n_shards = len(reducers)
    voters, electors = _voters([entry.peer for entry in members], range(len(members)), electorate)
    return Descriptor(
        run_id=run_id,
        outer_step=outer_step,
        lineage=some.lineage,
        state=some.state,
        attempt=attempt,
        revision=0,
        leader=leader,
        members=members,
        bounds=bounds,
        codec=codec,
        reducers=reducers,
        settled=(b"",) * n_shards,
        voters=voters,
        electors=electors,
    )


def slowest_link(readies: Iterable[Ready]) -> int:
    """Bytes a second, 0 while nothing is known of one of them."""
    return min((min(ready.up or ready.down, ready.down or ready.up) for ready in readies), default=0)


def _links(readies: Sequence[Ready]) -> list[Link]:
    """A way of a link of which nothing is known is taken to be as the other, a link for a usual one.

    Where nothing is known of most, their rounds are too small to tell, and what is known of one is no measure of them.
    """
    rates = [(ready.up or ready.down, ready.down or ready.up) for ready in readies]
    known = [min(rate) for rate in rates if rate[0]]
    usual = float(median_low(known)) if 2 * len(known) >= len(readies) else USUAL_BYTES_PER_S

    def like(rate: float) -> float:
        alike = not rate or usual / ALIKE <= rate <= usual * ALIKE
        return min(usual if alike else rate, FAST_BYTES_PER_S)

    return [
        Link(like(up), like(down), ready.trains, ready.dialable)
        for (up, down), ready in zip(rates, readies, strict=True)
    ]


def next_descriptor(
    readies: Mapping[str, Ready],
    run_id: str,
    outer_step: int,
    attempt: int,
    leader: str,
    n_elements: int,
    codec: str,
    quorum: int,
    electorate: Collection[str] = (),
) -> Descriptor:
    """How a new leader goes on from what the others have seen.

    A result that one of them has accepted may have been committed by a leader that died: it is taken over as it is.
    Else the last plan goes on if enough of its members are here: shards of which someone holds a result are settled,
    and only what was lost is sent again. Else, and at the first attempt, there is a new plan.
    """
    accepted = [ready.accepted for ready in readies.values() if ready.accepted]
    if accepted:
        best = max(accepted, key=lambda one: (one.descriptor.order, one.digests))
        return resumed_descriptor(best.descriptor, attempt, leader, readies, best.digests, electorate)
    seen = [ready.following for ready in readies.values() if ready.following]
    if seen:
        last = max(seen, key=lambda descriptor: (descriptor.order, descriptor.plan_id))
        # Who was started anew since has another contribution than the plan has of it.
        here = [
            one.peer
            for one in last.members
            if one.peer in readies and (readies[one.peer].weight, readies[one.peer].trains) == (one.weight, one.trains)
        ]
        if sum(readies[peer].trains for peer in here) >= quorum and 2 * len(here) > len(last.members):
            resumed = resumed_descriptor(last, attempt, leader, here, _held_digests(last, readies), electorate)
            if decidable(resumed):
                return resumed
    return fresh_descriptor(run_id, outer_step, attempt, leader, readies, n_elements, codec, electorate)


def resumed_descriptor(
    last: Descriptor,
    attempt: int,
    leader: str,
    present: Collection[str],
    settled: tuple[bytes, ...],
    electorate: Collection[str] = (),
) -> Descriptor:
    """The same plan under a new leader, among those of its members that are present."""
    here = [index for index, peer in enumerate(last.peers) if peer in present]
    voters, electors = _voters(last.peers, here, electorate)
    return replace(
        last,
        attempt=attempt,
        revision=0,
        leader=leader,
        settled=settled,
        reducers=tuple(_heir(reducer, here, len(last.members)) for reducer in last.reducers),
        voters=voters,
        electors=electors,
    )


def _voters(peers: Sequence[str], present: Collection[int], electorate: Collection[str]) -> tuple[tuple[int, ...], int]:
    """Indices of those who vote, and of how many they have to be more than half."""
    if not electorate:
        return tuple(present), len(present)
    return tuple(index for index in present if peers[index] in electorate), len(electorate)


def reassigned_descriptor(
    last: Descriptor, alive: Collection[str], held: Mapping[str, Mapping[int, bytes]]
) -> Descriptor | None:
    """The next revision if a shard's reducer is gone and not everyone alive holds its result; None if nothing changes.

    ``held`` tells which results each voter holds under ``last``. A result that anyone alive holds is settled and only
    fetched; else the shard goes to the next member in the order that reduces already: others may not for a reason.
    """
    here = [index for index, peer in enumerate(last.peers) if peer in alive]
    able = [index for index in here if index in last.reducers] or here
    reducers, settled = list(last.reducers), list(last.settled)
    for shard, reducer in enumerate(last.reducers):
        if reducer in here or settled[shard]:
            continue
        digests = [held[last.peers[index]][shard] for index in here if shard in held.get(last.peers[index], {})]
        if len(digests) == len(here):
            continue
        if digests:
            settled[shard] = _most_held(digests)
        else:
            reducers[shard] = _heir(reducer, able, len(last.members))
    if (tuple(reducers), tuple(settled)) == (last.reducers, last.settled):
        return None
    return replace(last, revision=last.revision + 1, reducers=tuple(reducers), settled=tuple(settled))


def decidable(descriptor: Descriptor) -> bool:
    """Whether its voters are enough to commit."""
    return 2 * len(descriptor.voters) > descriptor.electors


def decided_digests(descriptor: Descriptor, held: Mapping[str, Mapping[int, bytes]]) -> tuple[bytes, ...] | None:
    """The results that more than half of the voters hold, all shards and all equal; None while there are none."""
    complete = Counter(
        tuple(shards[shard] for shard in range(descriptor.n_shards))
        for index in descriptor.voters
        if len(shards := held.get(descriptor.peers[index], {})) == descriptor.n_shards
    )
    for digests, count in complete.items():
        if 2 * count > descriptor.electors:
            return digests
    return None


def _held_digests(last: Descriptor, readies: Mapping[str, Ready]) -> tuple[bytes, ...]:
    """For each shard a result that someone present holds under this plan, or nothing."""
    of_plan = [ready.held for ready in readies.values() if ready.following and ready.following.plan_id == last.plan_id]
    return tuple(
        _most_held([held[shard] for held in of_plan if len(held) > shard and held[shard]])
        for shard in range(last.n_shards)
    )


def _most_held(digests: list[bytes]) -> bytes:
    """The digest that most say they hold, the lowest among equals. Empty if none."""
    counts = Counter(digests)
    return min(counts, key=lambda digest: (-counts[digest], digest), default=b"")


def _heir(reducer: int, here: list[int], n_members: int) -> int:
    """The reducer itself if present, else the next present member after it in the circle."""
    if not here or reducer in here:
        return reducer
    return min(here, key=lambda index: (index - reducer) % n_members)
