"""Fine-tuning: initialise a run from the weights of another model, and choose its settings."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import override
from headway.errors import ConfigError, UserError, nearest
from headway.formats.heads import NUMBER
from headway.formats.hub import named_folder
from headway.formats.native import FILE, load_model, named_tensors, save_model
from headway.formats.open import Opened, open_model
from headway.learn.adapters import AdapterConfig, adapted
from headway.learn.recipe import Recipe
from headway.learn.scale import Pace, Settings, digits, span
from headway.learn.task import Task
from headway.nn.models import (
    ActConfig,
    CaptionerConfig,
    EncoderDecoderConfig,
    ModelConfig,
    PatchEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    build,
    kinds,
)
from headway.nn.models.block import BlockConfig
from headway.nn.models.patches import Grid, resized


def prepared(model: nn.Module, recipe: Recipe, fresh: Collection[str]) -> nn.Module:
    """`model` as the recipe trains it: with its adapter and the trainable parameters `fresh`, and with the parts of
    `train.frozen` frozen.
    """
    return freeze(adapted(model, recipe.adapter, fresh, recipe.train.seed), recipe.train.frozen)


def freeze(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Freeze the parameters that `names` match: parts of the model ("tower", "decoder.stack"), parameters, or patterns
    of either ("*.bias"). ConfigError for a name without a match.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        meant = [p for key, p in parameters.items() if any(fnmatchcase(part, name) for part in _parts(key))]
        if not meant:
            known = nearest(name, sorted({part for key in parameters for part in _parts(key)}))
            raise ConfigError(f"train.frozen: the model has no part {name!r}; {known}")
        for parameter in meant:
            parameter.requires_grad_(False)
    return model


def _parts(key: str) -> Iterable[str]:
    """The parts of the model that contain a parameter, and the parameter itself: decoder, decoder.stack, ..."""
    words = key.split(".")
    return (".".join(words[:count]) for count in range(1, len(words) + 1))


_SETTINGS = ("width", "context", "symbols")  # settings that determine the shapes of weights
_NAMED = 3  # maximum tensors that a message names
_POSITIONS = "embed.positions.table"  # position embeddings of images
_POOLER = re.compile(r"heads\.\w+\.dense\.(weight|bias)")


class Agreement(NamedTuple):
    """Which tensors of a model come from the pretrained one and which are newly initialised, by name; and the patch
    grids of both models, between which position embeddings are interpolated.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    grids: tuple[Grid, Grid] | None = None

    def __str__(self) -> str:
        moved = ""
        if self.grids is not None:
            before, after = (f"{rows} x {columns}" for rows, columns in self.grids)
            moved = f"; position embeddings interpolated from {before} to {after} patches"
        if not self.fresh:
            return f"all {len(self.taken)} tensors{moved}"
        shown = ", ".join(self.fresh[:_NAMED]) + (", ..." if len(self.fresh) > _NAMED else "")
        total = len(self.taken) + len(self.fresh)
        return f"{len(self.taken)} of {total} tensors; newly initialised: {shown}{moved}"


def open_start(start: str) -> Opened:
    """Load the pretrained model. Raises UserError for a language model without a tokenizer."""
    opened = open_model(named_folder(start))
    if opened.codec is None and kinds.reads_prompts(opened.model):
        raise UserError(f"{start} has no tokenizer next to its weights; add its tokenizer.json to start from it")
    return opened


def lay_out(opened: Opened, start: str, directory: Path, beside: Iterable[str]) -> None:
    """Copy the pretrained model's other files (tokenizers, usage, files that a task names) into `directory`."""
    if opened.codec is not None:
        opened.codec.save(directory)
    for file in named_folder(start).glob(f"*/{TOKENIZER}"):  # the source tokenizer of a translation model
        (directory / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, directory / file.parent.name / TOKENIZER)
    opened.usage.save(directory)
    for name in beside:
        if (named_folder(start) / name).is_file():
            shutil.copyfile(named_folder(start) / name, directory / name)


def keep_symbols(model: ModelConfig, before: ModelConfig) -> ModelConfig:
    """`model` with a vocabulary at least as large as that of `original`: published embeddings are often padded."""
    if isinstance(model, EncoderDecoderConfig) and isinstance(before, EncoderDecoderConfig):
        encoder = keep_symbols(model.encoder, before.encoder)
        decoder = keep_symbols(model.decoder, before.decoder)
        return replace(model, encoder=encoder, decoder=decoder)  # type: ignore[arg-type]
    return override(model, {"symbols": before.symbols}) if before.symbols > model.symbols else model


