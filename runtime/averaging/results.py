"""What a peer holds of a round in bytes: contributions to what it reduces, results, and the last committed results."""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from peers.errors import ProtocolViolation
from runtime.averaging.buffers import BUFFERS
from runtime.averaging.codecs.base import CHUNK, Codec, chunk_range, decode_vector, vector_bytes
from runtime.averaging.codecs.registry import codec_named
from runtime.averaging.messages import Commit, Descriptor
from runtime.averaging.payload import OwnShare, Payload
from runtime.averaging.reduce import HEADER_BYTES, Reduction, read_header, result_bytes
from runtime.averaging.transfer import Kind

# Committed results are kept for those who come later, one byte a parameter and step: so many steps, as long as all
# together do not take more than this.
LEAST_KEPT, MOST_KEPT, KEPT_BYTES = 4, 16, 512 << 20


class Share(Payload):
    """A member's contribution to a shard, checked chunk by chunk as it comes."""

    def __init__(self, codec: Codec, n_elements: int) -> None:
        super().__init__(vector_bytes(codec, n_elements))
        self._codec, self._n_elements, self._start = codec, n_elements, 0

    def grow(self, n_ready: int) -> None:
        while self._start < self._n_elements:
            stop = min(self._start + CHUNK, self._n_elements)
            where = chunk_range(self._codec, self._start, stop)
            if n_ready < where.stop:
                break
            self._codec.check(self.view[where], stop - self._start)
            self._start = stop
        super().grow(n_ready)


