"""Fine-tuning: initialise a run from another model's weights and files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.codecs import load_codec
from headway.codecs.special_tokens import MARIAN_FILES
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import override
from headway.errors import ConfigError, UserError, nearest
from headway.formats.deferred import computed, deferred_weights
from headway.formats.heads import NUMBER
from headway.formats.native import FILE, QUANTISED, load_model, named_tensors, save_model
from headway.formats.native import Weights as Format
from headway.formats.open import OpenedModel, open_model
from headway.formats.usage import Usage
from headway.io.hub import named_folder
from headway.learn.adapters import AdapterConfig, frozen_format, frozen_formats, with_adapter
from headway.learn.frozen_base import load_frozen, quantise_matrices, released_matrices
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.rows import copy_rows, sampled_rows, whole_shape
from headway.learn.recipe import Recipe, open_task
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
    outline,
)
from headway.nn.models.block import BlockConfig
from headway.nn.models.patches import Grid, resize_positions


def prepare_for_training(model: nn.Module, recipe: Recipe, fresh: Collection[str]) -> nn.Module:
    """`model` as the recipe trains it: with its adapter, trainable `fresh` parameters, and without gradients for what
    `train.frozen` matches: model parts ("tower", "decoder.stack"), parameters, or patterns for either ("*.bias").
    Raises ConfigError for a name without a match.
    """
    with_adapter(model, recipe.adapter, fresh, recipe.train.seed)
    parameters = dict(model.named_parameters())
    for name in recipe.train.frozen:
        matching = [p for key, p in parameters.items() if any(fnmatchcase(part, name) for part in _parent_names(key))]
        if not matching:
            suggestion = nearest(name, sorted({part for key in parameters for part in _parent_names(key)}))
            raise ConfigError(f"train.frozen: the model has no part {name!r}; {suggestion}")
        for parameter in matching:
            parameter.requires_grad_(False)
    return model


def _parent_names(key: str) -> Iterable[str]:
    """The model parts that contain a parameter, and the parameter itself: decoder, decoder.stack, ..."""
    words = key.split(".")
    return (".".join(words[:count]) for count in range(1, len(words) + 1))


_SHAPE_SETTINGS = ("width", "context", "vocab_size")  # settings that determine the shapes of weights
_MAX_NAMED = 3  # maximum tensors named in a message
_POSITIONS = "embed.positions.table"  # position embeddings of images
_POOLER = re.compile(r"heads\.\w+\.dense\.(weight|bias)")


class TensorMatch(NamedTuple):
    """Which of a model's tensors, by name, come from the pretrained one and which are newly initialised. Position
    embeddings are interpolated between the patch grids of the two models.
    """

    matched: tuple[str, ...]
    fresh: tuple[str, ...]
    grids: tuple[Grid, Grid] | None = None

    def __str__(self) -> str:
        interpolation = ""
        if self.grids is not None:
            old_grid, new_grid = (f"{rows} x {columns}" for rows, columns in self.grids)
            interpolation = f"; position embeddings interpolated from {old_grid} to {new_grid} patches"
        if not self.fresh:
            return f"all {len(self.matched)} tensors{interpolation}"
        names = ", ".join(self.fresh[:_MAX_NAMED]) + (", ..." if len(self.fresh) > _MAX_NAMED else "")
        total = len(self.matched) + len(self.fresh)
        return f"{len(self.matched)} of {total} tensors; newly initialised: {names}{interpolation}"


def open_start(start: str, adapter: AdapterConfig | None = None, part: str | None = None) -> OpenedModel:
    """Load the pretrained model, with its usage in training, or a `part` of it if it is an encoder-decoder. If the
    adapter quantises it, its weights are not read before they are used, so that they are never all in memory. Raises
    UserError for a language model that has no tokenizer.
    """
    with deferred_weights() if frozen_format(adapter) != "fp32" else nullcontext():
        pretrained = open_model(named_folder(start))
    if part is not None and isinstance(pretrained.model.config, EncoderDecoderConfig):
        # its tokens and usage are those of the decoder
        return OpenedModel(pretrained.model.get_submodule(part), Usage(), None)
    if pretrained.codec is None and kinds.reads_prompts(pretrained.model):
        raise UserError(f"{start} has no tokenizer next to its weights; add its tokenizer.json to start from it")
    return pretrained._replace(usage=pretrained.usage.to_train())


def open_new_task(recipe: Recipe, directory: Path) -> Task:
    """`open_task` for a new run in `directory`, with the tokenizer of the model that it starts from.

    The tokenizer is copied to a temporary workspace, so a recipe that cannot be trained leaves no files; the trainer
    saves it with the run.
    """
    if recipe.start is None:
        return open_task(recipe, directory)
    pretrained = open_start(recipe.start, recipe.adapter, recipe.task.start_part)
    folder = named_folder(recipe.start)
    with TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        if (folder / MARIAN_FILES["target"][0]).is_file():  # one tokenizer per language
            load_codec(folder, "target").save(workspace)
            load_codec(folder, "source").save(workspace / "source")
        elif pretrained.codec is not None:
            pretrained.codec.save(workspace)
        pretrained.usage.save(workspace)
        source_tokenizers = [file.relative_to(folder) for file in folder.glob(f"*/{TOKENIZER}")]  # for translation
        for name in (*source_tokenizers, *recipe.task.extra_files):
            if (folder / name).is_file():
                (workspace / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, workspace / name)
        return open_task(recipe, workspace)


def adapted_model(recipe: Recipe, task: Task) -> ModelConfig:
    """The recipe's model with the settings that depend on the data."""
    model = task.adapt(recipe.model)
    return model if recipe.start is None else keep_vocabulary(model, recipe.model)


