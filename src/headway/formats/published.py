"""Read and write folders in the published format: config.json and safetensors, in one file or in shards. A model is
exported only if the format computes the same outputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from headway.codecs.chat_template import read_template
from headway.codecs.image_processor import FILE as PROCESSOR
from headway.config import differences, to_dict
from headway.errors import UserError, logger
from headway.formats.deferred import deferred_weights, is_deferring
from headway.formats.families import families, find_family, text_part
from headway.formats.heads import head_tensors, to_classes_config, to_classes_model
from headway.formats.native import read_config, total_bytes, uninitialized_model
from headway.formats.quantization import QUANTIZATION, QuantizedWeights, Scheme, find_scheme
from headway.formats.sentence_transformers import (
    HEAD,
    attach_modules,
    check_embedding,
    read_modules,
    read_sentence_usage,
    reranker_template,
    usage_settings,
    with_modules,
    write_modules,
)
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, check_fixed, expect, report_unknown, with_aliases
from headway.formats.tensorfile import Shards, SizedWeights, TensorFile, write_tensors
from headway.formats.torch_file import TorchFile
from headway.formats.usage import THRESHOLDS, Usage
from headway.formats.weights import RenamedWeights, fill, find_differing_copy, fuse_tensors, published_tensors
from headway.io.durable import read_json, write_json
from headway.io.outputs import check_free_disk
from headway.nn.mixers import AttentionConfig
from headway.nn.models import ActConfig, ModelConfig, PooledHeadConfig, TransformerConfig, TwoTowerConfig
from headway.nn.models.kinds import generates
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.scaling import DynamicScaling, LongRopeScaling


def resolve_defaults(config: Any, width: int = 0) -> Any:
    """Return `config` with all defaults made explicit (head size, feed-forward width, ...).

    Settings that only matter in training are reset to their defaults: dropout, initialisation (including the initial
    values of learned numbers) and the weights of auxiliary losses. No published family stores all of them, and a
    trained model computes the same without them.
    """
    if isinstance(config, Mapping):
        return {name: resolve_defaults(part, width) for name, part in config.items()}
    if isinstance(config, tuple):
        return tuple(resolve_defaults(part, width) for part in config)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    if isinstance(config, InitConfig):
        return InitConfig()
    if isinstance(config, (ActConfig, TransformerConfig)):
        width = config.width
    fields = [field.name for field in dataclasses.fields(config)]
    changes = {name: resolve_defaults(getattr(config, name), width) for name in fields}
    changes |= {name: 0.0 for name in ("dropout", "drop_path") if name in changes}
    if isinstance(config, TransformerConfig) and "vocabulary" not in config.heads:
        changes["tie"] = "none"  # nothing is tied
    if isinstance(config, AttentionConfig):
        even = config.heads > 0 and width % config.heads == 0
        changes["kv_heads"] = config.kv_heads or config.heads
        changes["head_size"] = width // config.heads if config.head_size is None and even else config.head_size
        changes["qkv_bias"] = (config.qkv_bias,) * 3 if isinstance(config.qkv_bias, bool) else config.qkv_bias
    elif isinstance(config, (MLPConfig, GatedConfig)):
        hidden = config.hidden if config.hidden is not None else round(config.ratio * width)
        changes |= {"hidden": hidden, "ratio": 0.0}
        if isinstance(config, GatedConfig):
            changes["down_bias"] = config.bias if config.down_bias is None else config.down_bias
    elif isinstance(config, ExpertsConfig):
        changes |= {"balance": 0.0, "z_loss": 0.0}
    elif isinstance(config, TwoTowerConfig):
        changes |= {"scale": 0.0, "bias": None if config.bias is None else 0.0}
    elif isinstance(config, (DynamicScaling, LongRopeScaling)):
        changes["length"] = config.length or config.original
    return dataclasses.replace(config, **changes)


_LOG = logger(__name__)
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WEIGHT_FILES = ((WEIGHTS, INDEX, TensorFile), (TORCH_WEIGHTS, TORCH_INDEX, TorchFile))  # the first that exists is read
PROCESSORS = "processor_config.json"  # newer folders store image and other processors in one file
_MISMATCH_ERRORS = (AttributeError, KeyError, IndexError, TypeError)  # from a family's table for another kind of model
_MAX_NAME_BYTES = 255  # bytes of a file name
_MAX_LAYERS = 1000  # of a model without weights
_SHARD_BYTES = 5 * 10**9  # bytes of tensors in a written file, as in transformers 4
_MAX_DIFFERENCES = 3  # differing settings listed in an error


class PublishedModel(NamedTuple):
    """A published model and its usage."""

    model: nn.Module
    usage: Usage


def open_shards(directory: Path) -> Shards:
    """Open the tensors of a folder: checked in full, memory-mapped, and read on use. Safetensors come first; files of
    torch.save are read without running what they contain.
    """
    for whole, index, opener in _WEIGHT_FILES:
        if (directory / whole).is_file():
            return Shards([directory / whole], str(directory), opener)
        if (directory / index).is_file():
            return _open_index(directory, directory / index, opener)
    raise UserError(f"{directory} contains neither {WEIGHTS} nor {TORCH_WEIGHTS}; pass the folder of a published model")


def _open_index(directory: Path, index: Path, opener: Callable[[Path], SizedWeights]) -> Shards:
    index_data = read_json(index)
    names = index_data.get("weight_map") if isinstance(index_data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; download it again")
    paths = [directory / name for name in sorted(set(names.values()))]
    for path in paths:
        if path.parent != directory or path.name == ".." or len(path.name) > _MAX_NAME_BYTES:
            quoted = repr(str(path))[: 2 * _MAX_NAME_BYTES]
            raise UserError(f"{index} names {quoted}, which is not a file in its folder; download the model again")
        if not path.is_file():
            raise UserError(f"{directory} lacks the shard {path.name!r} that its index names; download it too")
    shards = Shards(paths, str(directory), opener)
    missing = sorted(names.keys() - shards.names())
    if missing:
        raise UserError(f"{directory}: {names[missing[0]]} lacks tensor {missing[0]!r} of the index; download it again")
    return shards


def _read_mapping(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    return values


def read_settings(directory: Path) -> Settings:
    """Read config.json. Code that the folder brings along (auto_map) is never run: the model has to belong to a known
    family, and its tensors have to fit.
    """
    values = _read_mapping(directory / CONFIG)
    if values.get("auto_map"):
        if values.get("model_type") not in families():
            raise UserError(
                f"{directory / CONFIG} requests custom code (auto_map), which headway never runs; "
                f"use a model of a family that headway knows: {', '.join(sorted(families()))}"
            )
        _LOG.info(f"{directory} brings its own code (auto_map), which was not run")
    return Settings(values, str(directory / CONFIG))


def load_published(
    directory: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None
) -> PublishedModel:
    """Load the model in a folder, in evaluation mode, with its weights in `dtype` (None: as stored).

    `context` is the longest sequence to serve (None: the trained context). Rotary positions that are scaled by the
    length of the sequence (Phi-3's longrope, dynamic NTK) are built for it.
    """
    directory = Path(directory)
    metadata = _read(directory, context)
    modules = read_modules(directory)
    config = with_modules(metadata.config, metadata.settings, modules)
    if metadata.scheme is not None and is_deferring():
        dtype = dtype or torch.float32  # of decoded matrices, which are not decoded to find out
    model = uninitialized_model(metadata.config, metadata.shards.size, metadata.shards.source, dtype)
    fill(model, metadata.family.rules(metadata.config), metadata.weights, dtype)
    attach_modules(model, config, metadata.settings, modules, dtype)
    report_unknown(metadata.family, metadata.settings)  # last, because an error would be more important
    special_tokens = read_special_tokens(directory, metadata.settings)
    template = reranker_template(read_template(directory), config, metadata.settings, modules)
    processor_files = metadata.family.processor_files
    processor = (
        read_processor(directory)
        if processor_files is None
        else processor_files.read(directory, metadata.settings, metadata.shards)
    )
    usage = Usage(
        metadata.family.name,
        usage_settings(dict(metadata.settings.values), directory),
        **special_tokens,
        template=template,
        processor=processor,
        sentence=read_sentence_usage(modules),
    )
    return PublishedModel(model.eval(), usage)


def read_processor(directory: Path) -> dict[str, Any]:
    """Return the folder's image preprocessing settings; empty if it has none."""
    if (directory / PROCESSOR).is_file():
        return _read_mapping(directory / PROCESSOR)
    path = directory / PROCESSORS
    values = (_read_mapping(path).get("image_processor") or {}) if path.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    return values


def published_config(directory: Path) -> ModelConfig:
    """Return the configuration of the model in a folder, without reading weights."""
    metadata = _read(Path(directory), None)
    return with_modules(metadata.config, metadata.settings, read_modules(Path(directory)))


def described_config(directory: Path) -> ModelConfig:
    """Return the configuration that a folder describes. Files of weights have to fit, but are not read. Without them,
    the heads are those of the class that config.json names.
    """
    if any((directory / name).is_file() for whole, index, _ in _WEIGHT_FILES for name in (whole, index)):
        with deferred_weights():
            return cast(ModelConfig, load_published(directory, None).model.config)
    settings, family, _ = _read_family(directory, None)
    config = read_config(family, settings, head_tensors(settings), _MAX_LAYERS)
    return with_modules(config, settings, read_modules(directory))


class _FolderMetadata(NamedTuple):
    """Everything known about a folder before its weights are read."""

    settings: Settings
    family: Family
    config: ModelConfig
    shards: Shards
    weights: RenamedWeights
    scheme: Scheme | None


def _read_family(directory: Path, context: int | None) -> tuple[Settings, Family, Scheme | None]:
    """The settings, without those of quantisation, the family, and how the weights are quantised."""
    settings = read_settings(directory)
    scheme = find_scheme(settings)
    if scheme is not None:
        plain = {name: value for name, value in settings.values.items() if name not in QUANTIZATION}
        settings = Settings(plain, settings.source)
    family, part = find_family(settings), text_part(settings)
    if part is not settings:
        _LOG.warning(f"{directory} is a {settings.get('model_type', str)} model; its text part is used without images")
        settings = part
    values = with_aliases(family, settings.values)
    settings = Settings({**family.defaults, **values}, settings.source, context)
    check_fixed(family, settings)
    return settings, family, scheme


def _read(directory: Path, context: int | None) -> _FolderMetadata:
    settings, family, scheme = _read_family(directory, context)
    shards = open_shards(directory)
    weights = RenamedWeights(shards if scheme is None else QuantizedWeights(shards, scheme), family)
    config = _untie_if_different(read_config(family, settings, weights.names()), family, weights)
    return _FolderMetadata(settings, family, config, shards, weights, scheme)


_UNTIED = {"head": "none", "all": "embeddings"}


def _untie_if_different(config: Any, family: Family, weights: RenamedWeights) -> Any:
    """Return `config` with an untied head if the file's head differs from the table that it should be tied to, as in
    transformers. UserError if the family has no untied variant.
    """
    try:
        copy = find_differing_copy(family.rules(config), weights)
    except _MISMATCH_ERRORS:  # settings that fit no model; `uninitialized_model` reports them
        copy = None
    if copy is None:
        return config
    config = replace(config, tie=_UNTIED.get(config.tie, config.tie))
    rules = family.rules(config)
    if (
        not any(copy in rule.sources and not rule.is_copy for rule in rules)
        or find_differing_copy(rules, weights) is not None
    ):
        raise UserError(
            f"{weights.source}: {copy} differs from the tensor that it is tied to, which {family.name} models do "
            "not support here; remove it from the file to use the tied tensor"
        )
    return config


def save_published(model: nn.Module, config: ModelConfig, directory: Path, usage: Usage | None = None) -> str:
    """Write config.json and safetensors, in shards of 5 GB, in the format of the model's family; return its name.

    Uses the family that the model came from, otherwise the first that can express its configuration. UserError if none
    can, and if the disk is too small.
    """
    usage = usage or Usage()
    bare = config  # as config.json stores it: the head "embedding" has its own files
    if isinstance(config, TransformerConfig) and HEAD in config.heads:
        check_embedding(config)
        bare = replace(config, heads={name: head for name, head in config.heads.items() if name != HEAD})
    bare, model = to_classes_config(bare), to_classes_model(model)
    family = _find_family(bare, usage.family)
    original_settings = {
        name: value for name, value in usage.settings.items() if name not in ("torch_dtype", *family.older)
    }
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    settings = {**original_settings, **family.write(bare), **special_token_settings(usage), "dtype": dtype}
    if usage.thresholds:
        settings[THRESHOLDS] = list(usage.thresholds)
    tensors = fuse_tensors(published_tensors(model, family.rules(bare)), family)
    directory.mkdir(parents=True, exist_ok=True)
    check_free_disk(directory.parent, total_bytes(tensors.values()))
    if family.processor_files is not None:
        settings = family.processor_files.write(directory, settings, usage.processor)
    if usage.labels and len(usage.labels) == len(settings.get("id2label") or {}):
        settings["id2label"] = {str(i): label for i, label in enumerate(usage.labels)}
        settings["label2id"] = {label: i for i, label in enumerate(usage.labels)}
    write_json(directory / CONFIG, settings)
    _write_weights(directory, tensors)
    write_modules(model, config, directory, usage.sentence)
    if usage.processor and family.processor_files is None:
        write_json(directory / PROCESSOR, usage.processor)
    if generates(config):
        generation = {**usage.generation, **special_token_settings(usage)}
        if usage.forced:
            generation["forced_bos_token_id"] = usage.forced[0]
        if usage.suppressed and "bad_words_ids" not in generation:
            generation["bad_words_ids"] = [[token] for token in usage.suppressed]
        if generation:
            write_json(directory / GENERATION, generation)
    return family.name


def _write_weights(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file or, for more than `_SHARD_BYTES`, shards with an index, in the order of the tensors."""
    shards = [dict[str, Tensor]()]
    for name, tensor in tensors.items():
        if shards[-1] and total_bytes([*shards[-1].values(), tensor]) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names if len(shards) > 1 else [WEIGHTS], shards):
        write_tensors(directory / name, shard, {"format": "pt"})
    if len(shards) > 1:
        files = {name: file for file, shard in zip(names, shards) for name in shard}
        total = {"total_size": total_bytes(tensors.values())}
        write_json(directory / INDEX, {"metadata": total, "weight_map": files})


def _find_family(config: ModelConfig, name: str) -> Family:
    known = families()
    order = [known[name]] if name in known else list(known.values())
    for family in order:
        if can_express(family, config):
            return family
    format_name = f"as a published {name} model" if name in known else "in any published format"
    raise UserError(
        f"this model cannot be saved {format_name}: {nearest_family(config, order)}; train one that can, such as a "
        "model of "
        "the text recipe or the preset gpt2"
    )


def nearest_family(config: ModelConfig, order: Sequence[Family] = ()) -> str | None:
    """Describe what keeps a configuration from the closest published family; None if a family can express it."""
    config = to_classes_config(config)
    candidates: list[tuple[list[str], str]] = []
    failures: Counter[str] = Counter()
    resolved = to_dict(resolve_defaults(config))
    for family in order or families().values():
        try:
            candidates.append((list(differences(to_dict(_round_trip(family, config)), resolved, "model")), family.name))
        except UserError as error:
            failures[str(error).partition("; ")[0]] += 1
        except _MISMATCH_ERRORS:
            failures[f"{family.name} is another kind of model"] += 1
    if candidates:
        mismatches, name = min(candidates, key=lambda candidate: len(candidate[0]))
        more = f", and {len(mismatches) - _MAX_DIFFERENCES} more settings" if len(mismatches) > _MAX_DIFFERENCES else ""
        return f"as {name}, {', '.join(mismatches[:_MAX_DIFFERENCES])}{more}" if mismatches else None
    return failures.most_common(1)[0][0]


def can_express(family: Family, config: ModelConfig) -> bool:
    """Whether a family's settings can express everything that a configuration computes."""
    try:
        return _round_trip(family, config) == resolve_defaults(config)
    except (*_MISMATCH_ERRORS, UserError):
        return False


def _round_trip(family: Family, config: ModelConfig) -> Any:
    """Return what a configuration computes after a family has written it and read it back."""
    settings = {**family.defaults, **json.loads(json.dumps(family.write(config)))}
    tensor_names = {name for rule in family.rules(config) if not rule.is_copy for name in rule.sources}
    return resolve_defaults(family.read(Settings(settings, family.name, config.context), tensor_names))


def classification_head(config: ModelConfig, name: str) -> PooledHeadConfig | None:
    """Return the head for the classes of texts that the published family of this name has; None if it has none."""
    family = families().get(name)
    if family is None:
        return None
    try:
        values = {**family.defaults, **family.write(config), "architectures": ["ForSequenceClassification"]}
        settings = Settings(values, name, config.context)
        head = expect(family.read(settings, head_tensors(settings)), TransformerConfig).heads.get("classes")
    except (*_MISMATCH_ERRORS, UserError):
        return None
    return head if isinstance(head, PooledHeadConfig) else None


# Special tokens of a published model (BOS, EOS, padding, decoder start): read and written.
GENERATION = "generation_config.json"


def read_generation(directory: Path) -> dict[str, Any]:
    """The generation_config.json of a published model; empty if there is none."""
    path = directory / GENERATION
    return _read_mapping(path) if path.is_file() else {}


def read_special_tokens(directory: Path, settings: Settings) -> dict[str, Any]:
    """Return the special tokens of config.json and generation_config.json as fields of Usage; the latter takes
    precedence.
    """
    generation = read_generation(directory)
    merged = Settings({**settings.values, **{k: v for k, v in generation.items() if v is not None}}, settings.source)
    forced = merged.optional("forced_bos_token_id", int)
    bad_words = merged.optional("bad_words_ids", list[list[int]]) or []
    if isinstance(merged.values.get("eos_token_id"), list):
        ends = tuple(merged.get("eos_token_id", list[int]))
    else:
        eos = merged.optional("eos_token_id", int)
        ends = () if eos is None else (eos,)
    labels = settings.part("id2label")
    try:  # in the order of their ids, which JSON stores as strings
        names = tuple(str(labels.values[key]) for key in sorted(labels.values, key=int))
    except (TypeError, ValueError):
        raise UserError(f"{labels.source} is {dict(labels.values)!s:.80}; its keys should be class ids") from None
    return {
        "generation": generation,
        "begin": merged.optional("bos_token_id", int),
        "ends": ends,
        "pad": merged.optional("pad_token_id", int),
        "decoder_start": merged.optional("decoder_start_token_id", int),
        "forced": () if forced is None else (forced,),
        "suppressed": tuple(row[0] for row in bad_words if len(row) == 1),
        "labels": names,
        "thresholds": tuple(settings.optional(THRESHOLDS, list[float]) or ()),
    }


def special_token_settings(usage: Usage) -> dict[str, Any]:
    """Return the special tokens of `usage` as settings for config.json."""
    eos_ids = list(usage.ends)
    settings = {
        "bos_token_id": usage.begin,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "pad_token_id": usage.pad,
        "decoder_start_token_id": usage.decoder_start,
    }
    return {name: value for name, value in settings.items() if value is not None}
