"""From tensors to agreed bytes and back: codec, shards, the round and its driver."""
