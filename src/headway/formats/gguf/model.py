"""Read and write a model and its tokenizer as a .gguf file for llama.cpp and compatible programs.

A file is read as if it were the folder it was made from: values become settings of a config.json, tensors get their
published names, and the family does the rest. Changes that llama.cpp makes are undone here: interleaved rotary pairs
(llama), norms with 1 added (gemma), and transposed linear layers (gpt2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError, nearest
from headway.formats.deferred import computed, deferred_weights
from headway.formats.export_check import ExportResult, check_export
from headway.formats.families import families, llama
from headway.formats.gguf.file import KINDS, GgufFile, NumberFormat, gguf
from headway.formats.gguf.tokens import read_codec, read_special_tokens, write_codec
from headway.formats.llama2c import interleaved
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import PublishedModel, can_express, resolve_defaults
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule
from headway.formats.usage import Usage
from headway.formats.weights import RenamedWeights, fill, published_tensors
from headway.io.durable import atomic_write
from headway.io.outputs import check_free_disk
from headway.nn.models import ModelConfig, TransformerConfig
from headway.nn.parts.positions import Rotary, RotaryConfig
from headway.nn.parts.scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

# Keys below the architecture's name, and the matching settings of a config.json.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
GPT2_SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PHI3_LAYER = {**LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GEMMA2_LAYER = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER_NAME = re.compile(r"(\w+)\.(weight|bias)")
# Factors of rotary frequencies, stored as tensors in GGUF and as settings in config.json.
FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Dialect:
    """One architecture: the `family` it is read as, and its names.

    `interleaved`: rotary pairs of queries and keys are adjacent. `offset`: norms store their scale including the 1 that
    the published tensor omits. `transposed`: layers whose published weight has its inputs in rows.
    """

    family: str
    layers: str = "model.layers"
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    rotary: bool = True
    interleaved: bool = False
    offset: bool = False
    transposed: frozenset[str] = frozenset()

    def published_name(self, name: str) -> str:
        """Return the published name of a tensor; an unknown one keeps its name, which no rule matches."""
        inner, outer = _BLOCK_NAME.fullmatch(name), _OUTER_NAME.fullmatch(name)
        if inner and inner[2] in self.layer:
            return f"{self.layers}.{inner[1]}.{self.layer[inner[2]]}.{inner[3]}"
        if outer and outer[1] in self.outer:
            return f"{self.outer[outer[1]]}.{outer[2]}"
        return name

    def stored_name(self, published: str) -> str:
        """The reverse of `published_name`."""
        stem, _, end = published.rpartition(".")
        for stored, published_stem in self.outer.items():
            if stem == published_stem:
                return f"{stored}.{end}"
        number, _, inner_name = stem.removeprefix(f"{self.layers}.").partition(".")
        for stored, published_stem in self.layer.items():
            if inner_name == published_stem:
                return f"blk.{number}.{stored}.{end}"
        raise UserError(
            f"GGUF has no name for tensor {published!r} of family {self.family}; save it as a folder instead"
        )


DIALECTS = {
    "llama": Dialect("llama", interleaved=True),
    "qwen2": Dialect("qwen2"),
    "qwen3": Dialect("qwen3"),
    "phi3": Dialect("phi3", layer=PHI3_LAYER),
    "gemma": Dialect("gemma", offset=True),
    "gemma2": Dialect("gemma2", layer=GEMMA2_LAYER, offset=True),
    "gemma3": Dialect("gemma3_text", layer=GEMMA2_LAYER, offset=True),
    "gpt2": Dialect(
        "gpt2",
        rotary=False,
        layers="transformer.h",
        sizes=GPT2_SIZES,
        outer=GPT2_OUTER,
        layer=GPT2_LAYER,
        transposed=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
}
# Families that can be written, with their architecture: llama.cpp has Mistral's layers under Llama's name.
WRITABLE_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def find_dialect(values: Mapping[str, Any], source: str) -> tuple[str, Dialect]:
    """Return the architecture that a file names, and its dialect."""
    name = values.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        known = ", ".join(sorted(DIALECTS))
        hint = nearest(str(name), DIALECTS)
        raise UserError(f"{source}: unknown architecture {str(name)[:80]!r}; {hint} (known: {known})")
    return name, DIALECTS[name]


class RotaryValues(NamedTuple):
    values: dict[str, Any]  # below the architecture's name
    tensors: dict[str, Tensor]


def rotary_values(rotary: RotaryConfig, head_size: int) -> RotaryValues:
    """Return values and tensors that express `rotary`. UserError for a scaling that GGUF cannot store."""
    values: dict[str, Any] = {"rope.freq_base": float(rotary.theta)}
    scaling = rotary.scaling
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
        plain = Rotary(RotaryConfig(rotary.theta), head_size).frequencies
        scaled = Rotary(rotary, head_size).frequencies
        return RotaryValues(values, {FACTORS: (plain / scaled).to(torch.float32)})
    raise UserError(f"GGUF cannot store rotary positions scaled by {type(scaling).__name__}; export a folder instead")


_MAX_FACTORS = 1 << 14  # at most half of a head's features
# Gemma's largest models divide their scores by the width over the heads, the others by the size of a head.
_WIDE_SCORES = {"gemma2": 46, "gemma3_text": 62}  # layers in the largest models


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
    if values.get("expert_count"):
        raise UserError(f"{file.source} has {values['expert_count']} experts, which are not supported in GGUF")
    settings: dict[str, Any] = {setting: values[key] for key, setting in dialect.sizes.items() if key in values}
    settings["model_type"] = dialect.family
    settings["tie_word_embeddings"] = "output.weight" not in file.names()
    if "token_embd.weight" in file.names():
        settings["vocab_size"] = file.shape("token_embd.weight")[0]
    if dialect.rotary:
        width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
        sizes = type(width) is int and type(heads) is int and heads > 0
        derived: dict[str, Any] = {}
        if "sliding_window" in settings:  # otherwise the family's default applies
            derived["sliding_window"] = settings["sliding_window"] or None
        if "head_dim" not in settings and sizes:
            derived["head_dim"] = width // heads  # type: ignore[operator]
        family = settings["model_type"]
        if family == "llama":
            derived["attention_bias"] = "blk.0.attn_q.bias" in file.names()
            derived["mlp_bias"] = "blk.0.ffn_gate.bias" in file.names()
            if derived.get("sliding_window") is not None:
                derived["model_type"] = "mistral"
        if family in _WIDE_SCORES and sizes:
            wide = settings.get("num_hidden_layers") == _WIDE_SCORES[family]
            derived["query_pre_attn_scalar"] = width // heads if wide else settings.get("head_dim", width // heads)  # type: ignore[operator]
        settings |= derived
        settings |= _rotary(file, values, settings)
    settings |= {f"{role}_token_id": file.values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return settings


def _rotary(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return rope_parameters, and for Phi-3 the length it was first trained on."""
    base = values.get("rope.freq_base", 10000.0)
    parameters = {"rope_theta": base, **_scaling(file, values, settings)}
    size = settings.get("head_dim") or 0
    rotated = values.get("rope.dimension_count", size)
    if rotated != size and type(rotated) is int and type(size) is int and size > 0:
        parameters["partial_rotary_factor"] = rotated / size
    if settings["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": parameters, "sliding_attention": local}}
    original = values.get("rope.scaling.original_context_length")
    return {"rope_parameters": parameters} | (
        {} if original is None else {"original_max_position_embeddings": original}
    )


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
        if self._dialect.offset and stored_name.endswith("norm.weight"):
            tensor = tensor - 1
        inner = _BLOCK_NAME.fullmatch(stored_name)
        is_transposed = inner is not None and inner[2] in self._dialect.transposed and inner[3] == "weight"
        return tensor.T if is_transposed else tensor

    def done(self, name: str) -> None:
        self._file.done(self._stored_names[name])


