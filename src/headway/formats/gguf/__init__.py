"""GGUF, the file format of llama.cpp: one file with settings, tokenizer and weights, often quantised. Both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.formats.gguf.file import GgufFile
    from headway.formats.gguf.load import gguf_config, load_gguf, load_gguf_codec
    from headway.formats.gguf.save import save_gguf

SUFFIX = ".gguf"
__all__ = ["SUFFIX", "GgufFile", "gguf_config", "load_gguf", "load_gguf_codec", "save_gguf"]
lazily(
    __name__,
    {".file": ("GgufFile",), ".load": ("gguf_config", "load_gguf", "load_gguf_codec"), ".save": ("save_gguf",)},
)