def agree(model: nn.Module, start: nn.Module, name: str) -> Agreement:
    """Match the tensors of a model, which may be an outline, to those of `start` by name and shape.

    Heads, the number of layers and the image size may differ. Raises ConfigError for settings that do not fit the
    weights, and for a model without any matching tensor.
    """
    own = {key: tensor.shape for key, tensor in named_tensors(model)}
    theirs = dict(named_tensors(start))
    config: Any = model.config
    before: Any = start.config
    grids = _grids(config, before)
    taken = tuple(_sources(own, theirs)) + ((_POSITIONS,) if grids is not None else ())
    fresh = tuple(key for key in own if key not in taken)
    for key in fresh:
        if key in theirs and not _in_head(key):
            raise ConfigError(_misfit(config, before, key, own[key], theirs[key].shape, name))
    if all(_in_head(key) for key in taken):
        raise ConfigError(
            f"no weight of {name} ({type(before).__name__}) matches this model ({type(config).__name__}) in name and "
            "shape; start from a model of the same architecture"
        )
    # A different number of heads would change the function without changing any shape.
    for ours, others in zip(_blocks(config), _blocks(before)):
        for part in ("mixer", "cross"):
            for setting in ("heads", "kv_heads"):
                wanted, found = (getattr(getattr(block, part), setting, None) for block in (ours, others))
                if None not in (wanted, found) and wanted != found:
                    raise ConfigError(f"{setting} {wanted} does not fit {name}, which has {found}; remove this setting")
    return Agreement(taken, fresh, grids)


@torch.no_grad()
def take_over(model: nn.Module, start: nn.Module) -> None:
    """Copy the weights of `start` that match the model's in name and shape, and interpolate position embeddings."""
    own, theirs = dict(named_tensors(model)), dict(named_tensors(start))
    for key, source in _sources({key: tensor.shape for key, tensor in own.items()}, theirs).items():
        own[key].copy_(theirs[source])
    _rescale(model, start)
    grids = _grids(model.config, start.config)
    if grids is not None:
        front = own[_POSITIONS].shape[0] - grids[1][0] * grids[1][1]
        patches = resized(theirs[_POSITIONS][front:].float(), *grids)
        own[_POSITIONS].copy_(torch.cat([theirs[_POSITIONS][:front], patches]))


def _rescale(model: nn.Module, start: nn.Module) -> None:
    """Adjust a copied regression head so that it predicts the same numbers under its new scale and shift."""
    ours, theirs = (getattr(each, "heads", {}) for each in (model, start))
    if NUMBER in ours and NUMBER in theirs:
        head, before = ours[NUMBER], theirs[NUMBER].config
        ratio, moved = before.scale / head.config.scale, before.shift - head.config.shift
        head.project.weight.mul_(ratio)
        if head.project.bias is not None:
            head.project.bias.mul_(ratio).add_(moved / head.config.scale)


