"""What a peer holds of a round in bytes: contributions to what it reduces, results, and the last committed results."""

from collections import OrderedDict

import torch
from torch import Tensor

from runtime.averaging.codec import Codec, codec_named
from runtime.averaging.messages import Commit, Descriptor
from runtime.averaging.reduce import ShardResult, result_bytes, result_digest, weighted_mean
from runtime.averaging.transfer import Kind

# Enough for a member that lost the end of a round to catch up with it; one byte a parameter each.
KEPT_STEPS = 4


class Results:
    """The buffers of one peer. Nothing in here decides anything.

    ``own_P`` is the peer's pseudo-gradient, float32 (P,), None while it is training.
    """

    def __init__(self, peer: str) -> None:
        self.own_P: Tensor | None = None
        self._peer = peer
        self._descriptor: Descriptor | None = None
        self._shares: dict[tuple[int, int], Tensor] = {}
        self._encoded: dict[int, bytes] = {}
        self._results: dict[int, dict[bytes, bytes]] = {}
        self._makers: set[tuple[int, str]] = set()
        self.generation = 0
        """Grows whenever shares and results are dropped: what was said of them before is then void."""
        self._kept: OrderedDict[int, tuple[bytes, dict[bytes, bytes]]] = OrderedDict()

    @property
    def plan_id(self) -> bytes | None:
        return self._descriptor.plan_id if self._descriptor else None

    def follow(self, descriptor: Descriptor) -> None:
        """Make room for a plan; what belonged to another one is dropped."""
        if self._descriptor is None or self._descriptor.plan_id != descriptor.plan_id:
            self._drop()
        self._descriptor = descriptor

    def _drop(self) -> None:
        self._shares, self._encoded, self._results, self._makers = {}, {}, {}, set()
        self.generation += 1

    def forget_step(self) -> None:
        self._descriptor, self.own_P = None, None
        self._drop()

    def limit(self, sender: str, kind: Kind, plan_id: bytes, shard: int) -> int | None:
        """The most bytes that may come from ``sender`` now, None if nothing of this is wanted or it came before."""
        descriptor = self._descriptor
        if descriptor is None or descriptor.plan_id != plan_id or shard >= descriptor.n_shards:
            return None
        if sender not in descriptor.peers:
            return None
        if kind is Kind.RESULT:
            # Each member may come to be the shard's reducer, once.
            return None if (shard, sender) in self._makers else self.most_result_bytes(plan_id, shard)
        if (shard, descriptor.peers.index(sender)) in self._shares:
            return None
        return self._codec.encoded_bytes(self._elements(shard))

    def most_result_bytes(self, plan_id: bytes, shard: int) -> int | None:
        """What a result of the shard may take, None if the plan is not followed any more."""
        descriptor = self._descriptor
        if descriptor is None or descriptor.plan_id != plan_id:
            return None
        return result_bytes(len(descriptor.members), self._codec, self._elements(shard))

    def encoded_share(self, shard: int) -> bytes:
        """This peer's contribution to a shard, as it travels; encoded once."""
        assert self._descriptor is not None
        assert self.own_P is not None
        if shard not in self._encoded:
            start, stop = self._descriptor.bounds[shard : shard + 2]
            self._encoded[shard] = self._codec.encode(self.own_P[start:stop])
        return self._encoded[shard]

    def add_share(self, sender: str, shard: int, data: bytes) -> None:
        """Raises: ValueError if the bytes are not a contribution to this shard."""
        assert self._descriptor is not None
        share_P = self._codec.decode(data, self._elements(shard))
        self._shares[shard, self._descriptor.peers.index(sender)] = share_P

    def reduce(self, shard: int, contributors: tuple[int, ...]) -> bytes:
        """Aggregate the shares of these members; the digest of the result, which is held from now on."""
        descriptor = self._descriptor
        assert descriptor is not None
        # Its own share goes through the codec like everybody's: what is averaged is what was sent.
        self.add_share(self._peer, shard, self.encoded_share(shard))
        shares = {index: self._shares[shard, index] for index in contributors}
        mean_P = weighted_mean(shares, [entry.weight for entry in descriptor.members])
        return self._hold(shard, ShardResult(contributors, self._codec.encode(mean_P)).to_bytes())

    def add_result(self, shard: int, data: bytes, quorum: int, maker: str | None) -> bytes:
        """Hold a result that came whole, from its maker or fetched from anyone (None); its digest.

        Raises: ValueError if no honest reducer can have made it.
        """
        descriptor = self._descriptor
        assert descriptor is not None
        n_elements = self._elements(shard)
        result = ShardResult.from_bytes(data, len(descriptor.members), self._codec, n_elements)
        if len(result.contributors) < quorum:
            raise ValueError(f"{len(result.contributors)} contributors where the quorum is {quorum}")
        result.decode(self._codec, n_elements)
        if maker is not None:
            self._makers.add((shard, maker))
        return self._hold(shard, data)

    def result(self, shard: int, digest: bytes) -> bytes:
        return self._results[shard][digest]

    def piece(self, digest: bytes) -> bytes | None:
        """A result of this step or of the last committed ones, by its digest."""
        for results in (*self._results.values(), *(kept for _, kept in self._kept.values())):
            if digest in results:
                return results[digest]
        return None

    def mean(self, commit: Commit) -> tuple[Tensor, list[tuple[int, ...]]]:
        """The committed mean, float32 (P,), and for each shard the members whose contributions are in it."""
        descriptor = commit.descriptor
        mean_P = torch.empty(descriptor.bounds[-1])
        contributors = []
        for shard, digest in enumerate(commit.digests):
            start, stop = descriptor.bounds[shard : shard + 2]
            data = self.result(shard, digest)
            result = ShardResult.from_bytes(data, len(descriptor.members), self._codec, stop - start)
            mean_P[start:stop] = result.decode(self._codec, stop - start)
            contributors.append(result.contributors)
        return mean_P, contributors

    def keep(self, commit: Commit, sealed: bytes) -> None:
        """Keep a commit and its results for those that come later."""
        pieces = {digest: self.result(shard, digest) for shard, digest in enumerate(commit.digests)}
        self._kept[commit.descriptor.outer_step] = sealed, pieces
        while len(self._kept) > KEPT_STEPS:
            self._kept.popitem(last=False)

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

    def _hold(self, shard: int, data: bytes) -> bytes:
        digest = result_digest(data)
        self._results.setdefault(shard, {})[digest] = data
        return digest