def load_gguf(path: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> PublishedModel:
    """Load the model in a .gguf file, in evaluation mode, with its weights in `dtype`; quantised ones are dequantised.

    With `dtype` None they get the embedding's dtype if torch has it, otherwise float32. `context` is the longest
    sequence to serve, as for `load_published`. `load_gguf_codec` returns its tokenizer.
    """
    file = GgufFile(Path(path))
    dialect, family, settings, config, weights = _read(file, context)
    table = "token_embd.weight"
    dtype = dtype or (file.kind(table).dtype if table in file.names() else None) or torch.float32
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


Precision = Literal["F32", "F16", "Q8_0"]
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}
# Largest rounding error of a weight, relative to the largest of its tensor: half a unit in the last of 11 bits, and
# half of one of 127 codes, with a scale in F16.
_STEPS: Mapping[Precision, float] = {"F32": 0.0, "F16": 2.0**-11, "Q8_0": 0.5 / 127 + 2.0**-10}
_WINDOWED = {"mistral"}  # families whose window is stored
_Q8_BLOCK = 32  # numbers that share a scale in Q8_0
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

    If all layers have the same window, the context is limited to it, except for Mistral, whose window is stored.
    Matrices are written in `precision` (Q8_0: rows of complete blocks of 32, other matrices in F16), vectors in F32.
    Raises UserError, before anything is written, for a model or tokenizer that GGUF cannot express, and if the disk is
    too small.
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
    mixer = llama.attention(config.stack.blocks[0])
    head_size = mixer.head_size or config.width // mixer.heads
    sizes = {f"{architecture}.{key}": value for key, value in _sizes(dialect, family.write(config)).items()}
    rotary_settings, factors = rotary_values(llama.first_rotary(config), head_size)
    values = {
        "general.architecture": architecture,
        "general.file_type": _FILE_TYPES[precision],
        "general.quantization_version": _VERSION,
        **sizes,
        **{f"{architecture}.{key}": value for key, value in rotary_settings.items()},
        **(_NO_TOKENIZER if codec is None else write_codec(codec, config.vocab_size, usage)),
    }
    draft = FileContents(values, {**tensors, **factors}, str(path))
    reread_values = read_values(draft, architecture, dialect)
    known = families()[reread_values["model_type"]]
    settings = Settings({**known.defaults, **reread_values}, draft.source, config.context)
    read_back = known.read(settings, ())
    resolved = [resolve_defaults(llama.with_mixers(candidate, rotary=None)) for candidate in (read_back, config)]  # type: ignore[arg-type]
    if resolved[0] != resolved[1]:
        raise UserError(
            f"GGUF has no settings for some features of this {family.name} model (per-layer windows, some biases); "
            "export it as a folder instead"
        )
    with atomic_write(path, new=True) as draft_path:
        _write(draft, draft_path, precision)
        with deferred_weights():
            return ExportResult(architecture, check_export(model, load_gguf(draft_path).model, _STEPS[precision]))


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


