"""The codecs by name, as a run file and a descriptor have them."""

from runtime.averaging.codecs.base import Codec
from runtime.averaging.codecs.codebook8 import Codebook8
from runtime.averaging.codecs.floats import Float16, Float32
from runtime.averaging.codecs.fp4 import Fp4
from runtime.averaging.codecs.int8 import Int8

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), Float16(), Int8(), Codebook8(), Fp4())}


def codec_named(name: str) -> Codec:
    """Raises: KeyError for a name that is not in the list."""
    return CODECS[name]
