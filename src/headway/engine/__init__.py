"""The CPU engine: a model's decoding as one compiled program over plain arrays, and weights in 8 or 4 bits."""

from headway.engine.decoder import Engine, Kept, refusal
from headway.engine.files import load_quantised, save_quantised
from headway.engine.packed import PackedTensor, quantise
from headway.engine.packing import Format
from headway.engine.parts import CannotLowerError

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
