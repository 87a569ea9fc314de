"""The CPU engine: model decoding as one compiled program over plain arrays, and weights in 8 or 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.engine.builder import CannotLowerError
    from headway.engine.cache import OutOfBlocksError
    from headway.engine.chunks import RowChunk
    from headway.engine.decoder import Engine, refusal
    from headway.engine.encoder import StackProgram, use_programs
    from headway.engine.packed_weights import Format, PackedTensor, load_quantised, quantise, save_quantised
    from headway.engine.sequence_rows import EngineDecoding, Row

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
lazy_exports(  # most of these modules import LLVM, which models on torch do not need
    __name__,
    {
        ".builder": ("CannotLowerError",),
        ".cache": ("OutOfBlocksError",),
        ".chunks": ("RowChunk",),
        ".decoder": ("Engine", "refusal"),
        ".encoder": ("StackProgram", "use_programs"),
        ".packed_weights": ("Format", "PackedTensor", "load_quantised", "quantise", "save_quantised"),
        ".sequence_rows": ("EngineDecoding", "Row"),
    },
)
