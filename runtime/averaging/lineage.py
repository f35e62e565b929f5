"""The hash chain over all committed outer steps: equal lineage means bit-equal state."""

import hashlib
from collections.abc import Sequence


def first_lineage(run_id: str, state_digest: bytes) -> bytes:
    """Lineage before any outer step: of the run and of the anchor and momentum it begins with. 32 bytes."""
    return hashlib.sha256(b"atoll lineage 0" + run_id.encode() + state_digest).digest()


def next_lineage(
    lineage: bytes, outer_step: int, state_digest: bytes, plan_id: bytes, shard_digests: Sequence[bytes]
) -> bytes:
    """Lineage after the outer step ``outer_step`` was committed.

    ``state_digest`` is of the anchor and momentum *before* the step. With it in the chain a joiner can check the state
    that it downloads against what the swarm has committed, and a peer whose state is not what it should be finds itself
    alone. ``plan_id`` binds who contributed what weight and where the shards begin. All digests 32 bytes.
    """
    chain = hashlib.sha256(b"atoll lineage" + lineage + outer_step.to_bytes(8, "big") + state_digest + plan_id)
    for digest in shard_digests:
        chain.update(digest)
    return chain.digest()
