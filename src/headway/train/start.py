"""A run that begins from the weights of another run or of a published model, its tokenizer included."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.checkpoints.hub import find_folder
from headway.checkpoints.native import FILE, load_model, named_tensors, save_model
from headway.checkpoints.open import Opened, open_model
from headway.checkpoints.usage import ROBOT, SCALES, SERIES
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import override
from headway.errors import ConfigError, UserError
from headway.models import (
    ActConfig,
    CaptionerConfig,
    EncoderDecoderConfig,
    ModelConfig,
    PatchEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    build,
)
from headway.models.block import BlockConfig
from headway.models.patches import Grid, resized
from headway.train.freezing import prepared
from headway.train.recipe import Recipe

_SETTINGS = ("width", "context", "symbols")  # those that decide the shapes of weights
_NAMED = 3  # tensors that a message names
_POSITIONS = "embed.positions.table"  # of images
_POOLER = re.compile(r"heads\.\w+\.dense\.(weight|bias)")


class Agreement(NamedTuple):
    """Which tensors of a model come from its start, and which are newly initialised, by name; and the grids of images,
    there and here, between which positions are interpolated.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    grids: tuple[Grid, Grid] | None = None

    def __str__(self) -> str:
        moved = ""
        if self.grids is not None:
            before, after = (f"{rows} x {columns}" for rows, columns in self.grids)
            moved = f"; positions of {before} patches are interpolated for {after}"
        if not self.fresh:
            return f"all {len(self.taken)} tensors are taken over{moved}"
        shown = ", ".join(self.fresh[:_NAMED]) + (", ..." if len(self.fresh) > _NAMED else "")
        total = len(self.taken) + len(self.fresh)
        return f"{len(self.taken)} of {total} tensors are taken over, newly initialised: {shown}{moved}"


def open_start(start: str) -> Opened:
    """The model to begin from. Raises UserError for one whose symbols have no tokenizer that says what they are."""
    opened = open_model(find_folder(start))
    symbols = _symbols(opened.model.config)
    if symbols and opened.codec is None:
        raise UserError(f"{start} has no tokenizer beside its weights; put its tokenizer.json there to start from it")
    return opened


def lay_out(opened: Opened, start: str, directory: Path) -> None:
    """Put what the start knows beside its weights (tokenizers, usage, scales) into `directory`, for a task."""
    if opened.codec is not None:
        opened.codec.save(directory)
    for file in find_folder(start).glob(f"*/{TOKENIZER}"):  # the source's own, of a model that translates
        (directory / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, directory / file.parent.name / TOKENIZER)
    opened.usage.save(directory)
    for name in (SCALES, ROBOT, SERIES):
        if (find_folder(start) / name).is_file():
            shutil.copyfile(find_folder(start) / name, directory / name)


def keep_symbols(model: ModelConfig, before: ModelConfig) -> ModelConfig:
    """`model`, with no fewer symbols than `before`: published tables are often longer than their tokenizers."""
    if isinstance(model, EncoderDecoderConfig) and isinstance(before, EncoderDecoderConfig):
        encoder = keep_symbols(model.encoder, before.encoder)
        decoder = keep_symbols(model.decoder, before.decoder)
        return replace(model, encoder=encoder, decoder=decoder)  # type: ignore[arg-type]
    most = max(_symbols(model), _symbols(before))
    return override(model, {"symbols": most}) if most > _symbols(model) else model


def agree(config: ModelConfig, start: nn.Module, name: str) -> Agreement:
    """What a model of `config` takes over from `start`, by name and shape. Nothing is allocated.

    Heads may differ, as a task brings its own, and layers may be more or fewer; images may have another size. Raises
    ConfigError for settings that the weights do not fit, and for a model that has nothing of the start's.
    """
    own, theirs = _shapes(config), dict(named_tensors(start))
    before: Any = start.config
    grids = _grids(config, before)
    taken = tuple(_sources(own, theirs)) + ((_POSITIONS,) if grids is not None else ())
    fresh = tuple(key for key in own if key not in taken)
    for key in fresh:
        if key in theirs and not _in_head(key):
            raise ConfigError(_misfit(config, before, key, own[key], theirs[key].shape, name))
    if all(_in_head(key) for key in taken):
        raise ConfigError(
            f"no weight of {name} ({type(before).__name__}) agrees with this model ({type(config).__name__}) in name "
            "and shape; start from a model of the same architecture"
        )
    _check_heads(config, before, name)
    return Agreement(taken, fresh, grids)


