"""Which state a joiner takes, and that it comes whole from many, whoever of them lies or dies."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from virtual_clock import run_virtual

from peers.errors import PeerError, ProtocolViolation
from peers.memory import MemoryNetwork
from runtime.averaging.claims import STATE, Claim, ClaimRequest, Have, ListRequest, PieceRequest, Refuted
from runtime.averaging.download import LEAST_LOOK_S, MOST_LOOK_S, Forgetful, Partial
from runtime.averaging.offers import IDLE_S, Offers, Snapshot, snapshot_of
from runtime.averaging.pacing import Uplink
from runtime.averaging.statesync import CLAIM_PROTOCOL, STATE_PROTOCOL, StateSync
from runtime.partial import PartialState
from runtime.pieces import PieceList
from runtime.state import State

N = 600_000
ANCHOR_P, MOMENTUM_P = torch.arange(N, dtype=torch.float32), torch.arange(N, dtype=torch.float32).flip(0)
PIECES = PieceList.of(ANCHOR_P, MOMENTUM_P)
CLAIM = Claim(7, b"l" * 32, PIECES.digest, 700, ("bob", "cat"))
ALL_BYTES = 8 * N
PIECE_BYTES = ALL_BYTES / len(PIECES.distinct)


def take(snapshot: Snapshot | None) -> Snapshot:
    assert snapshot is not None
    return snapshot


@dataclass
class Place:
    """A network with members that have a state, and who joins them."""

    network: MemoryNetwork
    syncs: dict[str, StateSync] = field(default_factory=dict)
    strikes: list[tuple[str, str]] = field(default_factory=list)

    async def add(
        self,
        peer: str,
        snapshot: Snapshot | None = None,
        claims: dict[int, Claim] | None = None,
        partial: Partial | None = None,
        rate: float = 0.0,
    ) -> StateSync:
        if rate:
            self.network.bytes_per_s[peer] = rate

        async def taken() -> Snapshot:
            return take(snapshot)

        offers = Offers(lambda: snapshot.claim if snapshot else None, taken, lambda step: True)
        known = claims if claims is not None else ({snapshot.claim.outer_step: snapshot.claim} if snapshot else {})
        transport = self.network.transport(peer)
        strike = lambda who, why: self.strikes.append((who, why))  # noqa: E731
        sync = StateSync(transport, N, offers, known, Uplink(), partial or Forgetful(), strike)
        await sync.serve()
        self.syncs[peer] = sync
        return sync

    async def download(
        self,
        joiner: str,
        donor: str,
        witnesses: list[str],
        own: Claim | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> State:
        def linked() -> list[str]:
            return [peer for peer in self.syncs if peer != joiner]

        return await self.syncs[joiner].download(donor, witnesses, own, linked, progress)

    def sent(self, *peers: str) -> list[int]:
        return [self.syncs[peer].bytes_sent for peer in peers]


def place() -> Place:
    return Place(MemoryNetwork(random.Random(0)))


def a_snapshot(claim: Claim = CLAIM) -> Snapshot:
    return snapshot_of(claim, PIECES, ANCHOR_P, MOMENTUM_P)


def is_whole(state: State) -> bool:
    return torch.equal(state.anchor_P, ANCHOR_P) and torch.equal(state.momentum_P, MOMENTUM_P)


def test_a_state_comes_bit_for_bit_from_all_who_offer_it_and_each_gives_its_part() -> None:
    async def main() -> None:
        here = place()
        members = ["ann", "bob", "cat", "dan"]
        for peer in members:
            await here.add(peer, a_snapshot(), rate=1e6)
        await here.add("joiner")
        state = await here.download("joiner", "ann", members)
        assert is_whole(state)
        assert (state.outer_step, state.lineage, state.tokens, state.group) == (7, CLAIM.lineage, 700, CLAIM.group)
        sent = here.sent(*members)
        assert sum(sent) == pytest.approx(ALL_BYTES, rel=0.15)
        assert min(sent) > 0.15 * sum(sent)
        assert not here.strikes

    run_virtual(main())


def test_the_state_that_most_offer_is_taken_if_it_is_further_than_the_joiners() -> None:
    """One member has just taken the next step: its state alone is at one donor only."""

    async def main() -> None:
        here = place()
        for peer in ("ann", "bob"):
            await here.add(peer, a_snapshot())
        ahead_P = ANCHOR_P + 1
        pieces = PieceList.of(ahead_P, MOMENTUM_P)
        ahead = replace(CLAIM, outer_step=8, lineage=b"m" * 32, state=pieces.digest, tokens=800)
        await here.add("cat", snapshot_of(ahead, pieces, ahead_P, MOMENTUM_P), {7: CLAIM, 8: ahead})
        await here.add("joiner")
        assert (await here.download("joiner", "cat", ["ann", "bob", "cat"])).outer_step == 7
        assert (await here.download("joiner", "cat", ["ann", "bob", "cat"], own=CLAIM)).outer_step == 8

    run_virtual(main())


def test_whoever_sends_a_wrong_piece_is_struck_and_the_rest_comes_from_others() -> None:
    async def main() -> None:
        here = place()
        wrong = {digest: memoryview(bytes(len(view))) for digest, view in a_snapshot().by_digest.items()}
        await here.add("liar", replace(a_snapshot(), by_digest=wrong))
        await here.add("bob", a_snapshot())
        await here.add("joiner")
        assert is_whole(await here.download("joiner", "liar", ["liar", "bob"]))
        assert {peer for peer, _ in here.strikes} == {"liar"}
        assert "not the one it was asked for" in here.strikes[0][1]
        assert here.sent("liar")[0] <= 4 * PIECE_BYTES, "it was not asked again"

    run_virtual(main())


def test_a_killed_donor_costs_no_byte_that_was_checked() -> None:
    async def main() -> None:
        here = place()
        for peer in ("ann", "bob"):
            await here.add(peer, a_snapshot(), rate=1e6)
        await here.add("joiner")
        killed = False

        def progress(done_bytes: int, all_bytes: int) -> None:
            nonlocal killed
            if not killed and done_bytes > all_bytes / 2:
                killed = True
                here.network.crash("ann")
                del here.syncs["ann"]

        ann = here.syncs["ann"]
        assert is_whole(await here.download("joiner", "ann", ["ann", "bob"], progress=progress))
        assert killed
        # What was under way from it is all that was sent in vain.
        assert ann.bytes_sent + here.sent("bob")[0] <= ALL_BYTES + 4 * PIECE_BYTES

    run_virtual(main())


def test_a_joiner_that_was_killed_goes_on_from_its_disk(tmp_path: Path) -> None:
    async def main() -> None:
        here = place()
        await here.add("ann", a_snapshot(), rate=1e6)
        await here.add("joiner", partial=PartialState(tmp_path))
        task = asyncio.create_task(here.download("joiner", "ann", ["ann"]))
        while here.sent("ann")[0] < ALL_BYTES / 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        here.network.crash("joiner")
        before = here.sent("ann")[0]
        # One of the files that it wrote last is torn, as a crash of the machine may leave it.
        torn = sorted((tmp_path / "joining").iterdir())[0]
        torn.write_bytes(torn.read_bytes()[:100])
        await here.add("joiner", partial=PartialState(tmp_path))
        assert is_whole(await here.download("joiner", "ann", ["ann"]))
        assert here.sent("ann")[0] - before <= ALL_BYTES - before + 5 * PIECE_BYTES
        assert not (tmp_path / "joining").exists()

    run_virtual(main())


def test_eight_joiners_at_once_serve_each_other() -> None:
    """From four members at least four times as fast as from one that everybody asks for all of it."""
    rate = 1e6

    async def eight() -> float:
        here = place()
        members = [f"member {n}" for n in range(4)]
        for peer in members:
            await here.add(peer, a_snapshot(), rate=rate)
        joiners = [f"joiner {n}" for n in range(8)]
        for peer in joiners:
            await here.add(peer, rate=rate)
        began = here.network.loop.time()
        states = await asyncio.gather(*(here.download(peer, members[0], members) for peer in joiners))
        assert all(is_whole(state) for state in states)
        assert sum(here.sent(*joiners)) > ALL_BYTES
        return here.network.loop.time() - began

    took_s = run_virtual(eight())
    from_one_s = 8 * ALL_BYTES / rate
    assert from_one_s / took_s >= 4.0


@pytest.mark.parametrize(
    ("protocol", "asked"),
    [
        (CLAIM_PROTOCOL, PieceRequest(PIECES.anchor[0])),
        (CLAIM_PROTOCOL, ListRequest(CLAIM.state)),
        (STATE_PROTOCOL, ClaimRequest(7)),
        (STATE_PROTOCOL, Have(b"")),
    ],
)
def test_no_state_goes_where_claims_do_which_no_limit_holds_back(protocol: str, asked: object) -> None:
    async def main() -> None:
        here = place()
        ann = await here.add("ann", a_snapshot())
        stream = await here.network.transport("bob").open("ann", (), protocol)
        await stream.send(STATE.encode(asked))
        with pytest.raises(PeerError):
            await stream.receive(1 << 20)
        assert ann.bytes_sent == 0
        assert [peer for peer, _ in here.strikes] == ["bob"]
        assert "was due" in here.strikes[0][1]

    run_virtual(main())


def test_when_nobody_has_the_rest_the_donor_is_named() -> None:
    async def main() -> None:
        here = place()
        half = dict(list(a_snapshot().by_digest.items())[:20])
        await here.add("ann", replace(a_snapshot(), by_digest=half))
        await here.add("joiner")
        with pytest.raises(PeerError, match="nobody has the") as raised:
            await here.download("joiner", "ann", ["ann"])
        assert raised.value.peer == "ann"

    run_virtual(main())


@pytest.mark.parametrize(("after_s", "looks_s"), [(1.0, LEAST_LOOK_S), (10.0, 10.0), (100.0, MOST_LOOK_S)])
def test_a_donor_that_has_gone_over_to_another_history_is_waited_for_no_longer_than_it_has_served(
    after_s: float, looks_s: float
) -> None:
    async def main() -> None:
        here, loop = place(), asyncio.get_running_loop()
        size = sum(map(len, a_snapshot().by_digest.values()))
        ann = await here.add("ann", a_snapshot(), rate=size / (2 * after_s))
        await here.add("joiner")
        loop.call_later(after_s, ann._offers.only, b"another")
        with pytest.raises(PeerError, match="nobody has the"):
            await here.download("joiner", "ann", ["ann"])
        # What it is sending then is sent to its end.
        assert after_s < loop.time() - looks_s < 1.3 * after_s + 1.0

    run_virtual(main())


def test_a_list_that_does_not_match_the_claim_is_refused() -> None:
    async def main() -> None:
        here = place()
        claim = replace(CLAIM, state=bytes(32))
        await here.add("ann", snapshot_of(claim, PIECES, ANCHOR_P, MOMENTUM_P))
        await here.add("joiner")
        with pytest.raises(PeerError, match="list"):
            await here.download("joiner", "ann", ["ann"])
        assert here.strikes == [("ann", "sent the pieces of a state that is not the one it claims")]

    run_virtual(main())


def confirmed_by(donor_says: Claim, witnesses: dict[str, dict[int, Claim]], own: Claim | None = None) -> State:
    async def main() -> State:
        here = place()
        await here.add("donor", a_snapshot(donor_says))
        for peer, claims in witnesses.items():
            await here.add(peer, None, claims)
        await here.add("joiner")
        return await here.download("joiner", "donor", ["donor", *witnesses], own)

    return run_virtual(main())


def test_a_state_that_all_confirm_is_taken_and_the_only_member_is_believed() -> None:
    assert is_whole(confirmed_by(CLAIM, {"bob": {7: CLAIM}, "cat": {7: CLAIM}}))
    assert is_whole(confirmed_by(CLAIM, {}))


def test_a_donor_that_stands_alone_is_refused() -> None:
    other = replace(CLAIM, lineage=b"x" * 32)
    with pytest.raises(ProtocolViolation, match="confirm"):
        confirmed_by(CLAIM, {"bob": {7: other}, "cat": {7: CLAIM}})


def test_a_donor_at_a_step_that_no_member_knows_of_is_refused() -> None:
    # It may say that it is a thousand steps ahead: nobody can contradict, and nobody confirms it.
    known = {6: replace(CLAIM, outer_step=6, lineage=b"k" * 32), 7: replace(CLAIM, state=bytes(32))}
    with pytest.raises(ProtocolViolation, match="confirm"):
        confirmed_by(replace(CLAIM, outer_step=1007), {"bob": known, "cat": known, "dan": known})


def test_one_snapshot_serves_all_who_come_while_it_can_be_caught_up_from() -> None:
    step, replayable, taken = 7, True, list[int]()

    def present() -> Claim:
        return replace(CLAIM, outer_step=step, tokens=100 * step, state=bytes([step]) * 32)

    async def copy() -> Snapshot:
        claim = present()
        await asyncio.sleep(0.1)
        taken.append(claim.outer_step)
        return a_snapshot(claim)

    async def main() -> None:
        nonlocal step, replayable
        offers = Offers(present, copy, lambda step: replayable)
        # Who asks while it is copied as well.
        first, second = await asyncio.gather(offers.offer(0, 0.0), offers.offer(0, 0.0))
        assert first is second
        step = 9
        assert await offers.offer(0, IDLE_S) is first
        # To whoever has all of that already the present state is offered, and copied once.
        for _ in range(3):
            later = await offers.offer(701, IDLE_S)
            assert later is not None
            assert later.claim.outer_step == 9
        assert taken == [7, 9]
        # Whoever asks for more than there is has none of it copied again.
        assert await offers.offer(1 << 60, IDLE_S) is later
        step, replayable = 20, False
        newest = await offers.offer(0, IDLE_S + 1.0)
        assert newest is not None
        assert newest.claim.outer_step == 20
        assert taken == [7, 9, 20]
        # At most two: the one that nobody has wanted for longest is gone.
        assert offers.list_of(bytes([7]) * 32) is None
        offers.trim(3 * IDLE_S)
        assert offers.piece(PIECES.anchor[0], 0.0) is None

    run_virtual(main())


def test_a_list_in_which_a_short_piece_has_the_name_of_a_long_one_is_none() -> None:
    """The piece would come whole, and not fit one of its places."""
    crafted = PieceList((*PIECES.anchor[:-1], PIECES.anchor[0]), PIECES.momentum)
    assert PIECES.fits(N)
    assert not crafted.fits(N)
    assert not PieceList(PIECES.anchor[:-1], PIECES.momentum).fits(N)

    async def main() -> None:
        here = place()
        claim = replace(CLAIM, state=crafted.digest)
        await here.add("liar", Snapshot(claim, crafted, a_snapshot().by_digest))
        await here.add("joiner")
        with pytest.raises(PeerError, match="list"):
            await here.download("joiner", "liar", ["liar"])
        assert {peer for peer, _ in here.strikes} == {"liar"}

    run_virtual(main())


def test_a_donor_that_says_it_is_ahead_and_offers_nothing_keeps_nobody_out() -> None:
    async def main() -> None:
        here = place()
        await here.add("silent", None)
        for peer in ("ann", "bob"):
            await here.add(peer, a_snapshot())
        await here.add("joiner")
        assert is_whole(await here.download("joiner", "silent", ["silent", "ann", "bob"]))
        with pytest.raises(Refuted):
            await here.download("joiner", "silent", ["silent", "ann", "bob"], own=CLAIM)

    run_virtual(main())
