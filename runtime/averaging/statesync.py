"""Downloading a run's state: from one member, and checked against what the others have committed."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from peers.errors import PeerError, ProtocolViolation, StreamClosed
from peers.transport import Stream, Transport
from peers.wire import Codec, Digest, Length, PeerId
from runtime.averaging.messages import MAX_MEMBERS
from runtime.averaging.pacing import Uplink, receive_payload, send_payload
from runtime.averaging.payload import Payload

STATE_PROTOCOL = "atoll-state-1"
# A claim names the last group: up to 256 peer ids.
MAX_HEADER_BYTES = 1 << 15
CLAIM_TIMEOUT_S = 5.0
# A witness may have a step a moment later than the donor.
ASK_AGAIN_S, MOST_ASKS = 0.3, 4


@dataclass(frozen=True)
class State:
    """Anchor and outer momentum, float32 (P,) on the CPU, at the start of ``outer_step``."""

    outer_step: int
    lineage: bytes
    tokens: int
    """Committed by the lineage so far."""
    group: tuple[str, ...]
    """Whose contributions are in the last committed step, sorted."""
    anchor_P: Tensor
    momentum_P: Tensor
    lost_P: Tensor | None = None
    """Of this peer's contributions, what the codec lost and the next one makes up for; nobody else's business."""

    @property
    def position(self) -> tuple[int, int, bytes]:
        """As of a ``Status``."""
        return self.tokens, self.outer_step, self.lineage


@dataclass(frozen=True)
class ClaimRequest:
    """What do you say that the state of this outer step is?"""

    outer_step: int


@dataclass(frozen=True)
class StateRequest:
    """Send me the state that you are at."""


@dataclass(frozen=True)
class Claim:
    outer_step: int
    lineage: Digest
    state: Digest
    """SHA-256 of the anchor's bytes, then the momentum's, little-endian float32."""
    tokens: int
    group: Annotated[tuple[PeerId, ...], Length(0, MAX_MEMBERS)]

    @property
    def position(self) -> tuple[int, int, bytes]:
        """As of a ``Status``."""
        return self.tokens, self.outer_step, self.lineage


class Refuted(ProtocolViolation):
    """More of the others contradict a donor than confirm it."""


STATE = Codec(ClaimRequest, StateRequest, Claim)


class StateSync:
    """Serves this peer's state, and gets another's.

    Args:
        snapshot: the claim for the present state, and its anchor and momentum as float32 vectors that are not written
            to any more; None while there is none.
        claims: the claims of this peer for the last outer steps, by outer step.
    """

    def __init__(
        self,
        transport: Transport,
        n_elements: int,
        snapshot: Callable[[], tuple[Claim, Tensor, Tensor] | None],
        claims: Callable[[], dict[int, Claim]],
        strike: Callable[[str, str], None],
    ) -> None:
        self.bytes_sent = 0
        self.serving = 0
        """Downloads of this peer's state that are under way."""
        self._transport, self._n_elements = transport, n_elements
        self._snapshot, self._claims, self._strike = snapshot, claims, strike

    def _count(self, n_bytes: int) -> None:
        self.bytes_sent += n_bytes

    async def serve(self) -> None:
        await self._transport.serve(STATE_PROTOCOL, self._on_request)

    async def download(
        self, donor: str, witnesses: Sequence[str], own: Claim | None, progress: Callable[[int, int], None]
    ) -> State:
        """The donor's present state, once more than half of the other witnesses that know its step confirm its claim.

        Where this peer has a state of the run itself, and that is on a fork, only witnesses count that are as heavy.

        Args: progress is called with bytes done and bytes in all.
        Raises: PeerError blaming the donor, if it is gone, or sends what does not match its claim; Refuted.
        """
        stream = await self._transport.open(donor, (), STATE_PROTOCOL)
        try:
            await stream.send(STATE.encode(StateRequest()))
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                claim = await self._claim(stream)
            await self._confirm(donor, claim, witnesses, own)
            anchor = await self._vector(stream, 0, progress)
            momentum = await self._vector(stream, len(anchor), progress)
        except TimeoutError:
            raise StreamClosed(donor, "no answer") from None
        finally:
            stream.close()
        digest = hashlib.sha256(anchor)
        digest.update(momentum)
        if digest.digest() != claim.state:
            raise ProtocolViolation(donor, "sent a state that is not the one it claims")
        anchor_P, momentum_P = (torch.frombuffer(view, dtype=torch.float32) for view in (anchor, momentum))
        return State(claim.outer_step, claim.lineage, claim.tokens, claim.group, anchor_P, momentum_P)

    async def _claim(self, stream: Stream) -> Claim:
        claim = STATE.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
        if not isinstance(claim, Claim):
            raise ProtocolViolation(stream.peer, "a claim was due")
        return claim

    async def _vector(self, stream: Stream, done_bytes: int, progress: Callable[[int, int], None]) -> memoryview:
        vector = Payload(4 * self._n_elements)
        await receive_payload(stream, vector, lambda: progress(done_bytes + vector.n_ready, 8 * self._n_elements))
        return vector.view

    async def _confirm(self, donor: str, claim: Claim, witnesses: Sequence[str], own: Claim | None) -> None:
        others = [peer for peer in witnesses if peer != donor]
        heard: list[Claim] = []
        for _ in range(MOST_ASKS):
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self.ask(peer, claim.outer_step)) for peer in others]
            heard = [known for task in asked if (known := task.result()) is not None]
            # With others there, one of them has to know the step: a donor alone could be anywhere.
            if heard or not others:
                break
            await asyncio.sleep(ASK_AGAIN_S)
        agreeing = sum(other == claim for other in heard)
        if own is not None and own.tokens:
            heard = [other for other in heard if other == claim or other.position >= claim.position]
            if agreeing == len(heard):
                return
        if others and 2 * agreeing <= len(heard):
            reason = f"only {agreeing} of {len(heard)} others confirm its state of outer step {claim.outer_step}"
            raise Refuted(donor, reason)

    async def ask(self, peer: str, outer_step: int) -> Claim | None:
        """What a peer says that the state of an outer step is, None if it does not know or is gone."""
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                stream = await self._transport.open(peer, (), STATE_PROTOCOL)
                try:
                    await stream.send(STATE.encode(ClaimRequest(outer_step)))
                    return await self._claim(stream)
                finally:
                    stream.close()
        except (PeerError, TimeoutError):
            return None

    async def _on_request(self, stream: Stream) -> None:
        try:
            request = STATE.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
            if isinstance(request, ClaimRequest):
                known = self._claims().get(request.outer_step)
                if known is None:
                    return
                await stream.send(STATE.encode(known))
            elif isinstance(request, StateRequest):
                snapshot = self._snapshot()
                if snapshot is None:
                    return
                claim, anchor_P, momentum_P = snapshot
                await stream.send(STATE.encode(claim))
                self.serving += 1
                uplink = Uplink()
                try:
                    for vector_P in (anchor_P, momentum_P):
                        payload = Payload.of(vector_P.numpy().data.cast("B"))
                        await send_payload(stream, payload, uplink, count=self._count)
                finally:
                    self.serving -= 1
            else:
                raise ProtocolViolation(stream.peer, "a request was due")
            if isinstance(request, ClaimRequest):
                await stream.receive(1)
        except ProtocolViolation as error:
            self._strike(error.peer, error.reason)
        except StreamClosed:
            return
