"""GGUF, the file format of llama.cpp: settings, tokenizer and weights, often quantised, in one file. Both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.formats.gguf.file import GgufFile
    from headway.formats.gguf.model import gguf_config, load_gguf, load_gguf_codec, save_gguf

SUFFIX = ".gguf"
__all__ = ["SUFFIX", "GgufFile", "gguf_config", "load_gguf", "load_gguf_codec", "save_gguf"]
lazy_exports(__name__, {".file": ("GgufFile",), ".model": ("gguf_config", "load_gguf", "load_gguf_codec", "save_gguf")})