def _sizes(dialect: Dialect, settings: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: settings[setting] for key, setting in dialect.sizes.items() if settings.get(setting) is not None}
    size = settings["head_dim"]
    return {
        **values,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "vocab_size": settings["vocab_size"],
    }


def _write(draft: FileContents, path: Path, precision: Precision) -> None:
    """Write the tensors one by one, because they may be deferred."""
    package, size = gguf(), 0
    writer = package.GGUFWriter(path, draft.values["general.architecture"])
    for key, value in draft.values.items():
        if key != "general.architecture":  # already written by the writer
            _add(writer, key, value)
    kinds: list[Any] = []
    for name, tensor in draft.tensors.items():
        kind = _kind(tensor, precision)
        kinds.append(package.GGMLQuantizationType[kind.name])
        tensor_size = tensor.numel() // kind.block * kind.size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor_size, raw_dtype=kinds[-1])
        size += tensor_size
    check_free_disk(path.parent, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(draft.tensors.values(), kinds):
        array = computed(tensor.detach()).float().contiguous().numpy()
        writer.write_tensor_data(package.quants.quantize(array, kind))
    writer.close()


def _kind(tensor: Tensor, precision: Precision) -> NumberFormat:
    """The number format in which a tensor is written."""
    name = "F32" if tensor.dim() < 2 else precision
    name = "F16" if name == "Q8_0" and tensor.shape[-1] % _Q8_BLOCK else name
    return next(kind for kind in KINDS.values() if kind.name == name)


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