@torch.no_grad()
def take_over(model: nn.Module, start: nn.Module) -> None:
    """Copy the weights of `start` that agree with the model's in name and shape, or by another grid of images."""
    own, theirs = dict(named_tensors(model)), dict(named_tensors(start))
    for key, source in _sources({key: tensor.shape for key, tensor in own.items()}, theirs).items():
        own[key].copy_(theirs[source])
    grids = _grids(model.config, start.config)
    if grids is not None:
        front = own[_POSITIONS].shape[0] - grids[1][0] * grids[1][1]
        patches = resized(theirs[_POSITIONS][front:].float(), *grids)
        own[_POSITIONS].copy_(torch.cat([theirs[_POSITIONS][:front], patches]))


def initial_model(recipe: Recipe, fresh: Collection[str], base: Path, begun: bool, keeps: bool) -> nn.Module:
    """The model of a run before its first step: drawn, with the weights of the start and of the models that its parts
    start from, with its adapter, and frozen where it is not trained.

    With an adapter the run needs the weights that stay as they are to go on: the process that `keeps` files leaves
    them in the folder `base`. Without one a run that has `begun` has all in its checkpoint.
    """
    train = recipe.train
    if recipe.adapter is not None and (base / FILE).is_file():
        return prepared(load_model(base), recipe, fresh)
    model = build(recipe.model, train.seed)
    if not begun:
        if recipe.start is not None:
            take_over(model, open_start(recipe.start).model)
        for part, start in recipe.task.starts().items():
            take_over(model.get_submodule(part), start.open())
    if recipe.adapter is not None and keeps:
        save_model(model, recipe.model, base)
    return prepared(model, recipe, fresh)


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = build(config, seed=None)
    return {key: tensor.shape for key, tensor in named_tensors(model)}


def _sources(own: dict[str, torch.Size], theirs: dict[str, Tensor]) -> dict[str, str]:
    """Which tensor of the start each of ours comes from.

    A pooler (Devlin et al. 2019) is the dense layer of whichever head it stands in, there and here.
    """
    poolers = {key.split(".", 2)[2]: key for key in theirs if _POOLER.fullmatch(key)}
    found = {}
    for key, shape in own.items():
        source = key if key in theirs or not _POOLER.fullmatch(key) else poolers.get(key.split(".", 2)[2], key)
        if source in theirs and theirs[source].shape == shape:
            found[key] = source
    return found


def _grids(config: Any, before: Any) -> tuple[Grid, Grid] | None:
    """The grids of patches there and here, of two models that read images and differ in nothing else of positions."""
    if not (isinstance(config, TransformerConfig) and isinstance(before, TransformerConfig)):
        return None
    here, there = config.embed, before.embed
    if not (isinstance(here, PatchEmbedConfig) and isinstance(there, PatchEmbedConfig)):
        return None
    grids = there.grid(there.size), here.grid(here.size)
    same = config.width == before.width and here.tokens == there.tokens and grids[0] != grids[1]
    return grids if same else None


def _in_head(key: str) -> bool:
    return "heads" in key.split(".")


def _symbols(config: Any) -> int:
    return getattr(config, "symbols", 0)


def _misfit(config: Any, before: Any, key: str, own: torch.Size, theirs: torch.Size, name: str) -> str:
    """The setting, or else the tensor, that does not fit the weights."""
    for setting in _SETTINGS:
        wanted, found = getattr(config, setting, None), getattr(before, setting, None)
        if wanted != found and (wanted or 0) in own and (found or 0) in theirs:
            return f"model.{setting} {wanted} does not fit the weights of {name}, which have {found}; leave it out"
    return (
        f"the model's {key} has shape {tuple(own)}, that of {name} {tuple(theirs)}; "
        "leave out the settings that change the model's shape"
    )


def _check_heads(config: Any, before: Any, name: str) -> None:
    """Other heads over the same weights would be another function, though no shape tells."""
    for own, theirs in zip(_blocks(config), _blocks(before)):
        for part in ("mixer", "cross"):
            for setting in ("heads", "kv_heads"):
                wanted, found = (getattr(getattr(block, part), setting, None) for block in (own, theirs))
                if None not in (wanted, found) and wanted != found:
                    raise ConfigError(f"{setting} {wanted} does not fit {name}, which has {found}; leave it out")


def _blocks(config: Any) -> Iterator[BlockConfig]:
    if isinstance(config, TransformerConfig):
        yield from config.stack.blocks
    elif isinstance(config, EncoderDecoderConfig):
        yield from (*config.encoder.stack.blocks, *config.decoder.stack.blocks)
    elif isinstance(config, TwoTowerConfig):
        yield from (*config.left.stack.blocks, *config.right.stack.blocks)
    elif isinstance(config, CaptionerConfig):
        yield from (*config.tower.stack.blocks, *config.decoder.stack.blocks)
    elif isinstance(config, ActConfig):
        yield from (*config.encoder.blocks, *config.decoder.blocks, *config.posterior.blocks)
