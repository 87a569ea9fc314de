"""A model of the Llama kind written as a .gguf file, for llama.cpp and all that reads its format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headway.codecs import Codec
from headway.errors import UserError, nearest
from headway.formats.durable import beside
from headway.formats.families import families, llama
from headway.formats.gguf.dialects import DIALECTS, WRITTEN, Dialect, read_values, rotary_values
from headway.formats.gguf.file import gguf
from headway.formats.gguf.load import rules_for
from headway.formats.gguf.tokens import write_codec
from headway.formats.published import computed, says
from headway.formats.rules import Family
from headway.formats.settings import Settings
from headway.formats.usage import Usage
from headway.formats.weights import unfilled
from headway.nn.models import ModelConfig, TransformerConfig

Precision = Literal["F32", "F16", "Q8_0"]
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}
_WINDOWED = {"mistral"}  # whose window a file says
_BLOCK = 32  # numbers that share a scale in Q8_0
_VERSION = 2  # of quantisation
_NO_TOKENIZER = {"tokenizer.ggml.model": "none"}  # without which llama.cpp opens no file


@dataclass(frozen=True)
class FileContents:
    """What a file will say, before it is written; it reads as a file does."""

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
    """Write `path`, with the tokenizer where there is one; gives the architecture it is named by.

    Of a model with one window for all layers the file says, for all but Mistral, the context that it sees whole.
    Matrices are written in `precision` (Q8_0: those whose rows are whole blocks of 32, others in F16), vectors in F32.
    Raises UserError, before anything is written, for a model or tokenizer that GGUF cannot say.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}; {nearest(precision, get_args(Precision))}")
    usage = usage or Usage()
    family = _fitting(config, usage.family)
    assert isinstance(config, TransformerConfig)
    if family.name not in _WINDOWED:
        config = _within_window(config)
    architecture = WRITTEN[family.name]
    dialect = DIALECTS[architecture]
    held = unfilled(model, rules_for(dialect, family.rules(config), config))
    tensors = {dialect.own(name): tensor for name, tensor in held.items()}
    sizes = {f"{architecture}.{key}": value for key, value in _sizes(dialect, family.write(config)).items()}
    turned, factors = rotary_values(llama.first_rotary(config), _head_size(config), config.context or 0)
    values = {
        "general.architecture": architecture,
        "general.file_type": _FILE_TYPES[precision],
        "general.quantization_version": _VERSION,
        **sizes,
        **{f"{architecture}.{key}": value for key, value in turned.items()},
        **(_NO_TOKENIZER if codec is None else write_codec(codec, config.symbols, usage)),
    }
    draft = FileContents(values, {**tensors, **factors}, str(path))
    _check(draft, architecture, dialect, family, config)
    _write(draft, path, precision)
    return architecture


def _within_window(config: TransformerConfig) -> TransformerConfig:
    """A model that sees so far back in all its layers, without the window, and with no more context than it sees whole
    through it: there it computes the same, and programs that know no windows in this architecture ask for no more.
    """
    windows = set(llama.windows_of(config))
    window = windows.pop()
    if windows or window is None:
        return config
    context = window if config.context is None else min(window, config.context)
    return replace(llama.with_windows(config, [None] * len(config.stack.blocks)), context=context)


def _fitting(config: ModelConfig, name: str) -> Family:
    known = families()
    order = [name, *WRITTEN] if name in WRITTEN else list(WRITTEN)
    for each in order:
        if says(known[each], config):
            return known[each]
    raise UserError(
        f"GGUF files are written of {', '.join(WRITTEN)}, and this model is none of them; export it as a folder"
    )


def _head_size(config: TransformerConfig) -> int:
    mixer = llama.attention(config.stack.blocks[0])
    return mixer.head_size or config.width // mixer.heads


def _sizes(dialect: Dialect, said: Mapping[str, Any]) -> dict[str, Any]:
    found = {ours: said[theirs] for ours, theirs in dialect.sizes.items() if said.get(theirs) is not None}
    size = said["head_dim"]
    return {**found, "attention.value_length": size, "rope.dimension_count": size, "vocab_size": said["vocab_size"]}


def _check(draft: FileContents, architecture: str, dialect: Dialect, family: Family, config: TransformerConfig) -> None:
    """What is read back must be the model. Rotary scalings may be said in another way, and were checked apart."""
    given = read_values(draft, architecture, dialect)
    known = families()[given["model_type"]]
    settings = Settings({**known.defaults, **given}, draft.source, config.context)
    found = known.read(settings, ())
    plain = [computed(llama.with_mixers(each, rotary=None)) for each in (found, config)]  # type: ignore[arg-type]
    if plain[0] != plain[1]:
        raise UserError(
            f"GGUF has no settings for what is special in this {family.name} (windows by layer, biases of some maps "
            "only); export it as a folder instead"
        )


def _write(draft: FileContents, path: Path, precision: Precision) -> None:
    package = gguf()
    with beside(path) as place:
        writer = package.GGUFWriter(place, draft.values["general.architecture"])
        for key, value in draft.values.items():
            if key != "general.architecture":  # which the writer has said
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
