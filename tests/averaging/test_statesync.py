import asyncio
import hashlib
import random
from dataclasses import replace

import pytest
import torch

from peers.errors import ProtocolViolation
from peers.memory import MemoryNetwork
from runtime.averaging.statesync import Claim, State, StateSync

N = 600_000
ANCHOR_P, MOMENTUM_P = torch.arange(N, dtype=torch.float32), torch.ones(N)
DIGEST = hashlib.sha256(ANCHOR_P.numpy().tobytes() + MOMENTUM_P.numpy().tobytes()).digest()
CLAIM = Claim(7, b"l" * 32, DIGEST, 700, ("bob", "cat"))


def download(donor_says: Claim, witnesses: dict[str, dict[int, Claim]], own: Claim | None = None) -> State:
    """What a joiner gets from a donor with ANCHOR_P and MOMENTUM_P, beside these witnesses."""

    async def main() -> State:
        network = MemoryNetwork(random.Random(0), 0.0, 0.0)

        async def serve(peer: str, snapshot: bool, claims: dict[int, Claim]) -> StateSync:
            state = (donor_says, ANCHOR_P, MOMENTUM_P) if snapshot else None
            sync = StateSync(network.transport(peer), N, lambda: state, lambda: claims, lambda who, why: None)
            await sync.serve()
            return sync

        await serve("donor", True, {donor_says.outer_step: donor_says})
        for peer, claims in witnesses.items():
            await serve(peer, False, claims)
        joiner = await serve("joiner", False, {})
        return await joiner.download("donor", ["donor", *witnesses], own, lambda done, total: None)

    return asyncio.run(main())


def test_a_state_that_all_confirm_arrives_bit_for_bit() -> None:
    state = download(CLAIM, {"bob": {7: CLAIM}, "cat": {7: CLAIM}})
    assert (state.outer_step, state.lineage) == (7, CLAIM.lineage)
    assert torch.equal(state.anchor_P, ANCHOR_P)
    assert torch.equal(state.momentum_P, MOMENTUM_P)


def test_the_only_member_is_believed() -> None:
    assert download(CLAIM, {}).outer_step == 7


def test_a_state_that_does_not_match_its_claim_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="not the one it claims"):
        download(replace(CLAIM, state=bytes(32)), {})


def test_a_donor_that_stands_alone_is_refused() -> None:
    other = replace(CLAIM, lineage=b"x" * 32)
    with pytest.raises(ProtocolViolation, match="confirm"):
        download(CLAIM, {"bob": {7: other}, "cat": {7: CLAIM}})


def test_a_donor_at_a_step_that_no_member_knows_of_is_refused() -> None:
    # It may say that it is a thousand steps ahead: nobody can contradict, and nobody confirms it.
    known = {6: replace(CLAIM, outer_step=6, lineage=b"k" * 32), 7: replace(CLAIM, state=bytes(32))}
    with pytest.raises(ProtocolViolation, match="confirm"):
        download(replace(CLAIM, outer_step=1007), {"bob": known, "cat": known, "dan": known})