class Result(Payload):
    """A shard's result, checked, hashed and decoded chunk by chunk as it comes.

    Args:
        quorum: the fewest contributors that it may have.
        out_P: float32 (P,) to decode to, None if that memory is another's.
    """

    def __init__(self, codec: Codec, n_elements: int, n_members: int, quorum: int, out_P: Tensor | None) -> None:
        super().__init__(result_bytes(codec, n_elements))
        self.contributors: tuple[int, ...] = ()
        self._codec, self._n_elements, self._n_members, self._quorum = codec, n_elements, n_members, quorum
        self._out_P, self._start = out_P, 0
        self._hash = hashlib.sha256(b"atoll shard result")

    def grow(self, n_ready: int) -> None:
        if not self.contributors and n_ready >= HEADER_BYTES:
            self.contributors = read_header(self.view[:HEADER_BYTES], self._n_members)
            if len(self.contributors) < self._quorum:
                raise ValueError(f"{len(self.contributors)} contributors where the quorum is {self._quorum}")
        self._hash.update(self.view[self.n_ready : n_ready])
        while self._start < self._n_elements:
            stop = min(self._start + CHUNK, self._n_elements)
            where = chunk_range(self._codec, self._start, stop)
            if n_ready < HEADER_BYTES + where.stop:
                break
            chunk = self.view[HEADER_BYTES + where.start : HEADER_BYTES + where.stop]
            self._codec.check(chunk, stop - self._start)
            if self._out_P is not None and not self.dropped:
                self._codec.decode(chunk, self._out_P[self._start : stop])
            self._start = stop
        super().grow(n_ready)

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it: the name under which a result is committed and fetched."""
        assert self.complete
        return self._hash.digest()

    def decode(self) -> Tensor:
        """The mean, float32 (P,)."""
        return decode_vector(self._codec, self.view[HEADER_BYTES:], self._n_elements)


class Results:
    """The buffers of one peer. Nothing in here decides anything.

    ``own_P`` is the peer's contribution, float32 (P,), None while it is training.
    """

    def __init__(self, peer: str, quorum: int) -> None:
        self.own_P: Tensor | None = None
        self.generation = 0
        """Grows whenever shares and results are dropped: what was said of them before is then void."""
        self._peer, self._quorum = peer, quorum
        self._descriptor: Descriptor | None = None
        self._shares: dict[int, dict[int, Payload]] = {}
        self._own: dict[int, OwnShare] = {}
        self._reductions: dict[int, tuple[Reduction, Result]] = {}
        self._results: dict[int, dict[bytes, Result]] = {}
        self._makers: set[tuple[int, str]] = set()
        self._decoding: dict[int, Result] = {}
        """By shard, whose decoded mean is in ``_mean_P``."""
        self._mean_P = torch.empty(0)
        self._kept: OrderedDict[int, tuple[bytes, dict[bytes, Result]]] = OrderedDict()

    @property
    def plan_id(self) -> bytes | None:
        return self._descriptor.plan_id if self._descriptor else None

    def follow(self, descriptor: Descriptor) -> None:
        """Make room for a plan; what belonged to another one is dropped."""
        if self._descriptor is None or self._descriptor.plan_id != descriptor.plan_id:
            self._drop()
            if len(self._mean_P) != descriptor.bounds[-1]:
                self._mean_P = torch.empty(descriptor.bounds[-1])
        self._descriptor = descriptor

    def _drop(self) -> None:
        for shares in self._shares.values():
            for share in shares.values():
                share.drop()
        # Of an own share what is not encoded by now never will be: the contribution's memory is used again.
        made = (*self._decoding.values(), *(result for _, result in self._reductions.values()), *self._own.values())
        for payload in made:
            if not payload.complete:
                payload.drop()
        self._shares, self._own, self._reductions, self._results = {}, {}, {}, {}
        self._makers, self._decoding = set(), {}
        self.generation += 1

    def forget_step(self) -> None:
        self._descriptor, self.own_P = None, None
        self._drop()
        BUFFERS.trim()

    def lacks(self, sender: str, kind: Kind, shard: int) -> bool:
        """Whether this has not come from ``sender`` before, under the plan that is followed.

        Raises: ProtocolViolation if the plan has no such thing of it.
        """
        descriptor = self._descriptor
        assert descriptor is not None
        index = descriptor.peers.index(sender) if sender in descriptor.peers else None
        if index is None or shard >= descriptor.n_shards:
            raise ProtocolViolation(sender, f"sends shard {shard} of a plan that has no such shard of it")
        if kind is Kind.RESULT:
            # Each member may come to be the shard's reducer, once.
            return (shard, sender) not in self._makers
        if index not in descriptor.trainers:
            raise ProtocolViolation(sender, "sends a share and trains nothing")
        known = self._shares.get(shard, {}).get(index)
        return known is None or not known.complete

    def silent(self, shard: int, contributors: tuple[int, ...]) -> list[str]:
        """Those that the plan counts on and these are without, and of whose share not a byte has come."""
        assert self._descriptor is not None
        shares = self._shares.get(shard, {})
        late = set(self._descriptor.trainers).difference(contributors)
        return [self._descriptor.peers[index] for index in sorted(late) if index not in shares]

    def follows(self, plan_id: bytes) -> bool:
        return self._descriptor is not None and self._descriptor.plan_id == plan_id

    def own_share(self, shard: int) -> OwnShare:
        """This peer's contribution to a shard, as it travels; encoded once."""
        assert self._descriptor is not None
        assert self.own_P is not None
        if shard not in self._own:
            start, stop = self._descriptor.bounds[shard : shard + 2]
            self._own[shard] = OwnShare(self._codec, self.own_P[start:stop])
        return self._own[shard]

    def share_from(self, sender: str, shard: int) -> Share:
        """Room for a member's contribution. One that broke off before is replaced: the sender begins again."""
        assert self._descriptor is not None
        shares, index = self._shares.setdefault(shard, {}), self._descriptor.peers.index(sender)
        if index in shares:
            shares[index].drop()
        share = shares[index] = Share(self._codec, self._elements(shard))
        return share

    def result_from(self, shard: int) -> Result:
        """Room for a result of a shard. The first to come is decoded as it comes."""
        assert self._descriptor is not None
        start, stop = self._descriptor.bounds[shard : shard + 2]
        known = self._decoding.get(shard)
        free = known is None or known.dropped
        out_P = self._mean_P[start:stop] if free else None
        result = Result(self._codec, stop - start, len(self._descriptor.members), self._quorum, out_P)
        if free:
            self._decoding[shard] = result
        return result

    def collect(self, shard: int) -> None:
        """Reduce this shard as its shares come, in the hope that all members send theirs."""
        assert self._descriptor is not None
        if shard not in self._reductions:
            self._begin(shard, self._descriptor.trainers)

    def _begin(self, shard: int, contributors: tuple[int, ...]) -> None:
        assert self._descriptor is not None
        shares = self._shares.setdefault(shard, {})
        if (me := self._descriptor.peers.index(self._peer)) in contributors:
            # Its own share goes through the codec like everybody's: what is averaged is what was sent.
            shares[me] = self.own_share(shard)
        weights = [entry.weight for entry in self._descriptor.members]
        result = self.result_from(shard)
        self._reductions[shard] = Reduction(self._codec, self._elements(shard), weights, contributors, result), result

    def advance(self, shard: int) -> Result | None:
        """The result that is being made of a shard, with what is here by now; None if none is, or nothing of it yet."""
        if shard not in self._reductions:
            return None
        reduction, result = self._reductions[shard]
        reduction.advance(self._shares[shard])
        return result if result.n_ready > HEADER_BYTES else None

    def reduce(self, shard: int, contributors: tuple[int, ...]) -> bytes:
        """Aggregate the shares of these members, whole by now; the digest of the result, held from now on.

        Where the shares of all members came after all, the result is of all.
        """
        assert self._descriptor is not None
        self.collect(shard)
        self.advance(shard)
        reduction, result = self._reductions[shard]
        if not result.complete and reduction.contributors != contributors:
            result.drop()
            self._begin(shard, contributors)
            self.advance(shard)
            _, result = self._reductions[shard]
        return self.hold(shard, result, None)

    def hold(self, shard: int, result: Result, maker: str | None) -> bytes:
        """Hold a result that is complete, from its maker or fetched from anyone (None); its digest."""
        if maker is not None:
            self._makers.add((shard, maker))
        self._results.setdefault(shard, {})[result.digest] = result
        return result.digest

    def result(self, shard: int, digest: bytes) -> Result:
        return self._results[shard][digest]

    def piece(self, digest: bytes) -> Result | None:
        """A result of this step or of the last committed ones, by its digest."""
        for results in (*self._results.values(), *(kept for _, kept in self._kept.values())):
            if digest in results:
                return results[digest]
        return None

    def mean(self, commit: Commit) -> tuple[Tensor, list[tuple[int, ...]]]:
        """The committed mean, float32 (P,), and for each shard the members whose contributions are in it.

        The mean's memory is used again from the next plan on.
        """
        descriptor = commit.descriptor
        contributors = []
        for shard, digest in enumerate(commit.digests):
            result = self.result(shard, digest)
            if (other := self._decoding.get(shard)) is not result:
                # What still comes of it does not change the mean any more.
                if other is not None and not other.complete:
                    other.drop()
                self._decoding[shard] = result
                self._mean_P[descriptor.bounds[shard] : descriptor.bounds[shard + 1]] = result.decode()
            contributors.append(result.contributors)
        return self._mean_P, contributors

    def keep(self, commit: Commit, sealed: bytes) -> None:
        """Keep a commit and its results for those that come later."""
        pieces = {digest: self.result(shard, digest) for shard, digest in enumerate(commit.digests)}
        self._kept[commit.descriptor.outer_step] = sealed, pieces
        while len(self._kept) > LEAST_KEPT and (len(self._kept) > MOST_KEPT or self._kept_bytes() > KEPT_BYTES):
            self._kept.popitem(last=False)

    def forget_past(self) -> None:
        """What is kept is of a history that this peer has left: nobody is to follow it there."""
        self._kept.clear()

    def _kept_bytes(self) -> int:
        return sum(len(piece.view) for _, pieces in self._kept.values() for piece in pieces.values())

    def keeps_since(self, outer_step: int, until: int) -> bool:
        """Whether the commits of all outer steps from one to another are kept."""
        return all(step in self._kept for step in range(outer_step, until))

    def sealed_commit(self, outer_step: int) -> bytes | None:
        kept = self._kept.get(outer_step)
        return kept[0] if kept else None

    @property
    def _codec(self) -> Codec:
        assert self._descriptor is not None
        return codec_named(self._descriptor.codec)

    def _elements(self, shard: int) -> int:
        assert self._descriptor is not None
        return self._descriptor.bounds[shard + 1] - self._descriptor.bounds[shard]
