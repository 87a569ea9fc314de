"""Read and write a model and its tokenizer as a .gguf file for llama.cpp and compatible programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError, nearest
from headway.formats.durable import atomic_write
from headway.formats.families import families, llama
from headway.formats.gguf.dialects import (
    DIALECTS,
    FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    WRITABLE_FAMILIES,
    Dialect,
    find_dialect,
    read_values,
    rotary_values,
)
from headway.formats.gguf.file import GgufFile, gguf
from headway.formats.gguf.tokens import read_codec, read_special_tokens, write_codec
from headway.formats.llama2c import interleaved
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import PublishedModel, can_express, resolve_defaults
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule
from headway.formats.usage import Usage
from headway.formats.weights import RenamedWeights, fill, published_tensors
from headway.nn.models import ModelConfig, TransformerConfig


class TranslatedWeights:
    """The tensors of a file under their published names and in their published layout (Weights)."""

    def __init__(self, file: GgufFile, dialect: Dialect) -> None:
        self.source = file.source
        self._file, self._dialect = file, dialect
        factors = (FACTORS, LONG_FACTORS, SHORT_FACTORS)  # read as settings
        self._stored_names = {dialect.published_name(name): name for name in file.names() if name not in factors}

    def names(self) -> Collection[str]:
        return self._stored_names.keys()

    def get(self, name: str) -> Tensor:
        stored_name = self._stored_names[name]
        tensor = self._file.get(stored_name)
        if self._dialect.is_offset(stored_name):
            tensor = tensor - 1
        return tensor.T if self._dialect.is_transposed(stored_name) else tensor

    def done(self, name: str) -> None:
        self._file.done(self._stored_names[name])


def load_gguf(path: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> PublishedModel:
    """Load the model in a .gguf file, in evaluation mode, with its weights in `dtype`; quantised ones are dequantised.

    With `dtype` None they get the embedding's dtype if torch has it, otherwise float32. `context` is the longest
    sequence to serve, as for `load_published`. `load_gguf_codec` returns its tokenizer.
    """
    file = GgufFile(Path(path))
    dialect, family, settings, config, weights = _read(file, context)
    dtype = dtype or _stored(file)
    model = uninitialized_model(config, file.size, file.source, dtype)
    fill(model, rules_for(dialect, family.rules(config), config), weights, dtype)
    usage = Usage(family.name, dict(settings.values), **read_special_tokens(file.values, file.source))
    return PublishedModel(model.eval(), usage)


def gguf_usage(path: Path) -> Usage:
    """Return the usage of the model in a .gguf file, without reading weights."""
    file = GgufFile(Path(path))
    return Usage(**read_special_tokens(file.values, file.source))


def gguf_config(path: Path) -> ModelConfig:
    """Return the configuration of the model in a .gguf file, without reading weights."""
    return _read(GgufFile(Path(path)), None).config


class _FileMetadata(NamedTuple):
    """Everything known about a file before its weights are read."""

    dialect: Dialect
    family: Family
    settings: Settings
    config: ModelConfig
    weights: RenamedWeights


def _read(file: GgufFile, context: int | None) -> _FileMetadata:
    name, dialect = find_dialect(file.values, file.source)
    values = read_values(file, name, dialect)
    family = families()[values["model_type"]]
    settings = Settings({**family.defaults, **values}, file.source, context)
    weights = RenamedWeights(TranslatedWeights(file, dialect), family)
    return _FileMetadata(dialect, family, settings, read_config(family, settings, weights.names()), weights)


def rules_for(dialect: Dialect, rules: list[TensorRule], config: Any) -> list[TensorRule]:
    """Return a family's rules for the tensors as this architecture stores them."""
    if not dialect.interleaved or not isinstance(config, TransformerConfig):
        return rules
    mixer = llama.attention(config.stack.blocks[0])
    return interleaved(rules, mixer.heads, mixer.kv_heads or mixer.heads)


def load_gguf_codec(path: Path) -> TokenizerCodec | None:
    """Return the tokenizer in a .gguf file; None if it has none. UserError for an unsupported kind."""
    file = GgufFile(Path(path))
    return read_codec(file.values, file.source)


def _stored(file: GgufFile) -> torch.dtype:
    table = "token_embd.weight"
    return (file.kind(table).dtype if table in file.names() else None) or torch.float32


Precision = Literal["F32", "F16", "Q8_0"]
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}
_WINDOWED = {"mistral"}  # families whose window is stored
_BLOCK = 32  # numbers that share a scale in Q8_0
_VERSION = 2  # version of the quantisation format
_NO_TOKENIZER = {"tokenizer.ggml.model": "none"}  # required by llama.cpp


