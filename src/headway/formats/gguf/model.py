"""Read and write a model and its tokenizer as a .gguf file for llama.cpp and compatible programs.

A file is read as if it were the folder it was made from: values become settings of a config.json, which the family
reads. `dialects.py` has the names of settings and tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError, nearest
from headway.formats.deferred import combined, computed, deferred_weights
from headway.formats.export_check import ExportResult, check_export
from headway.formats.families import families, llama
from headway.formats.gguf.dialects import (
    DIALECTS,
    FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    WRITABLE_FAMILIES,
    Dialect,
    ExpertWeights,
    find_dialect,
)
from headway.formats.gguf.file import KINDS, GgufFile, NumberFormat, gguf
from headway.formats.gguf.k_quants import encode, rounding_step
from headway.formats.gguf.mixtures import FormatMixture, Precision
from headway.formats.gguf.tokens import read_codec, read_special_tokens, write_codec
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import HEAD, PublishedModel, can_express, resolve_defaults
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, expect
from headway.formats.usage import Usage
from headway.formats.weights import fill, published_tensors
from headway.io.durable import atomic_write
from headway.io.outputs import check_free_disk
from headway.nn.models import ModelConfig, PooledHeadConfig, TransformerConfig
from headway.nn.models.pooled import Pool
from headway.nn.parts.positions import Rotary, RotaryConfig
from headway.nn.parts.scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling


class RotaryValues(NamedTuple):
    values: dict[str, Any]  # below the architecture's name
    tensors: dict[str, Tensor]


def rotary_values(rotary: RotaryConfig, head_size: int, dialect: Dialect) -> RotaryValues:
    """Return values and tensors that express `rotary`. UserError for a scaling that GGUF cannot store."""
    scaled, scaling = Rotary(rotary, head_size), rotary.scaling
    values: dict[str, Any] = {"rope.dimension_count": scaled.size, "rope.freq_base": float(rotary.theta)}
    if isinstance(scaling, LongRopeScaling) and dialect.family == "phi3":
        factors = {LONG_FACTORS: scaling.long, SHORT_FACTORS: scaling.short}
        values |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": scaling.original}
        values["rope.scaling.attn_factor"] = float(scaled.factor)
        return RotaryValues(values, {name: torch.tensor(numbers) for name, numbers in factors.items()})
    if scaling is None:
        return RotaryValues(values, {})
    if isinstance(scaling, LinearScaling):
        return RotaryValues({**values, "rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {})
    if isinstance(scaling, YarnScaling) and scaling == YarnScaling(scaling.factor, scaling.original):
        scaling_values = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        return RotaryValues({**values, **scaling_values, "rope.scaling.original_context_length": scaling.original}, {})
    if isinstance(scaling, LongRopeScaling):
        is_fixed = scaling.short == scaling.long and scaling.attention_factor == 1.0  # the same at every length
    else:
        is_fixed = isinstance(scaling, Llama3Scaling)
    if is_fixed:
        plain = Rotary(replace(rotary, scaling=None), head_size).frequencies
        return RotaryValues(values, {FACTORS: (plain / scaled.frequencies).to(torch.float32)})
    raise UserError(f"GGUF cannot store rotary positions scaled by {type(scaling).__name__}; export a folder instead")


_MAX_FACTORS = 1 << 14  # at most half of a head's features
# Gemma's largest models divide their scores by the width over the heads, the others by the size of a head.
_WIDE_SCORES = {"gemma2": 46, "gemma3_text": 62}  # layers in the largest models
# Bases of the rotary positions in layers with a window, if they have their own (None: by default the same).
_LOCAL_BASES = {"gemma3_text": 10000.0, "olmo3": None}
_MAX_LAYERS = 10_000


class GgufContents(Protocol):
    """The common interface of a file being read and one being written."""

    @property
    def source(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor: ...


def read_values(file: GgufContents, architecture: str, dialect: Dialect) -> dict[str, Any]:
    """Return the settings from the folder that a file was made from, including "model_type"."""
    prefix = f"{architecture}."
    values = {key.removeprefix(prefix): value for key, value in file.values.items() if key.startswith(prefix)}
    names = file.names()
    settings: dict[str, Any] = {setting: values[key] for key, setting in dialect.sizes.items() if key in values}
    settings |= dialect.fixed
    for setting, tensor in dialect.flags.items():
        settings[setting] = (f"blk.0.{tensor.removeprefix('-')}" in names) != tensor.startswith("-")
    family = next((variant for key, variant in dialect.variants.items() if values.get(key)), dialect.family)
    settings |= {"model_type": family, "tie_word_embeddings": "output.weight" not in names}
    if values.get("attention.causal") is False:
        settings["is_causal"] = False
    if "token_embd.weight" in names:
        settings["vocab_size"] = file.shape("token_embd.weight")[0]
    if "token_types.weight" in names:
        settings["type_vocab_size"] = file.shape("token_types.weight")[0]
    if "sliding_window" in settings:  # otherwise the family's default applies
        settings["sliding_window"] = settings["sliding_window"] or None
        if (pattern := values.get("attention.sliding_window_pattern")) is not None:
            settings["layer_types"] = _layer_types(pattern, settings.get("num_hidden_layers"), file.source)
    if dialect.rotary:
        width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
        if type(width) is int and type(heads) is int and heads > 0:
            settings.setdefault("head_dim", width // heads)
            if family in _WIDE_SCORES:
                wide = settings.get("num_hidden_layers") == _WIDE_SCORES[family]
                settings["query_pre_attn_scalar"] = width // heads if wide else settings["head_dim"]
        settings |= _rotary(file, values, settings)
    settings |= {f"{role}_token_id": file.values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return settings


def _layer_types(pattern: Any, depth: Any, source: str) -> list[str]:
    """Return the kinds of layers: whether each has a window, or after how many comes one without."""
    if type(pattern) is int and type(depth) is int and pattern > 0 and 0 < depth <= _MAX_LAYERS:
        pattern = [bool((i + 1) % pattern) for i in range(depth)]
    if not isinstance(pattern, list) or not all(isinstance(item, (bool, int)) for item in pattern):
        raise UserError(f"{source} has the window pattern {str(pattern)[:80]}; it should be a number or one per layer")
    return [llama.SLIDING_ATTENTION if item else llama.FULL_ATTENTION for item in pattern]


def _rotary(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return rope_parameters, and for Phi-3 the length it was first trained on."""
    base = values.get("rope.freq_base", 10000.0)
    original = values.get("rope.scaling.original_context_length")
    trained = {} if original is None else {"original_max_position_embeddings": original}
    parameters = {"rope_theta": base, **_scaling(file, values, settings), **trained}
    size = settings.get("head_dim") or 0
    rotated = values.get("rope.dimension_count")
    if type(rotated) is int and type(size) is int and size > 0:
        parameters["partial_rotary_factor"] = rotated / size
    if settings["model_type"] in _LOCAL_BASES:
        local = values.get("rope.freq_base_swa", _LOCAL_BASES[settings["model_type"]] or base)
        kinds = {llama.FULL_ATTENTION: parameters, llama.SLIDING_ATTENTION: {"rope_theta": local}}
        return {"rope_parameters": kinds}
    return {"rope_parameters": parameters, **trained}


