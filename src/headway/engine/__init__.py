"""The CPU engine: model decoding as one compiled program over plain arrays, and weights in 8 or 4 bits."""

from headway.engine.builder import CannotLowerError
from headway.engine.cache import OutOfBlocksError
from headway.engine.decoder import Engine, refusal
from headway.engine.encoder import StackProgram, use_programs
from headway.engine.packed_weights import Format, PackedTensor, load_quantised, quantise, save_quantised
from headway.engine.sequence_rows import EngineDecoding, Row, RowChunk

__all__ = [
    "CannotLowerError",
    "Engine",
    "EngineDecoding",
    "Format",
    "OutOfBlocksError",
    "PackedTensor",
    "Row",
    "RowChunk",
    "StackProgram",
    "load_quantised",
    "quantise",
    "refusal",
    "save_quantised",
    "use_programs",
]