def keep_vocabulary(model: ModelConfig, original: ModelConfig) -> ModelConfig:
    """`model` with a vocabulary at least as large as that of `original`, because published embeddings are often
    padded.
    """
    if isinstance(model, EncoderDecoderConfig) and isinstance(original, EncoderDecoderConfig):
        encoder = keep_vocabulary(model.encoder, original.encoder)
        decoder = keep_vocabulary(model.decoder, original.decoder)
        return replace(model, encoder=encoder, decoder=decoder)  # type: ignore[arg-type]
    return override(model, {"vocab_size": original.vocab_size}) if original.vocab_size > model.vocab_size else model


def match_tensors(model: nn.Module, start: nn.Module, name: str) -> TensorMatch:
    """Match the tensors in a model, which may be an outline, to those in `start` by name and shape.

    The heads, number of layers and image size may differ. Raises ConfigError if settings do not fit the weights, or if
    no tensor matches.
    """
    shapes = {key: tensor.shape for key, tensor in named_tensors(model)}
    pretrained_tensors = dict(named_tensors(start))
    config: Any = model.config
    pretrained_config: Any = start.config
    grids = _grids(config, pretrained_config)
    matched = tuple(_source_names(shapes, pretrained_tensors)) + ((_POSITIONS,) if grids is not None else ())
    computed_tables = {key for key, _ in model.named_buffers()}  # such as sinusoids, which may have another length
    fresh = tuple(key for key in shapes if key not in matched and key not in computed_tables)
    for key in fresh:
        if key in pretrained_tensors and not _in_head(key):
            shape, pretrained_shape = shapes[key], pretrained_tensors[key].shape
            for setting in _SHAPE_SETTINGS:
                ours, theirs = getattr(config, setting), getattr(pretrained_config, setting)
                if ours != theirs and (ours or 0) in shape and (theirs or 0) in pretrained_shape:
                    raise ConfigError(
                        f"model.{setting}={ours} does not fit the weights of {name}, which have {theirs}; remove it"
                    )
            raise ConfigError(
                f"the model's {key} has shape {tuple(shape)}, but that of {name} has {tuple(pretrained_shape)}; "
                "remove the settings that change the model's shape"
            )
    if all(_in_head(key) for key in matched):
        raise ConfigError(
            f"no weight in {name} ({type(pretrained_config).__name__}) matches this model ({type(config).__name__}) "
            "in name and shape; start from a model with the same architecture"
        )
    # A different number of heads would change the function without changing any shape.
    for block, pretrained_block in zip(_blocks(config), _blocks(pretrained_config)):
        for part in ("mixer", "cross"):
            for setting in ("heads", "kv_heads"):
                heads, pretrained_heads = (
                    getattr(getattr(block, part), setting, None) for block in (block, pretrained_block)
                )
                if None not in (heads, pretrained_heads) and heads != pretrained_heads:
                    raise ConfigError(
                        f"{setting}={heads} does not fit {name}, which has {pretrained_heads}; remove this setting"
                    )
    return TensorMatch(matched, fresh, grids)


@torch.no_grad()
def copy_matching_weights(model: nn.Module, start: nn.Module, formats: Mapping[str, Format] | None = None) -> None:
    """Copy the weights from `start` that match the model's in name and shape, and interpolate position embeddings.
    Matrices with a number format in `formats` are quantised one by one.
    """
    tensors, pretrained_tensors = dict(named_tensors(model)), dict(named_tensors(start))
    matched = _source_names({key: whole_shape(tensor) for key, tensor in tensors.items()}, pretrained_tensors)
    if formats:
        wanted = [key for key in formats if key in matched]
        quantise_matrices(model, {key: (pretrained_tensors[matched[key]], formats[key]) for key in wanted})
    for key, source in matched.items():
        if not formats or key not in formats:
            copy_rows(tensors[key], computed(pretrained_tensors[source].detach()))
    heads, pretrained_heads = (getattr(module, "heads", {}) for module in (model, start))
    if NUMBER in heads and NUMBER in pretrained_heads:  # predict the same numbers under the new scale and shift
        head, pretrained_head = heads[NUMBER], pretrained_heads[NUMBER].config
        ratio, shift = pretrained_head.scale / head.config.scale, pretrained_head.shift - head.config.shift
        head.project.weight.mul_(ratio)
        if head.project.bias is not None:
            head.project.bias.mul_(ratio).add_(shift / head.config.scale)
    grids = _grids(model.config, start.config)
    if grids is not None:
        prefix = whole_shape(tensors[_POSITIONS])[0] - grids[1][0] * grids[1][1]
        table = computed(pretrained_tensors[_POSITIONS].detach())
        patches = resize_positions(table[prefix:].float(), *grids)
        copy_rows(tensors[_POSITIONS], torch.cat([table[:prefix], patches]))


