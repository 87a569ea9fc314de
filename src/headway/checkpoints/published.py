"""Folders in the published format: config.json and safetensors, in one file or in shards. Both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.checkpoints.durable import read_json, write_json, write_tensors
from headway.checkpoints.families import families, find_family
from headway.checkpoints.rules import Family
from headway.checkpoints.settings import Settings
from headway.checkpoints.tensorfile import Shards
from headway.checkpoints.usage import Usage
from headway.checkpoints.weights import Renamed, fill, unfilled
from headway.errors import UserError
from headway.models import ModelConfig, build

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
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
        if path.parent != directory or path.name == "..":
            raise UserError(f"{index} names {str(path)!r}, which is not in its folder; download the model again")
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
        raise UserError(f"{directory / CONFIG} is no mapping of settings; download it again")
    if values.get("auto_map"):
        raise UserError(
            f"{directory / CONFIG} asks for code of its own (auto_map), which is never run; "
            f"use a model of a family that headway knows: {', '.join(sorted(families()))}"
        )
    return Settings(values, str(directory / CONFIG))


def load_published(directory: Path, dtype: torch.dtype | None = torch.float32) -> Published:
    """The model in a folder, in evaluation mode, its weights in `dtype` (None: as stored)."""
    directory = Path(directory)
    settings = read_settings(directory)
    family = find_family(settings)
    settings = Settings({**family.defaults, **settings.values}, settings.source)
    weights = Renamed(open_shards(directory), family)
    config = family.read(settings, weights.names())
    model = build(config, seed=None)
    fill(model, family.rules(config), weights, dtype)
    usage = Usage(family.name, dict(settings.values), **_marks(directory, settings))
    return Published(model.eval(), usage)


def _marks(directory: Path, settings: Settings) -> dict[str, Any]:
    """What config.json and generation_config.json say of begin, end and the rest; the latter has the last word."""
    path = directory / "generation_config.json"
    later = read_json(path) if path.is_file() else {}
    said = Settings({**settings.values, **{k: v for k, v in later.items() if v is not None}}, settings.source)
    ends = said.values.get("eos_token_id")
    labels = settings.part("id2label").values
    start = said.optional("decoder_start_token_id", int)
    forced = said.optional("forced_bos_token_id", int)
    bad = said.values.get("bad_words_ids") or []
    return {
        "begin": said.optional("bos_token_id", int),
        "ends": tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
        "pad": said.optional("pad_token_id", int),
        "decoder_start": start,
        "forced": () if forced is None else (forced,),
        "suppressed": tuple(row[0] for row in bad if len(row) == 1),
        "labels": tuple(str(labels[key]) for key in sorted(labels, key=int)),
    }


def save_published(model: nn.Module, config: ModelConfig, directory: Path, usage: Usage | None = None) -> str:
    """Write config.json and model.safetensors in the format of the model's family; gives the family's name.

    The family is the one it came from or else the first that can say its configuration. UserError where none can.
    """
    usage = usage or Usage()
    family = _fitting(config, usage.family)
    settings = {**usage.settings, **family.write(config), "dtype": _dtype(model)}
    tensors = unfilled(model, family.rules(config))
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / CONFIG, settings)
    write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
    return family.name


def _fitting(config: ModelConfig, name: str) -> Family:
    known = families()
    order = [known[name]] if name in known else list(known.values())
    for family in order:
        if says(family, config):
            return family
    where = f"family {name!r}" if name in known else f"any family ({', '.join(sorted(known))})"
    raise UserError(
        f"this model cannot be said in the published format of {where}; "
        "train one of a preset that has a published form, such as gpt2"
    )


def says(family: Family, config: ModelConfig) -> bool:
    """Whether a family's settings can say all of a configuration."""
    try:
        written = {**family.defaults, **json.loads(json.dumps(family.write(config)))}
        names = {name for each in family.rules(config) for name in each.theirs}
        return family.read(Settings(written, family.name), names) == config
    except (AttributeError, KeyError, IndexError, TypeError, UserError):  # a configuration of another shape
        return False


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
