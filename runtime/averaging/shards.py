"""Where the flat pseudo-gradient is cut: one range for each member that reduces."""


def shard_bounds(n_elements: int, n_shards: int, block: int) -> tuple[int, ...]:
    """Cut points ``0 = b0 < b1 < ... = n_elements`` of at most ``n_shards`` near-equal shards, in whole blocks.

    A shard begins at a multiple of ``block`` elements, so that a codec's blocks never span two shards; where there are
    fewer blocks than shards wanted, there are fewer shards.
    """
    n_blocks = -(-n_elements // block)
    n_shards = min(n_shards, n_blocks)
    cuts = [n_blocks * shard // n_shards * block for shard in range(n_shards)]
    return (*cuts, n_elements)
