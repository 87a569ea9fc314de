"""A model and its tokenizer from a .gguf file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.formats.families import families, llama
from headway.formats.gguf.dialects import FACTORS, LONG_FACTORS, SHORT_FACTORS, Dialect, find_dialect, read_values
from headway.formats.gguf.file import GgufFile
from headway.formats.gguf.tokens import read_codec, read_marks
from headway.formats.llama2c import interleaved
from headway.formats.native import read_config, undrawn
from headway.formats.published import Published
from headway.formats.rules import Family, TensorRule
from headway.formats.settings import Settings
from headway.formats.usage import Usage
from headway.formats.weights import Renamed, fill
from headway.nn.models import ModelConfig, TransformerConfig


class Translated:
    """The tensors of a file under their published names, and as they were published (Weights)."""

    def __init__(self, file: GgufFile, dialect: Dialect) -> None:
        self.source = file.source
        self._file, self._dialect = file, dialect
        factors = (FACTORS, LONG_FACTORS, SHORT_FACTORS)  # which are settings
        self._own = {dialect.published(name): name for name in file.names() if name not in factors}

    def names(self) -> Collection[str]:
        return self._own.keys()

    def get(self, name: str) -> Tensor:
        own = self._own[name]
        found = self._file.get(own)
        if self._dialect.is_offset(own):
            found = found - 1
        return found.T if self._dialect.is_turned(own) else found

    def done(self, name: str) -> None:
        self._file.done(self._own[name])


def load_gguf(path: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> Published:
    """The model of a .gguf file, in evaluation mode, its weights in `dtype`; quantised ones become plain numbers.

    With `dtype` None they get that of the embedding where it is one of torch's, and else float32. `context` is the
    longest sequence it will be asked for, as for `load_published`. Its tokenizer is what `load_gguf_codec` gives.
    """
    file = GgufFile(Path(path))
    dialect, family, settings, config, weights = _read(file, context)
    dtype = dtype or _stored(file)
    model = undrawn(config, file.size, file.source, dtype)
    fill(model, rules_for(dialect, family.rules(config), config), weights, dtype)
    usage = Usage(family.name, dict(settings.values), **read_marks(file.values, file.source))
    return Published(model.eval(), usage)


def gguf_usage(path: Path) -> Usage:
    """How the model of a .gguf file is used; no weight is read."""
    file = GgufFile(Path(path))
    return Usage(**read_marks(file.values, file.source))


def gguf_config(path: Path) -> ModelConfig:
    """The configuration of the model of a .gguf file; no weight is read."""
    return _read(GgufFile(Path(path)), None).config


class _FileHead(NamedTuple):
    """What a file says before a weight is read."""

    dialect: Dialect
    family: Family
    settings: Settings
    config: ModelConfig
    weights: Renamed


def _read(file: GgufFile, context: int | None) -> _FileHead:
    name, dialect = find_dialect(file.values, file.source)
    values = read_values(file, name, dialect)
    family = families()[values["model_type"]]
    settings = Settings({**family.defaults, **values}, file.source, context)
    weights = Renamed(Translated(file, dialect), family)
    return _FileHead(dialect, family, settings, read_config(family, settings, weights.names()), weights)


def rules_for(dialect: Dialect, rules: list[TensorRule], config: Any) -> list[TensorRule]:
    """The rules of a family for the tensors as this architecture has them."""
    if not dialect.interleaved or not isinstance(config, TransformerConfig):
        return rules
    mixer = llama.attention(config.stack.blocks[0])
    return interleaved(rules, mixer.heads, mixer.kv_heads or mixer.heads)


def load_gguf_codec(path: Path) -> TokenizerCodec | None:
    """The tokenizer of a .gguf file, None where it has none. UserError for one of a kind that is not read."""
    file = GgufFile(Path(path))
    return read_codec(file.values, file.source)


def _stored(file: GgufFile) -> torch.dtype:
    table = "token_embd.weight"
    return (file.kind(table).dtype if table in file.names() else None) or torch.float32
