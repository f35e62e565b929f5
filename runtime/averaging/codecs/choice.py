"""``codec = "auto"``: the leader chooses for each round by the slowest link and by what the codecs cost here.

Eight bits take a quarter of a link's time and some of the processor's; exact float32 the other way round. Fewer bits
than eight are for the run file to choose: they cost quality as well.
"""

import time
from collections.abc import Mapping

import torch

from runtime.averaging.codecs.base import CHUNK, add_decoded
from runtime.averaging.codecs.registry import codec_named

AUTO = "auto"
CHOICES = ("int8", "float32")
MEASURED_TIMES = 5


def allowed(codec: str) -> tuple[str, ...]:
    """The codecs that a round may have where the run file has this one."""
    return CHOICES if codec == AUTO else (codec,)


def measured_costs() -> dict[str, float]:
    """Seconds that each choice takes of this processor for one element of a round; some milliseconds to find out.

    A member encodes its contribution once, and decodes and adds as many elements as that twice: others' shares, and the
    results.
    """
    costs = {}
    chunk_P, sum_P = torch.randn(CHUNK, generator=torch.Generator().manual_seed(0)), torch.zeros(CHUNK)
    for name in CHOICES:
        codec = codec_named(name)
        payload, seconds = bytearray(codec.encoded_bytes(CHUNK)), []
        for _ in range(MEASURED_TIMES):
            began = time.perf_counter()
            codec.encode(chunk_P, payload)
            for _ in range(2):
                add_decoded(codec, payload, 0.5, sum_P)
            seconds.append(time.perf_counter() - began)
        costs[name] = min(seconds) / CHUNK
    return costs


def chosen(codec: str, costs: Mapping[str, float], bytes_per_s: int, n_members: int) -> str:
    """The codec of a round.

    Args:
        codec: the run file's.
        costs: of ``measured_costs``.
        bytes_per_s: of the slowest link; 0 where one is not known, which is taken for slow.
        n_members: each sends, and receives, 2 (n - 1) / n vectors.
    """
    if codec != AUTO:
        return codec
    if not bytes_per_s and n_members > 1:
        return CHOICES[0]
    passes = 2 * (n_members - 1) / n_members

    def seconds(name: str) -> float:
        link_s = passes * codec_named(name).encoded_bytes(CHUNK) / CHUNK / bytes_per_s if passes else 0.0
        return costs[name] + link_s

    return min(CHOICES, key=seconds)


def exact_from(costs: Mapping[str, float], n_members: int) -> float:
    """Bytes a second of the slowest link from which float32 is the quicker one; infinite if it never is."""
    dearer = costs["int8"] - costs["float32"]
    saved = (codec_named("float32").encoded_bytes(CHUNK) - codec_named("int8").encoded_bytes(CHUNK)) / CHUNK
    return 2 * (n_members - 1) / n_members * saved / dearer if dearer > 0 else float("inf")
