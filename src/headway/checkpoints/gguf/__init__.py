"""GGUF, the file format of llama.cpp: one file with settings, tokenizer and weights, often quantised. Both ways."""

from headway.checkpoints.gguf.file import GgufFile
from headway.checkpoints.gguf.load import gguf_config, load_gguf, load_gguf_codec
from headway.checkpoints.gguf.save import save_gguf

SUFFIX = ".gguf"

__all__ = ["SUFFIX", "GgufFile", "gguf_config", "load_gguf", "load_gguf_codec", "save_gguf"]
