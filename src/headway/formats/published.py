"""Folders in the published format: config.json and safetensors, in one file or in shards. Both ways, where the same is
computed.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
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
from headway.formats.marks import read_marks, write_marks, written_marks
from headway.formats.native import read_config, undrawn
from headway.formats.rules import Family
from headway.formats.sentence import with_embedding, without_embedding, write_embedding
from headway.formats.settings import Settings
from headway.formats.tensorfile import Shards
from headway.formats.usage import Usage
from headway.formats.weights import Renamed, fill, joined, unfilled
from headway.nn.mixers import AttentionConfig
from headway.nn.models import ActConfig, ModelConfig, TransformerConfig, TwoTowerConfig
from headway.nn.models.kinds import generates
from headway.nn.parts.feedforward import ExpertsConfig, GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.positions import DynamicScaling, LongRopeScaling


def computed(config: Any, width: int = 0) -> Any:
    """`config` with what its defaults mean written out (head size, feed-forward width, ...).

    What only training uses is left at its default: dropout, initialisation (where learned numbers start, too), weights
    of auxiliary losses. No published
    family says all of it, and a trained model computes the same without.
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
    """The fields of one config whose values follow from others."""
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
PROCESSORS = "processor_config.json"  # where newer folders keep those of images and others together
_OTHER_SHAPE = (AttributeError, KeyError, IndexError, TypeError)  # what a family's table raises for another kind
_LONGEST = 255  # bytes of a file's name
_NAMED = 3  # settings that are in the way
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Published(NamedTuple):
    """A model as it was published, and how it wants to be used."""

    model: nn.Module
    usage: Usage


def open_shards(directory: Path) -> Shards:
    """The tensors of a folder, checked in full and mapped: read when used."""
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return Shards([directory / WEIGHTS], str(directory))
    if index.is_file():
        return _indexed(directory, index)
    pickles = [path.name for pattern in _PICKLES for path in directory.glob(pattern)]
    if pickles:
        raise UserError(
            f"{directory} holds its weights as {pickles[0]}, a pickle, which can run code when it is opened; convert "
            "it to safetensors where it came from (save_pretrained of transformers writes them)"
        )
    raise UserError(f"{directory} holds no {WEIGHTS}; give the folder of a published model")


def _indexed(directory: Path, index: Path) -> Shards:
    said = read_json(index)
    names = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; download it again")
    paths = [directory / name for name in sorted(set(names.values()))]
    for path in paths:
        if path.parent != directory or path.name == ".." or len(path.name) > _LONGEST:
            shown = repr(str(path))[: 2 * _LONGEST]
            raise UserError(f"{index} names {shown}, which is no file of its folder; download the model again")
        if not path.is_file():
            raise UserError(f"{directory} lacks the shard {path.name!r} that its index names; download it too")
    shards = Shards(paths, str(directory))
    lost = sorted(names.keys() - shards.names())
    if lost:
        raise UserError(f"{directory}: {names[lost[0]]} lacks tensor {lost[0]!r} of the index; download it again")
    return shards


def read_settings(directory: Path) -> Settings:
    """config.json, checked for what would run code."""
    values = read_json(directory / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{directory / CONFIG} is not a mapping of settings; download it again")
    if values.get("auto_map"):
        raise UserError(
            f"{directory / CONFIG} asks for code of its own (auto_map), which is never run; "
            f"use a model of a family that headway knows: {', '.join(sorted(families()))}"
        )
    return Settings(values, str(directory / CONFIG))


def load_published(directory: Path, dtype: torch.dtype | None = torch.float32, context: int | None = None) -> Published:
    """The model in a folder, in evaluation mode, its weights in `dtype` (None: as stored).

    `context` is the longest sequence it will be asked for, None for the one it was trained on: a model whose rotary
    positions are scaled by the length of the sequence (Phi-3's longrope, dynamic NTK) is made for it.
    """
    directory = Path(directory)
    found = _read(directory, context)
    model = undrawn(with_embedding(found.config, directory), found.shards.size, found.shards.source, dtype)
    fill(model, found.family.rules(found.config), found.weights, dtype)
    marks = read_marks(directory, found.settings)
    template, beside = read_template(directory), found.family.beside
    processor = read_processor(directory) if beside is None else beside.read(directory, found.settings, found.shards)
    usage = Usage(found.family.name, dict(found.settings.values), **marks, template=template, processor=processor)
    return Published(model.eval(), usage)


def read_processor(directory: Path) -> dict[str, Any]:
    """What the folder says of how images become inputs; empty where it says nothing."""
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
    """The configuration of the model in a folder; no weight is read."""
    return with_embedding(_read(Path(directory), None).config, Path(directory))


class _FolderHead(NamedTuple):
    """What a folder says before a weight is read."""

    settings: Settings
    family: Family
    config: ModelConfig
    shards: Shards
    weights: Renamed


def _read(directory: Path, context: int | None) -> _FolderHead:
    settings = read_settings(directory)
    family = find_family(settings)
    settings = Settings({**family.defaults, **settings.values}, settings.source, context)
    shards = open_shards(directory)
    weights = Renamed(shards, family)
    return _FolderHead(settings, family, read_config(family, settings, weights.names()), shards, weights)


def save_published(model: nn.Module, config: ModelConfig, directory: Path, usage: Usage | None = None) -> str:
    """Write config.json and model.safetensors in the format of the model's family; gives the family's name.

    The family is the one it came from or else the first that can say its configuration. UserError where none can.
    """
    usage = usage or Usage()
    bare = without_embedding(config)
    family = _fitting(bare, usage.family)
    kept = {name: value for name, value in usage.settings.items() if name not in ("torch_dtype", *family.older)}
    said = {**kept, **family.write(bare), **written_marks(usage), "dtype": _dtype(model)}
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
    """`settings` with the names of the classes, where there are as many as the model has."""
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
    where = f"the published form of {name}" if name in known else "a form that was published"
    raise UserError(
        f"this model has not {where}: {nearest_form(config, order)}; train one that has, such as those of the recipe "
        "text or of the preset gpt2"
    )


def nearest_form(config: ModelConfig, order: Sequence[Family] = ()) -> str | None:
    """What keeps a configuration from the published form that is nearest to it, in words; None where it has one."""
    near: list[tuple[list[str], str]] = []
    others: Counter[str] = Counter()
    meant = to_dict(computed(config))
    for family in order or families().values():
        try:
            near.append((list(differences(to_dict(_said(family, config)), meant, "model")), family.name))
        except UserError as error:
            others[str(error).partition("; ")[0]] += 1
        except _OTHER_SHAPE:
            others[f"{family.name} is of another kind"] += 1
    if near:
        found, name = min(near, key=lambda one: len(one[0]))
        more = f", and {len(found) - _NAMED} settings more" if len(found) > _NAMED else ""
        return f"in that of {name}, {', '.join(found[:_NAMED])}{more}" if found else None
    return others.most_common(1)[0][0]


def says(family: Family, config: ModelConfig) -> bool:
    """Whether a family's settings can say all that a configuration computes."""
    try:
        return _said(family, config) == computed(config)
    except (*_OTHER_SHAPE, UserError):
        return False


def _said(family: Family, config: ModelConfig) -> Any:
    """What a configuration computes once it was written by a family and read again."""
    written = {**family.defaults, **json.loads(json.dumps(family.write(config)))}
    names = {name for each in family.rules(config) if not each.copy for name in each.theirs}
    return computed(family.read(Settings(written, family.name, getattr(config, "context", None)), names))


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
