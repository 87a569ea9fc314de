"""Read and write folders in the published format: config.json and safetensors, in one file or in shards. A model is
exported only if the format computes the same outputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.codecs.chat import read_template
from headway.codecs.processor import FILE as PROCESSOR
from headway.config import differences, to_dict
from headway.errors import UserError
from headway.formats.durable import read_json, write_json, write_tensors
from headway.formats.families import families, find_family
from headway.formats.heads import as_classes, with_classes
from headway.formats.native import read_config, undrawn
from headway.formats.rules import Family
from headway.formats.setting_keys import check_fixed, report_unknown, with_aliases
from headway.formats.settings import Settings
from headway.formats.tensorfile import Shards
from headway.formats.usage import THRESHOLDS, Usage
from headway.formats.weights import Renamed, differing_copy, fill, joined, unfilled
from headway.nn.mixers import AttentionConfig
from headway.nn.models import ActConfig, ModelConfig, PooledHeadConfig, TransformerConfig, TwoTowerConfig
from headway.nn.models.kinds import generates
from headway.nn.models.pooled import Pool
from headway.nn.parts.feedforward import ExpertsConfig, GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.scaling import DynamicScaling, LongRopeScaling


def computed(config: Any, width: int = 0) -> Any:
    """Return `config` with all defaults made explicit (head size, feed-forward width, ...).

    Settings that only matter in training are reset to their defaults: dropout, initialisation (including the initial
    values of learned numbers) and the weights of auxiliary losses. No published family stores all of them, and a
    trained model computes the same without them.
    """
    if isinstance(config, Mapping):
        return {name: computed(part, width) for name, part in config.items()}
    if isinstance(config, tuple):
        return tuple(computed(part, width) for part in config)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    if isinstance(config, InitConfig):
        return InitConfig()
    if isinstance(config, (ActConfig, TransformerConfig)):
        width = config.width
    fields = [field.name for field in dataclasses.fields(config)]
    changes = {name: computed(getattr(config, name), width) for name in fields}
    changes |= {name: 0.0 for name in ("dropout", "drop_path") if name in changes}
    return dataclasses.replace(config, **{**changes, **_written_out(config, width)})


def _written_out(config: Any, width: int) -> dict[str, Any]:
    """Return the fields of one config whose values follow from other fields."""
    if isinstance(config, AttentionConfig):
        even = config.heads > 0 and width % config.heads == 0
        size = width // config.heads if config.head_size is None and even else config.head_size
        return {"kv_heads": config.kv_heads or config.heads, "head_size": size, "qkv_bias": _spread(config.qkv_bias)}
    if isinstance(config, (MLPConfig, GatedConfig)):
        hidden = config.hidden if config.hidden is not None else round(config.ratio * width)
        return {"hidden": hidden, "ratio": 0.0}
    if isinstance(config, ExpertsConfig):
        return {"balance": 0.0, "z_loss": 0.0}
    if isinstance(config, TwoTowerConfig):
        return {"scale": 0.0, "bias": None if config.bias is None else 0.0}
    if isinstance(config, (DynamicScaling, LongRopeScaling)):
        return {"length": config.length or config.original}
    return {}


def _spread(biased: bool | tuple[bool, bool, bool]) -> tuple[bool, bool, bool]:
    return (biased, biased, biased) if isinstance(biased, bool) else biased


CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSORS = "processor_config.json"  # newer folders store image and other processors in one file
_OTHER_SHAPE = (AttributeError, KeyError, IndexError, TypeError)  # raised by a family's table for another kind of model
_LONGEST = 255  # bytes of a file name
_NAMED = 3  # differing settings listed in an error
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Published(NamedTuple):
    """A published model and its usage."""

    model: nn.Module
    usage: Usage


def open_shards(directory: Path) -> Shards:
    """Open the tensors of a folder: checked in full, memory-mapped, and read on use."""
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return Shards([directory / WEIGHTS], str(directory))
    if index.is_file():
        return _indexed(directory, index)
    pickles = [path.name for pattern in _PICKLES for path in directory.glob(pattern)]
    if pickles:
        raise UserError(
            f"{directory} stores its weights as {pickles[0]}, a pickle, which can run code when it is loaded; convert "
            "it to safetensors at its source (save_pretrained of transformers writes them)"
        )
    raise UserError(f"{directory} contains no {WEIGHTS}; pass the folder of a published model")


def _indexed(directory: Path, index: Path) -> Shards:
    said = read_json(index)
    names = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; download it again")
    paths = [directory / name for name in sorted(set(names.values()))]
    for path in paths:
        if path.parent != directory or path.name == ".." or len(path.name) > _LONGEST:
            shown = repr(str(path))[: 2 * _LONGEST]
            raise UserError(f"{index} names {shown}, which is not a file in its folder; download the model again")
        if not path.is_file():
            raise UserError(f"{directory} lacks the shard {path.name!r} that its index names; download it too")
    shards = Shards(paths, str(directory))
    lost = sorted(names.keys() - shards.names())
    if lost:
        raise UserError(f"{directory}: {names[lost[0]]} lacks tensor {lost[0]!r} of the index; download it again")
    return shards


def read_settings(directory: Path) -> Settings:
    """Read config.json and refuse settings that would run code."""
    values = read_json(directory / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{directory / CONFIG} is not a mapping of settings; download it again")
    if values.get("auto_map"):
        raise UserError(
            f"{directory / CONFIG} requests custom code (auto_map), which headway never runs; "
            f"use a model of a family that headway knows: {', '.join(sorted(families()))}"
        )
    return Settings(values, str(directory / CONFIG))


def load_published(directory: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> Published:
    """Load the model in a folder, in evaluation mode, with its weights in `dtype` (None: as stored).

    `context` is the longest sequence to serve (None: the trained context). Rotary positions that are scaled by the
    length of the sequence (Phi-3's longrope, dynamic NTK) are built for it.
    """
    directory = Path(directory)
    found = _read(directory, context)
    report_unknown(found.family, found.settings)
    model = undrawn(with_embedding(found.config, directory), found.shards.size, found.shards.source, dtype)
    fill(model, found.family.rules(found.config), found.weights, dtype)
    marks = read_marks(directory, found.settings)
    template, beside = read_template(directory), found.family.beside
    processor = read_processor(directory) if beside is None else beside.read(directory, found.settings, found.shards)
    usage = Usage(found.family.name, dict(found.settings.values), **marks, template=template, processor=processor)
    return Published(model.eval(), usage)


def read_processor(directory: Path) -> dict[str, Any]:
    """Return the folder's image preprocessing settings; empty if it has none."""
    path = directory / PROCESSOR
    if not path.is_file():
        path = directory / PROCESSORS
        if not path.is_file():
            return {}
    values = read_json(path)
    if isinstance(values, dict) and path.name == PROCESSORS:
        values = values.get("image_processor") or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    return values


def published_config(directory: Path) -> ModelConfig:
    """Return the configuration of the model in a folder, without reading weights."""
    return with_embedding(_read(Path(directory), None).config, Path(directory))


class _FolderHead(NamedTuple):
    """Everything known about a folder before its weights are read."""

    settings: Settings
    family: Family
    config: ModelConfig
    shards: Shards
    weights: Renamed


def _read(directory: Path, context: int | None) -> _FolderHead:
    settings = read_settings(directory)
    family = find_family(settings)
    values = with_aliases(family, settings.values)
    settings = Settings({**family.defaults, **values}, settings.source, context)
    check_fixed(family, settings)
    shards = open_shards(directory)
    weights = Renamed(shards, family)
    config = _untied(read_config(family, settings, weights.names()), family, weights)
    return _FolderHead(settings, family, config, shards, weights)


_UNTIED = {"head": "none", "all": "embeddings"}


def _untied(config: Any, family: Family, weights: Renamed) -> Any:
    """Return `config` with an untied head if the file's head differs from the table that it should be tied to, as in
    transformers. UserError if the family has no untied variant.
    """
    try:
        copy = differing_copy(family.rules(config), weights)
    except _OTHER_SHAPE:  # settings that fit no model; `uninitialized_model` reports them
        copy = None
    if copy is None:
        return config
    config = replace(config, tie=_UNTIED.get(config.tie, config.tie))
    rules = family.rules(config)
    if not any(copy in each.theirs and not each.copy for each in rules) or differing_copy(rules, weights) is not None:
        raise UserError(
            f"{weights.source}: {copy} differs from the tensor that it is tied to, which {family.name} models do "
            "not support here; remove it from the file to use the tied tensor"
        )
    return config


def save_published(model: nn.Module, config: ModelConfig, directory: Path, usage: Usage | None = None) -> str:
    """Write config.json and model.safetensors in the format of the model's family; return the family's name.

    Uses the family that the model came from, otherwise the first that can express its configuration. UserError if none
    can.
    """
    usage = usage or Usage()
    bare, model = as_classes(without_embedding(config)), with_classes(model)
    family = _fitting(bare, usage.family)
    kept = {name: value for name, value in usage.settings.items() if name not in ("torch_dtype", *family.older)}
    said = {**kept, **family.write(bare), **written_marks(usage), "dtype": _dtype(model)}
    if usage.thresholds:
        said[THRESHOLDS] = list(usage.thresholds)
    tensors = joined(unfilled(model, family.rules(bare)), family.fused)
    directory.mkdir(parents=True, exist_ok=True)
    if family.beside is not None:
        said = family.beside.write(directory, said, usage.processor)
    write_json(directory / CONFIG, _named(said, usage.labels))
    write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
    write_embedding(config, directory)
    if usage.processor and family.beside is None:
        write_json(directory / PROCESSOR, usage.processor)
    if generates(config):
        write_marks(directory, usage)
    return family.name


def _named(settings: dict[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """Return `settings` with the class names, if their number matches the model's classes."""
    if not labels or len(labels) != len(settings.get("id2label") or {}):
        return settings
    forth, back = {str(i): label for i, label in enumerate(labels)}, {label: i for i, label in enumerate(labels)}
    return {**settings, "id2label": forth, "label2id": back}


def _fitting(config: ModelConfig, name: str) -> Family:
    known = families()
    order = [known[name]] if name in known else list(known.values())
    for family in order:
        if says(family, config):
            return family
    where = f"as a published {name} model" if name in known else "in any published format"
    raise UserError(
        f"this model cannot be saved {where}: {nearest_form(config, order)}; train one that can, such as a model of "
        "the recipe text or the preset gpt2"
    )


def nearest_form(config: ModelConfig, order: Sequence[Family] = ()) -> str | None:
    """Describe what keeps a configuration from the closest published family; None if a family can express it."""
    config = as_classes(config)
    near: list[tuple[list[str], str]] = []
    others: Counter[str] = Counter()
    meant = to_dict(computed(config))
    for family in order or families().values():
        try:
            near.append((list(differences(to_dict(_said(family, config)), meant, "model")), family.name))
        except UserError as error:
            others[str(error).partition("; ")[0]] += 1
        except _OTHER_SHAPE:
            others[f"{family.name} is another kind of model"] += 1
    if near:
        found, name = min(near, key=lambda one: len(one[0]))
        more = f", and {len(found) - _NAMED} more settings" if len(found) > _NAMED else ""
        return f"as {name}, {', '.join(found[:_NAMED])}{more}" if found else None
    return others.most_common(1)[0][0]


def says(family: Family, config: ModelConfig) -> bool:
    """Whether a family's settings can express everything that a configuration computes."""
    try:
        return _said(family, config) == computed(config)
    except (*_OTHER_SHAPE, UserError):
        return False


def _said(family: Family, config: ModelConfig) -> Any:
    """Return what a configuration computes after a family has written it and read it back."""
    written = {**family.defaults, **json.loads(json.dumps(family.write(config)))}
    names = {name for each in family.rules(config) if not each.copy for name in each.theirs}
    return computed(family.read(Settings(written, family.name, config.context), names))


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


# Special tokens of a published model (BOS, EOS, padding, decoder start): read and written.
GENERATION = "generation_config.json"


def read_marks(directory: Path, settings: Settings) -> dict[str, Any]:
    """Return the special tokens of config.json and generation_config.json as fields of Usage; the latter takes
    precedence.
    """
    path = directory / GENERATION
    later = read_json(path) if path.is_file() else {}
    if not isinstance(later, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    said = Settings({**settings.values, **{k: v for k, v in later.items() if v is not None}}, settings.source)
    forced = said.optional("forced_bos_token_id", int)
    bad = said.optional("bad_words_ids", list[list[int]]) or []
    return {
        "generation": later,
        "begin": said.optional("bos_token_id", int),
        "ends": _ends(said),
        "pad": said.optional("pad_token_id", int),
        "decoder_start": said.optional("decoder_start_token_id", int),
        "forced": () if forced is None else (forced,),
        "suppressed": tuple(row[0] for row in bad if len(row) == 1),
        "labels": _labels(settings.part("id2label")),
        "thresholds": tuple(settings.optional(THRESHOLDS, list[float]) or ()),
    }


def _ends(said: Settings) -> tuple[int, ...]:
    """Return the EOS ids; files have one id or a list."""
    if isinstance(said.values.get("eos_token_id"), list):
        return tuple(said.get("eos_token_id", list[int]))
    end = said.optional("eos_token_id", int)
    return () if end is None else (end,)


def _labels(said: Settings) -> tuple[str, ...]:
    """Return the class names in the order of their ids, which JSON stores as strings."""
    try:
        return tuple(str(said.values[key]) for key in sorted(said.values, key=int))
    except (TypeError, ValueError):
        found = str(dict(said.values))
        raise UserError(f"{said.source} is {found:.80}; its keys should be class ids") from None


def written_marks(usage: Usage) -> dict[str, Any]:
    """Return the special tokens of `usage` as settings for config.json."""
    ends = list(usage.ends)
    found = {
        "bos_token_id": usage.begin,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": usage.pad,
        "decoder_start_token_id": usage.decoder_start,
    }
    return {name: value for name, value in found.items() if value is not None}


def write_marks(directory: Path, usage: Usage) -> None:
    """Write generation_config.json for a model that generates; other settings of the original file are kept."""
    settings = {**usage.generation, **written_marks(usage)}
    if usage.forced:
        settings["forced_bos_token_id"] = usage.forced[0]
    if usage.suppressed and "bad_words_ids" not in settings:
        settings["bad_words_ids"] = [[symbol] for symbol in usage.suppressed]
    if settings:
        write_json(directory / GENERATION, settings)


# Sentence encoders: folders in the layout of sentence-transformers, whose vectors are a pooled head of the model.
# modules.json lists the modules after the transformer: 1_Pooling pools the tokens of a text into a vector, 2_Normalize
# scales it to unit length. Neither has weights.
MODULES = "modules.json"
HEAD = "embedding"
_TYPES = "sentence_transformers.models."
_POOLS: dict[str, Pool] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}


def with_embedding(config: ModelConfig, directory: Path) -> ModelConfig:
    """Return `config` with the head "embedding" if the folder is a sentence encoder, otherwise unchanged."""
    path = directory / MODULES
    if not path.is_file() or not isinstance(config, TransformerConfig):
        return config
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UserError(f"{path} is not a list of modules; download it again")
    modules = [Settings(each, str(path)) for each in listed]
    kinds = [module.get("type", str).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path} lists {', '.join(kinds)}, which is not supported; it may be Transformer, Pooling and Normalize"
        )
    folder = modules[1].get("path", str)
    if not folder or Path(folder).name != folder:
        raise UserError(f"{path} has its pooling in {folder!r}, which is not a subfolder; download it again")
    pool = _pool(directory / folder / "config.json")
    head = PooledHeadConfig(pool=pool, unit="Normalize" in kinds)
    return replace(config, heads={**config.heads, HEAD: head})


def _pool(path: Path) -> Pool:
    """Return the pooling mode: newer files name it, older ones have a flag per mode."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    flags = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    modes = [values["pooling_mode"]] if "pooling_mode" in values else [name for name, f in _FLAGS.items() if f in flags]
    if len(modes) != 1 or len(flags) > 1 or modes[0] not in _POOLS:
        raise UserError(
            f"{path} pools by {', '.join(map(str, flags or modes)) or 'nothing'}, which is not supported; "
            f"it may be one of {', '.join(_POOLS)}"
        )
    return _POOLS[modes[0]]


def without_embedding(config: ModelConfig) -> ModelConfig:
    """Return `config` as config.json stores it: the head "embedding" has its own files. UserError if they cannot
    express it.
    """
    if not isinstance(config, TransformerConfig) or HEAD not in config.heads:
        return config
    _mode(config.heads[HEAD])
    return replace(config, heads={name: head for name, head in config.heads.items() if name != HEAD})


def write_embedding(config: ModelConfig, directory: Path) -> None:
    """Write modules.json and its folders if `config` has the head "embedding"."""
    head = config.heads.get(HEAD) if isinstance(config, TransformerConfig) else None
    if not isinstance(config, TransformerConfig) or head is None:
        return
    mode = _mode(head)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    parts += [("2_Normalize", "Normalize")] if isinstance(head, PooledHeadConfig) and head.unit else []
    listed = [{"idx": i, "name": str(i), "path": p, "type": _TYPES + kind} for i, (p, kind) in enumerate(parts)]
    write_json(directory / MODULES, listed)
    pooling: dict[str, Any] = {"word_embedding_dimension": config.width}
    pooling |= {flag: mode == name for name, flag in _FLAGS.items()}
    pooling |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    for path, _ in parts[1:]:
        (directory / path).mkdir(exist_ok=True)
    write_json(directory / "1_Pooling" / "config.json", pooling)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": config.context})


def _mode(head: object) -> str:
    """Return the published name of the head's pooling. UserError for a head with weights, which the layout cannot
    store.
    """
    if isinstance(head, PooledHeadConfig):
        for mode, pool in _POOLS.items():
            if head == PooledHeadConfig(pool=pool, unit=head.unit):
                return mode
    raise UserError(
        f"the head {HEAD!r} is {head}, which the layout of sentence-transformers cannot express; "
        f"pool by {', '.join(_POOLS)}, without weights"
    )
