"""The CPU engine: a model's decoding as one compiled program over plain arrays, and weights in 8 or 4 bits."""

from headway.engine.builder import CannotLowerError
from headway.engine.decoder import Engine, Kept, refusal
from headway.engine.packed import Format, PackedTensor, load_quantised, quantise, save_quantised

__all__ = [
    "CannotLowerError",
    "Engine",
    "Format",
    "Kept",
    "PackedTensor",
    "load_quantised",
    "quantise",
    "refusal",
    "save_quantised",
]