@dataclass(frozen=True)
class FileContents:
    """The content of a file to be written, with the same interface as a file."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: str

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self.tensors[name]


def save_gguf(
    model: nn.Module,
    config: ModelConfig,
    path: Path,
    codec: Codec | None = None,
    usage: Usage | None = None,
    precision: Precision = "F32",
) -> str:
    """Write `path`, with the tokenizer if there is one; return the name of the architecture.

    If all layers have the same window, the context is limited to it, except for Mistral, whose window is stored.
    Matrices are written in `precision` (Q8_0: rows of complete blocks of 32, other matrices in F16), vectors in F32.
    Raises UserError, before anything is written, for a model or tokenizer that GGUF cannot express.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}; {nearest(precision, get_args(Precision))}")
    usage = usage or Usage()
    family = _find_family(config, usage.family)
    assert isinstance(config, TransformerConfig)
    if family.name not in _WINDOWED:
        config = _within_window(config)
    architecture = WRITABLE_FAMILIES[family.name]
    dialect = DIALECTS[architecture]
    published = published_tensors(model, rules_for(dialect, family.rules(config), config))
    tensors = {dialect.stored_name(name): tensor for name, tensor in published.items()}
    sizes = {f"{architecture}.{key}": value for key, value in _sizes(dialect, family.write(config)).items()}
    rotary_settings, factors = rotary_values(llama.first_rotary(config), _head_size(config), config.context or 0)
    values = {
        "general.architecture": architecture,
        "general.file_type": _FILE_TYPES[precision],
        "general.quantization_version": _VERSION,
        **sizes,
        **{f"{architecture}.{key}": value for key, value in rotary_settings.items()},
        **(_NO_TOKENIZER if codec is None else write_codec(codec, config.vocab_size, usage)),
    }
    draft = FileContents(values, {**tensors, **factors}, str(path))
    _check(draft, architecture, dialect, family, config)
    _write(draft, path, precision)
    return architecture


def _within_window(config: TransformerConfig) -> TransformerConfig:
    """Return a model with one window in all its layers without the window, and with its context limited to the window:
    up to that length it computes the same, and programs without windows in this architecture use no more.
    """
    windows = set(llama.windows_of(config))
    window = windows.pop()
    if windows or window is None:
        return config
    context = window if config.context is None else min(window, config.context)
    return replace(llama.with_windows(config, [None] * len(config.stack.blocks)), context=context)


def _find_family(config: ModelConfig, name: str) -> Family:
    known = families()
    order = [name, *WRITABLE_FAMILIES] if name in WRITABLE_FAMILIES else list(WRITABLE_FAMILIES)
    for candidate in order:
        if can_express(known[candidate], config):
            return known[candidate]
    raise UserError(
        f"this model is not in a family that GGUF supports ({', '.join(WRITABLE_FAMILIES)}); export it as a folder "
        "instead"
    )


def _head_size(config: TransformerConfig) -> int:
    mixer = llama.attention(config.stack.blocks[0])
    return mixer.head_size or config.width // mixer.heads


def _sizes(dialect: Dialect, settings: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: settings[setting] for key, setting in dialect.sizes.items() if settings.get(setting) is not None}
    size = settings["head_dim"]
    return {
        **values,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "vocab_size": settings["vocab_size"],
    }


def _check(draft: FileContents, architecture: str, dialect: Dialect, family: Family, config: TransformerConfig) -> None:
    """Check that reading the draft back gives the model. Rotary scalings may be stored in another form and are checked
    separately.
    """
    values = read_values(draft, architecture, dialect)
    known = families()[values["model_type"]]
    settings = Settings({**known.defaults, **values}, draft.source, config.context)
    read_back = known.read(settings, ())
    resolved = [resolve_defaults(llama.with_mixers(candidate, rotary=None)) for candidate in (read_back, config)]  # type: ignore[arg-type]
    if resolved[0] != resolved[1]:
        raise UserError(
            f"GGUF has no settings for some features of this {family.name} model (per-layer windows, some biases); "
            "export it as a folder instead"
        )


def _write(draft: FileContents, path: Path, precision: Precision) -> None:
    package = gguf()
    with atomic_write(path, new=True) as draft_path:
        writer = package.GGUFWriter(draft_path, draft.values["general.architecture"])
        for key, value in draft.values.items():
            if key != "general.architecture":  # already written by the writer
                _add(writer, key, value)
        for name, tensor in draft.tensors.items():
            _add_tensor(package, writer, name, tensor.detach().float(), precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(package: Any, writer: Any, name: str, tensor: Tensor, precision: Precision) -> None:
    array = tensor.contiguous().numpy()
    if precision == "F32" or tensor.dim() < 2:
        writer.add_tensor(name, array)
    elif precision == "Q8_0" and tensor.shape[-1] % _BLOCK == 0:
        kind = package.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, package.quants.quantize(array, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.to(torch.float16).numpy())