def initial_model(recipe: Recipe, fresh: Collection[str], base: Path, begun: bool, keeps: bool) -> nn.Module:
    """The model of a run before its first step: random weights, then those of the pretrained model and of pretrained
    parts, with its adapter and frozen parameters.

    With an adapter, resuming needs the frozen weights: the process that `saves_base` writes them to the folder `base`.
    Without one, a run that has `started` has all weights in its checkpoint.
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


def _sources(own: dict[str, torch.Size], theirs: dict[str, Tensor]) -> dict[str, str]:
    """The names of the pretrained tensors for the model's tensors.

    A pooler (Devlin et al. 2019) is the dense layer of a head, whose name may differ between the models.
    """
    poolers = {key.split(".", 2)[2]: key for key in theirs if _POOLER.fullmatch(key)}
    found = {}
    for key, shape in own.items():
        source = key if key in theirs or not _POOLER.fullmatch(key) else poolers.get(key.split(".", 2)[2], key)
        if source in theirs and theirs[source].shape == shape:
            found[key] = source
    return found


def _grids(config: Any, before: Any) -> tuple[Grid, Grid] | None:
    """The patch grids of two image models that differ only in the grid; None for other models."""
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


def _misfit(config: ModelConfig, before: ModelConfig, key: str, own: torch.Size, theirs: torch.Size, name: str) -> str:
    """The message for a setting, or otherwise a tensor, that does not fit the weights."""
    for setting in _SETTINGS:
        wanted, found = getattr(config, setting), getattr(before, setting)
        if wanted != found and (wanted or 0) in own and (found or 0) in theirs:
            return f"model.{setting} {wanted} does not fit the weights of {name}, which have {found}; remove it"
    return (
        f"the model's {key} has shape {tuple(own)}, but that of {name} has {tuple(theirs)}; "
        "remove the settings that change the model's shape"
    )


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


_WIDTH, _RATE = 384, 4e-4  # of the model whose learning rate was tuned: all-MiniLM-L6-v2 on the 77 intents of banking77
_LEAST, _MOST = 1e-5, 3e-3  # minimum and maximum learning rate
_ADAPTER, _MOST_ADAPTER = 10.0, 1e-2  # learning rate of adapters: factor on the full model's rate, and maximum
_EPOCHS, _FEWEST, _OFTENEST = 600.0, 3.0, 40.0
_JUDGED = 50  # minimum validation samples for early stopping
UNJUDGED_EPOCHS = 15.0  # maximum epochs with fewer validation samples, whatever their scores
_MANY = 10_000  # samples from which on the learning rate does not depend on their number
_SMALL, _LARGE = 8, 64  # minimum and maximum samples per batch
_STEPS = 300  # desired minimum of steps
_SMALL_WRITTEN, _STEPS_WRITTEN = 2, 1000  # the same for samples with several targets each


class Tuned(NamedTuple):
    """A fine-tuning plan: batch settings; the initial number of steps that the data justify (`useful`); that number or
    the steps that fit in the time, if those are fewer (`steps`); their epochs; and the reason, for people.
    """

    settings: Settings
    useful: int
    steps: int
    epochs: float
    reason: str


def rates(width: int, adapter: AdapterConfig | None, times: float = 1.0) -> Settings:
    """Optimiser and schedule for a model of `width`, or for an adapter of it; `factor` scales the learning rate.

    The learning rate falls with the square of the width: 4e-4 at 384 (all-MiniLM-L6-v2, the recipe banking77), 1e-4 at
    768 (Devlin et al. 2019 try 2e-5 to 5e-5 with a schedule that decays from the start), and 1e-5 from 2,400 on, where
    models of billions of parameters are tuned at 1e-5 to 2e-5. Models of width 64 learn 50 dialogues faster at 3e-3
    than at 1e-3. Adapters use ten times as much (Schulman et al. 2025, "LoRA without regret").
    """
    rate = min(max(_RATE * (_WIDTH / width) ** 2, _LEAST), _MOST)
    if adapter is not None:
        rate = min(_ADAPTER * rate, _MOST_ADAPTER)
    rate = float(f"{times * rate:.2g}")
    return {
        "optim": {"kind": "adamw", "lr": rate, "betas": [0.9, 0.98], "weight_decay": 0.01},
        "schedule": {"kind": "wsd", "warmup": 0.06, "decay": 0.8},
    }


def gentle_rate(rate: float, samples: int) -> float:
    """The learning rate of a model whose head is fitted before the first step; `rate` is that for many samples.

    Fewer samples allow fewer steps, in which a large learning rate only destroys pretrained features. So it falls with
    the square root of their number below 10,000 (tested with all-MiniLM-L6-v2 and 3 to 30 texts for each of 64 to 150
    intents: docs/decisions/0025).
    """
    return float(f"{rate * min(1.0, math.sqrt(samples / _MANY)):.2g}")


def unjudged(task: Task) -> bool:
    """Whether validation has too few samples to decide how long to train a model whose head was fitted."""
    return task.objective.gentle and task.count("validation") < _JUDGED


def epochs_of(samples: int) -> float:
    """The initially planned epochs: 40 for a few hundred samples, 6 for 10,000, 3 for 40,000 and more. Evaluations
    decide whether training continues.
    """
    return min(max(_EPOCHS / math.sqrt(max(1, samples)), _FEWEST), _OFTENEST)


def tuned(
    samples: int,
    targets: int,
    pace: Pace,
    seconds: float,
    batch: str,
    least: int = 1,
    own: int | None = None,
    large: int = _LARGE,
    most: float = _OFTENEST,
) -> Tuned:
    """The plan for `seconds` of fine-tuning on `samples` samples with `targets` targets in total, at a `pace`.

    `batch_setting` is the recipe's setting for the batch size, `min_batch` its minimum (a row of tokens), `own_batch`
    the user's value, `max_samples` the maximum samples in it, and `max_epochs` the maximum epochs. Batches are large
    enough to be efficient and small enough for some hundred steps.
    """
    each = targets / max(1, samples)
    epochs = min(epochs_of(samples), most)
    small, count = (_SMALL_WRITTEN, _STEPS_WRITTEN) if each > 2 else (_SMALL, _STEPS)
    wanted = min(max(samples * epochs / count, small), large)
    units = own or max(least, 2 ** round(math.log2(max(1.0, wanted * each / pace.share))))
    learnt = units * pace.share  # targets a step
    useful = max(1, math.ceil(epochs * targets / learnt))
    steps = max(1, min(useful, int(seconds / (pace.overhead + learnt / pace.targets))))
    read = steps * learnt / max(1, targets)
    early = steps == useful
    why = (
        f"{digits(epochs)} epochs of {samples:,} samples at first, and more while validation improves"
        if early
        else f"as many epochs of {samples:,} samples as fit in {span(seconds)}; {digits(epochs)} would be better"
    )
    return Tuned({batch: units}, useful, steps, read, why)
