"""A run's state: getting one, which one, checked against what the others have committed, from whom; and serving it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence

from peers.errors import PeerError, ProtocolViolation, StreamClosed
from peers.transport import Stream, Transport
from runtime.averaging.claims import (
    STATE,
    Claim,
    ClaimRequest,
    Have,
    HaveRequest,
    ListRequest,
    OfferRequest,
    PieceRequest,
    Refuted,
)
from runtime.averaging.download import Download, Partial
from runtime.averaging.offers import Offers, snapshot_of
from runtime.averaging.pacing import Rank, Stage, Uplink, receive_payload, send_payload
from runtime.averaging.payload import Payload
from runtime.pieces import PieceList, n_pieces
from runtime.state import State

STATE_PROTOCOL = "atoll-state-2"
# What peers say of their states: small, and neither held up by bulk, nor kept within limits and off relays.
CLAIM_PROTOCOL = "atoll-claim-1"
# A claim names the last group: up to 256 peer ids.
MAX_HEADER_BYTES = 1 << 15
CLAIM_TIMEOUT_S = 5.0
# A witness may have a step a moment later than the donor.
ASK_AGAIN_S, MOST_ASKS = 0.3, 4
# Whoever fetches a state asks again within this.
FETCHING_S = 3.0
# A piece, 512 KiB at most, has so long to get there; while it is on its way its state is in memory.
PIECE_S = 300.0


class StateSync:
    """Serves this peer's state, and gets another's.

    Args:
        offers: what this peer has of the run's state for others.
        claims: the claims of this peer for the last outer steps, by outer step.
        uplink: what the rounds send by as well.
        partial: keeps the pieces of a download that is interrupted.
        came: called with the bytes of each frame of a state that comes.
    """

    def __init__(
        self,
        transport: Transport,
        n_elements: int,
        offers: Offers,
        claims: Mapping[int, Claim],
        uplink: Uplink,
        partial: Partial,
        strike: Callable[[str, str], None],
        came: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self.bytes_sent = 0
        self.received_bytes = 0
        """Of the state that is being fetched, or was last."""
        self._transport, self._n_elements, self._offers = transport, n_elements, offers
        self._claims, self._uplink, self._partial, self._strike = claims, uplink, partial, strike
        self._came = came
        self._fetching: PieceList | None = None

    @property
    def serving(self) -> bool:
        """Whether somebody is fetching this peer's state."""
        return self._offers.used_since(asyncio.get_running_loop().time() - FETCHING_S)

    def _count(self, n_bytes: int) -> None:
        self.bytes_sent += n_bytes

    async def serve(self) -> None:
        await self._transport.serve(STATE_PROTOCOL, self._on_state)
        await self._transport.serve(CLAIM_PROTOCOL, self._on_claim)

    # Getting a state.

    async def download(
        self,
        donor: str,
        witnesses: Sequence[str],
        own: Claim | None,
        linked: Callable[[], Sequence[str]],
        progress: Callable[[int, int], None],
    ) -> State:
        """A state that is further than ``own``, once more than half of the witnesses that know its step confirm it.

        Of those that the donor and the witnesses offer it is the one that most of them do. Where this peer has a state
        of the run itself, and that is on a fork, only witnesses count that are as heavy.

        Args:
            linked: everyone who is there.
            progress: called with bytes done and bytes in all.
        Raises: PeerError blaming the donor, if nobody has it any more, or what is offered does not hold; Refuted.
        """
        peers = list(dict.fromkeys((donor, *witnesses)))
        offers = await self._ask_all(peers, OfferRequest(own.tokens + 1 if own and own.tokens else 0))
        # Who has no step of the run takes any state of it: its first weights may be another build's, and are nobody's.
        least = own.position if own and own.tokens else (-1, 0, b"")
        further = {peer: claim for peer, claim in offers.items() if claim.position > least}
        if not further:
            # If others answer, it is not the network.
            error = Refuted if offers and donor not in offers else StreamClosed
            raise error(donor, "offers no state that is further than this peer's")
        n_offers = Counter(further.values())
        claim = max(n_offers, key=lambda one: (n_offers[one], one == further.get(donor), one.position))
        offering = [peer for peer, offered in further.items() if offered == claim]
        await self._confirm(offering[0], claim, peers, own)
        pieces = await self._list(offering, claim)
        self._offers.fetched.clear()
        self._fetching = pieces
        sources = _Sources(self, claim.state, pieces, offering, linked)
        have = self._offers.fetched
        salt = self._transport.peer
        self.received_bytes = 0
        fetch = Download(pieces, self._n_elements, salt, sources, self._partial, have, self._strike, progress)
        try:
            anchor_P, momentum_P = await fetch.run()
        except StreamClosed as error:
            raise StreamClosed(offering[0], error.reason) from None
        finally:
            self._fetching = None
            have.clear()
        # Others may be fetching it still.
        self._offers.add(snapshot_of(claim, pieces, anchor_P, momentum_P), asyncio.get_running_loop().time())
        return State(claim.outer_step, claim.lineage, claim.tokens, claim.group, anchor_P, momentum_P)

    async def _list(self, offering: Sequence[str], claim: Claim) -> PieceList:
        """The digests of the state's pieces, from the first who has the right ones."""
        for peer in offering:
            payload = Payload(2 * 32 * n_pieces(self._n_elements))
            try:
                await self.fetch(peer, ListRequest(claim.state), payload)
                pieces = PieceList.parse(payload.view)
                if pieces.digest == claim.state and pieces.fits(self._n_elements):
                    return pieces
                self._strike(peer, "sent the pieces of a state that is not the one it claims")
            except ProtocolViolation as error:
                self._strike(error.peer, error.reason)
            except (PeerError, TimeoutError):
                continue
        raise StreamClosed(offering[0], "nobody has the list of the state's pieces")

    async def fetch(self, peer: str, request: ListRequest | PieceRequest, into: Payload) -> None:
        """Raises: PeerError, also if the peer does not have it."""
        stream = await self._transport.open(peer, (), STATE_PROTOCOL)
        try:
            await stream.send(STATE.encode(request))
            await receive_payload(stream, into, count=self._received)
        finally:
            stream.close()

    def _received(self, n_bytes: int) -> None:
        self.received_bytes += n_bytes
        self._came(n_bytes)

    async def haves(self, peer: str, state: bytes) -> bytes:
        """The bits of ``Have``. Raises: PeerError, TimeoutError."""
        answer = await self._exchange(peer, HaveRequest(state))
        if not isinstance(answer, Have):
            raise ProtocolViolation(peer, "what it has was due")
        return answer.bits

    async def _confirm(self, donor: str, claim: Claim, witnesses: Sequence[str], own: Claim | None) -> None:
        others = [peer for peer in witnesses if peer != donor]
        heard: list[Claim] = []
        for _ in range(MOST_ASKS):
            heard = list((await self._ask_all(others, ClaimRequest(claim.outer_step))).values())
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

    async def _ask_all(self, peers: Sequence[str], request: ClaimRequest | OfferRequest) -> dict[str, Claim]:
        """What each says; those that do not know or are gone are left out."""
        async with asyncio.TaskGroup() as tasks:
            asked = {peer: tasks.create_task(self._ask(peer, request)) for peer in peers}
        return {peer: known for peer, task in asked.items() if (known := task.result()) is not None}

    async def past(self, peers: Sequence[str], outer_step: int) -> list[Claim]:
        """What these say that the state of an outer step is, those that do not know or are gone left out."""
        return list((await self._ask_all(list(dict.fromkeys(peers)), ClaimRequest(outer_step))).values())

    async def _ask(self, peer: str, request: ClaimRequest | OfferRequest) -> Claim | None:
        try:
            answer = await self._exchange(peer, request)
        except (PeerError, TimeoutError):
            return None
        return answer if isinstance(answer, Claim) else None

    async def _exchange(self, peer: str, request: object) -> object:
        async with asyncio.timeout(CLAIM_TIMEOUT_S):
            stream = await self._transport.open(peer, (), CLAIM_PROTOCOL)
            try:
                await stream.send(STATE.encode(request))
                return STATE.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
            finally:
                stream.close()

    # Serving.

    async def _on_state(self, stream: Stream) -> None:
        await self._on_request(stream, self._give)

    async def _on_claim(self, stream: Stream) -> None:
        await self._on_request(stream, self._tell)

    async def _on_request(self, stream: Stream, answer: Callable[[Stream, object], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                request = STATE.decode(await stream.receive(MAX_HEADER_BYTES), stream.peer)
            await answer(stream, request)
        except ProtocolViolation as error:
            self._strike(error.peer, error.reason)
        except (StreamClosed, TimeoutError):
            return

    async def _give(self, stream: Stream, request: object) -> None:
        match request:
            case ListRequest(state):
                pieces = self._offers.list_of(state)
                await self._send(stream, bytes(pieces) if pieces else None)
            case PieceRequest(digest):
                await self._send(stream, self._offers.piece(digest, asyncio.get_running_loop().time()))
            case _:
                raise ProtocolViolation(stream.peer, "a request for a part of a state was due")

    async def _tell(self, stream: Stream, request: object) -> None:
        match request:
            case ClaimRequest(outer_step):
                await self._say(stream, self._claims.get(outer_step))
            case OfferRequest(least_tokens) if (present := self._offers.present()) and present.tokens < least_tokens:
                # Of no use to who asks, and not worth a copy.
                await self._say(stream, present)
            case OfferRequest(least_tokens):
                snapshot = await self._offers.offer(least_tokens, asyncio.get_running_loop().time())
                await self._say(stream, snapshot.claim if snapshot else None)
            case HaveRequest(state):
                await self._say(stream, self._have(state))
            case _:
                raise ProtocolViolation(stream.peer, "a question about a state was due")

    def _have(self, state: bytes) -> Have | None:
        pieces = self._fetching
        if pieces is None or pieces.digest != state:
            pieces = self._offers.list_of(state)
            return Have(_bits(pieces, frozenset(pieces.distinct))) if pieces else None
        return Have(_bits(pieces, self._offers.fetched))

    async def _say(self, stream: Stream, answer: Claim | Have | None) -> None:
        if answer is not None:
            await stream.send(STATE.encode(answer))
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                await stream.receive(1)

    async def _send(self, stream: Stream, data: memoryview | bytes | None) -> None:
        if data is not None:
            async with asyncio.timeout(PIECE_S):
                await send_payload(
                    stream, Payload.of(memoryview(data)), self._uplink, Rank(Stage.BACKGROUND), count=self._count
                )


class _Sources:
    """Where the pieces of one state come from."""

    def __init__(
        self,
        sync: StateSync,
        state: bytes,
        pieces: PieceList,
        offering: Sequence[str],
        linked: Callable[[], Sequence[str]],
    ) -> None:
        self._sync, self._state, self._pieces = sync, state, pieces
        self._offering, self._linked = offering, linked

    def members(self) -> list[str]:
        linked = self._linked()
        return [peer for peer in self._offering if peer in linked]

    def joiners(self) -> list[str]:
        return [peer for peer in self._linked() if peer not in self._offering]

    async def haves(self, joiner: str) -> frozenset[int]:
        bits = int.from_bytes(await self._sync.haves(joiner, self._state), "little")
        return frozenset(index for index in range(len(self._pieces.distinct)) if bits >> index & 1)

    def fetch(self, source: str, digest: bytes, into: Payload) -> Awaitable[None]:
        return self._sync.fetch(source, PieceRequest(digest), into)


def _bits(pieces: PieceList, have: Container[bytes]) -> bytes:
    bits = sum(1 << index for index, digest in enumerate(pieces.distinct) if digest in have)
    return bits.to_bytes(-(-len(pieces.distinct) // 8), "little")