def initial_rows(recipe: Recipe, processes: Processes, needs_all: bool = False) -> AbstractContextManager[None]:
    """`sampled_rows` for this process, if processes share the model of a recipe and none of them `needs_all` weights.
    An adapter is added to a whole model.
    """
    _, shards = recipe.parallel.sizes(processes.world)
    if shards == 1 or needs_all or recipe.adapter is not None:
        return nullcontext()
    return sampled_rows(processes.rank % shards, shards)


def _formats_of(config: ModelConfig, adapter: AdapterConfig | None, fresh: Collection[str] = ()) -> dict[str, Format]:
    """`frozen_formats`, which needs the model's outline only if some weights are quantised."""
    return {} if frozen_format(adapter) == "fp32" else frozen_formats(outline(config), adapter, fresh)


def initial_model(recipe: Recipe, fresh: Collection[str], base: Path, started: bool, saves_base: bool) -> nn.Module:
    """A run's model before the first step. Random weights are replaced by those of the pretrained model and pretrained
    parts; then the adapter is added and parameters are frozen.

    With an adapter, resuming needs the frozen weights, so the process with `saves_base` writes them to the folder
    `base`. Without one, a run that has `started` has all weights in its checkpoint.
    """
    adapter, formats = recipe.adapter, _formats_of(recipe.model, recipe.adapter, fresh)
    if adapter is not None and (base / (QUANTISED if formats else FILE)).is_file():
        return prepare_for_training(load_frozen(base) if formats else load_model(base), recipe, fresh)
    seed = recipe.train.seed if fresh or not formats else None  # all other weights come from the start
    with released_matrices(recipe.model, formats):
        model = build(recipe.model, seed)
    if not started:
        if recipe.start is not None:
            pretrained = open_start(recipe.start, adapter, recipe.task.start_part)
            copy_matching_weights(model, pretrained.model, formats)
        for part, start in recipe.task.part_starts().items():
            inner: dict[str, Format] = {name.removeprefix(f"{part}."): dtype for name, dtype in formats.items()}
            copy_matching_weights(model.get_submodule(part), start.open(), inner)
    if adapter is not None and saves_base:
        if formats:
            from headway.engine.packed_weights import save_quantised  # imports LLVM

            save_quantised(model, {}, base)
        else:
            save_model(model, recipe.model, base)
    return prepare_for_training(model, recipe, fresh)


def reference_model(recipe: Recipe, config: ModelConfig) -> nn.Module:
    """The model that a run of `recipe`, whose model is `config`, starts from, in evaluation mode, with the quantised
    weights that an adapter has.
    """
    if recipe.start is None:
        return build(config, recipe.train.seed).eval()
    config = keep_vocabulary(config, recipe.model)
    start = open_start(recipe.start, recipe.adapter, recipe.task.start_part).model
    if frozen_format(recipe.adapter) == "fp32":
        return start
    fresh = match_tensors(outline(config), start, recipe.start).fresh
    formats = _formats_of(config, recipe.adapter, fresh)
    with released_matrices(config, formats):
        model = build(config, recipe.train.seed if fresh else None)
    copy_matching_weights(model, start, formats)
    return model.eval()


def _source_names(shapes: dict[str, torch.Size], pretrained_tensors: dict[str, Tensor]) -> dict[str, str]:
    """The names of the pretrained tensors that match the model's tensors.

    A pooler (Devlin et al. 2019) is a head's dense layer; its name may differ between the models.
    """
    poolers = {key.split(".", 2)[2]: key for key in pretrained_tensors if _POOLER.fullmatch(key)}
    sources = {}
    for key, shape in shapes.items():
        source = (
            key if key in pretrained_tensors or not _POOLER.fullmatch(key) else poolers.get(key.split(".", 2)[2], key)
        )
        if source in pretrained_tensors and pretrained_tensors[source].shape == shape:
            sources[key] = source
    return sources


def _grids(config: Any, pretrained_config: Any) -> tuple[Grid, Grid] | None:
    """The patch grids of two image models that differ only in the grid; None for other models."""
    if not (isinstance(config, TransformerConfig) and isinstance(pretrained_config, TransformerConfig)):
        return None
    embed, pretrained_embed = config.embed, pretrained_config.embed
    if not (isinstance(embed, PatchEmbedConfig) and isinstance(pretrained_embed, PatchEmbedConfig)):
        return None
    grids = pretrained_embed.grid(pretrained_embed.size), embed.grid(embed.size)
    differs_only_in_grid = (
        config.width == pretrained_config.width and embed.tokens == pretrained_embed.tokens and grids[0] != grids[1]
    )
    return grids if differs_only_in_grid else None


def _in_head(key: str) -> bool:
    return "heads" in key.split(".")


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