def _scaling(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    context = settings.get("max_position_embeddings")
    if FACTORS in file.names():  # Llama 3.1's scaling as a factor per frequency
        factors = _factors(file, FACTORS)
        parameters = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return {"rope_type": "longrope", "original_max_position_embeddings": context, **parameters}
    if SHORT_FACTORS in file.names() and LONG_FACTORS in file.names():
        parameters = {"short_factor": _factors(file, SHORT_FACTORS), "long_factor": _factors(file, LONG_FACTORS)}
        return {"rope_type": "longrope", "attention_factor": values.get("rope.scaling.attn_factor"), **parameters}
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    kind = values.get("rope.scaling.type", "linear" if factor else "none")  # older files only have a factor
    if kind == "none":
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": factor}


def _factors(file: GgufContents, name: str) -> list[float]:
    count = math.prod(file.shape(name))
    if count > _MAX_FACTORS:
        raise UserError(f"{file.source}: {name} has {count} factors, more than a head has features; get the file again")
    return file.get(name).flatten().tolist()


def load_gguf(path: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> PublishedModel:
    """Load the model in a .gguf file, in evaluation mode, with its weights in `dtype`; quantised ones are dequantised.

    With `dtype` None they get the embedding's dtype if torch has it, otherwise float32. `context` is the longest
    sequence to serve, as for `load_published`. `load_gguf_codec` returns its tokenizer.
    """
    file = GgufFile(Path(path))
    dialect, family, settings, config = _read(file, context)
    weights = ExpertWeights(file)
    table = "token_embd.weight"
    dtype = dtype or (file.kind(table).dtype if table in file.names() else None) or torch.float32
    model = uninitialized_model(config, file.size, file.source, dtype)
    fill(model, dialect.tensor_rules(family, config, weights.names()), weights, dtype)
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
    config: Any


def _read(file: GgufFile, context: int | None) -> _FileMetadata:
    name, dialect = find_dialect(file.values, file.source)
    values = read_values(file, name, dialect)
    family = families()[values["model_type"]]
    settings = Settings({**family.defaults, **values}, file.source, context)
    config: Any = read_config(family, settings, file.names())
    pool = _POOLS.get(str(file.values.get(f"{name}.pooling_type")))
    if pool is not None:
        config = replace(config, heads={**config.heads, HEAD: PooledHeadConfig(pool=pool, unit=True)})
    return _FileMetadata(dialect, family, settings, config)


def load_gguf_codec(path: Path) -> TokenizerCodec | None:
    """Return the tokenizer in a .gguf file; None if it has none. UserError for an unsupported kind."""
    file = GgufFile(Path(path))
    return read_codec(file.values, file.source)


_POOLS: dict[str, Pool] = {"1": "mean", "2": "first", "3": "last"}  # how the vector of a text is made, by pooling_type
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
) -> ExportResult:
    """Write `path`, with the tokenizer if there is one; return the name of the architecture, and the check of the
    written file.

    If all layers have the same window, the context is limited to it, except for architectures whose window is stored.
    `precision` is one of llama.cpp's number formats, or a mixture of them such as Q4_K_M; vectors are written in F32.
    Raises UserError, before anything is written, for a model or tokenizer that GGUF cannot express, and if the disk is
    too small.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}; {nearest(precision, get_args(Precision))}")
    usage = usage or Usage()
    pooling, config = _split_embedding(config)
    family = _find_family(config, usage.family)
    architecture = WRITABLE_FAMILIES[family.name]
    dialect = DIALECTS[architecture]
    assert isinstance(config, TransformerConfig)
    if not dialect.windowed:
        config = _within_window(config)
    tensors = _stack_experts(published_tensors(model, dialect.tensor_rules(family, config)))
    sizes, factors = _sizes(dialect, family, config)
    mixer, experts = llama.attention(config.stack.blocks[0]), sizes.get("expert_count", 0)
    groups = mixer.heads // (mixer.kv_heads or mixer.heads)
    mixture = FormatMixture(precision, len(config.stack.blocks), groups, experts, "output.weight" not in tensors)
    values = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.file_type": gguf().LlamaFileType[f"{'ALL' if precision == 'F32' else 'MOSTLY'}_{precision}"].value,
        "general.quantization_version": _VERSION,
        **{f"{architecture}.{key}": value for key, value in {**sizes, **pooling}.items()},
        **(_NO_TOKENIZER if codec is None else write_codec(codec, config.vocab_size, usage)),
    }
    if "token_types.weight" in tensors:
        values["tokenizer.ggml.token_type_count"] = len(tensors["token_types.weight"])
    draft = FileContents(values, {**tensors, **factors}, str(path))
    if (groups > 1 and not dialect.grouped) or not _is_read_back(draft, dialect, config):
        raise UserError(
            f"GGUF has no settings for some features of this {family.name} model (windows or positions of some layers, "
            "some biases, grouped heads); export it as a folder instead"
        )
    by_name = {kind.name: kind for kind in KINDS.values()}
    kinds = [by_name[mixture.format_of(name, tuple(tensor.shape))] for name, tensor in draft.tensors.items()]
    byte_counts = (tensor.numel() // kind.block * kind.size for tensor, kind in zip(draft.tensors.values(), kinds))
    check_free_disk(path.parent, sum(byte_counts))
    with atomic_write(path, new=True) as draft_path:
        _write(draft, draft_path, kinds)
        with deferred_weights():
            step = max(rounding_step(kind.name) for kind in kinds)
            source: Any = model
            if pooling:  # the check compares the heads that are written
                source = copy(source)
                source.config = replace(source.config, heads={HEAD: source.config.heads[HEAD]})
                source._modules = {**source._modules, "heads": nn.ModuleDict({HEAD: source.heads[HEAD]})}
            return ExportResult(architecture, check_export(source, load_gguf(draft_path).model, step))


def _split_embedding(config: ModelConfig) -> tuple[dict[str, int], ModelConfig]:
    """Return the value for the pooling of a sentence encoder, and its configuration without heads that GGUF lacks."""
    head = config.heads.get(HEAD) if isinstance(config, TransformerConfig) else None
    if head is None or not isinstance(config, TransformerConfig):
        return {}, config
    kinds = {pool: int(number) for number, pool in _POOLS.items()}
    if not isinstance(head, PooledHeadConfig) or head != PooledHeadConfig(pool=head.pool, unit=True):
        raise UserError(f"GGUF stores vectors of unit length without weights, but {HEAD!r} is {head}; export a folder")
    if head.pool not in kinds:
        raise UserError(f"GGUF cannot store vectors of {head.pool}; pool by {', '.join(kinds)}")
    heads = {name: head for name, head in config.heads.items() if name not in (HEAD, "pooled")}
    return {"pooling_type": kinds[head.pool]}, replace(config, heads=heads)


def _is_read_back(draft: FileContents, dialect: Dialect, config: TransformerConfig) -> bool:
    """Whether the file describes the same model; rotary frequencies may be rounded."""
    values = read_values(draft, draft.values["general.architecture"], dialect)
    known = families()[values["model_type"]]
    read_back: Any = known.read(Settings({**known.defaults, **values}, draft.source, config.context), ())
    plain = [resolve_defaults(llama.with_mixers(candidate, rotary=None)) for candidate in (read_back, config)]
    if plain[0] != plain[1]:
        return False
    for block, other in zip(read_back.stack.blocks, config.stack.blocks):
        rotaries = llama.attention(block).rotary, llama.attention(other).rotary
        if None in rotaries:
            if rotaries != (None, None):
                return False
            continue
        head_size = llama.attention(block).head_size or config.width // llama.attention(block).heads
        found, wanted = (Rotary(expect(rotary, RotaryConfig), head_size) for rotary in rotaries)
        same = found.size == wanted.size and torch.allclose(found.frequencies, wanted.frequencies, 1e-6, 0.0)
        if not same or not math.isclose(found.factor, wanted.factor, rel_tol=1e-6):
            return False
    return True


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


def _sizes(dialect: Dialect, family: Family, config: TransformerConfig) -> RotaryValues:
    """Return the values below the architecture's name, and the factors of rotary positions."""
    settings, mixer = family.write(config), llama.attention(config.stack.blocks[0])
    values = {key: settings[setting] for key, setting in dialect.sizes.items() if settings.get(setting) is not None}
    size = mixer.head_size or config.width // mixer.heads
    values = {**dialect.constants, **values}
    values |= {"attention.key_length": size, "attention.value_length": size, "vocab_size": config.vocab_size}
    if not dialect.rotary:
        return RotaryValues(values, {})
    full, local = llama.first_rotary(config), None
    if family.name in _LOCAL_BASES:  # the first layers with and without a window
        for block, window in reversed(list(zip(config.stack.blocks, llama.windows_of(config)))):
            rotary = expect(llama.attention(block).rotary, RotaryConfig)
            full, local = (rotary, local) if window is None else (full, rotary)
    rotary_settings, factors = rotary_values(full, size, dialect)
    if local is not None and family.name == "gemma3_text":  # llama.cpp has one base for OLMo 3
        rotary_settings["rope.freq_base_swa"] = float(local.theta)
    return RotaryValues({**values, **rotary_settings}, factors)


_EXPERT = re.compile(r"(.+_exps)\.(\d+)\.weight")


def _stack_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` with the experts of a layer as one tensor."""
    stacks: dict[str, dict[int, Tensor]] = {}
    for name in list(tensors):
        if (match := _EXPERT.fullmatch(name)) is not None:
            stacks.setdefault(f"{match[1]}.weight", {})[int(match[2])] = tensors.pop(name)
    stacked = {name: combined(torch.stack, [experts[i] for i in sorted(experts)]) for name, experts in stacks.items()}
    return {**tensors, **stacked}


def _write(draft: FileContents, path: Path, kinds: Sequence[NumberFormat]) -> None:
    """Write the tensors one by one, because they may be deferred, each in its number format."""
    package = gguf()
    with closing(package.GGUFWriter(path, draft.values["general.architecture"])) as writer:
        for key, value in draft.values.items():
            if key != "general.architecture":  # already written by the writer
                _add(writer, key, value)
        for (name, tensor), kind in zip(draft.tensors.items(), kinds):
            if kind.dtype is None:
                raw = package.GGMLQuantizationType[kind.name]
                shape = (*tensor.shape[:-1], tensor.shape[-1] // kind.block * kind.size)
                writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=raw)
            else:
                dtype = np.dtype(np.float16 if kind.dtype == torch.float16 else np.float32)
                writer.add_tensor_info(name, tuple(tensor.shape), dtype, tensor.numel() * kind.size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (name, tensor), kind in zip(draft.tensors.items(), kinds):
            values = computed(tensor.detach()).float().contiguous()
            if kind.dtype is not None:
                writer.write_tensor_data(values.to(kind.dtype).numpy())
                continue
            if not values.isfinite().all():
                raise UserError(f"tensor {name} contains NaN or infinity, which {kind.name} cannot store; use f32")
            writer.write_tensor_data(encode(values.numpy(), kind.name))


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
