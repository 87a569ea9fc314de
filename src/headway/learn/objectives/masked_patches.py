"""Masked images and sounds: predict hidden patches, and recognise two views of one sample among those of others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.config_kinds import deferred_check
from headway.data.shuffling import noise
from headway.data.splits import SplitConfig
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of
from headway.learn.examples import Batch, IndexedExamples, RngKey
from headway.learn.objective import Objective, evaluate_batches
from headway.learn.objectives.contrastive import check_splits, contrastive_batch_size, softmax_contrast
from headway.learn.recipe import Recipe, TaskConfig, batch_size_of
from headway.learn.report import Picture
from headway.nn.kernels import true_indices
from headway.nn.models import (
    FramesEmbedConfig,
    Loss,
    ModelConfig,
    PatchEmbedConfig,
    PatchValuesHead,
    PatchValuesHeadConfig,
    PooledHeadConfig,
    SpectrogramEmbedConfig,
    Transformer,
    TransformerConfig,
)
from headway.nn.models.patches import Grid

PATCHES, CONTRAST = "patches", "contrast"  # names of the heads
_SIZE = 128  # values of the vectors that are contrasted (Chen et al. 2020, section 2.1)
_EPSILON = 1e-6  # added to a patch's variance
_SECOND_VIEW = 1 << 62  # added to a sample's position in the stream for its second view
_HIDDEN_STREAM = 256  # stream of random numbers, separate from those of augmentation
_EVAL_SEED = 0  # the seed of hidden patches in evaluation, the same for every run
_MAX_SHOWN = 8  # samples in the pictures
_MIN_SAMPLES = 2  # one to train on, and one that is held out


@deferred_check
@dataclass(frozen=True)
class HidingConfig:
    """Which patches are hidden: a share `rate` of each sample (He et al. 2022, "Masked autoencoders", section 3), in
    random blocks of `span` x `span` patches, or of `span` patches along time (Xie et al. 2022, section 3.2). With a
    contrast of views, smaller shares than theirs gave better vectors in minutes.
    """

    rate: float = 0.2  # share of the patches to hide and to predict
    span: int = 1  # side of a block of patches that are hidden together

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"hiding.rate is {self.rate}; choose a fraction between 0 and 1, such as 0.2")
        if self.span < 1:
            raise ConfigError(f"hiding.span is {self.span}; choose a number of patches of at least 1")

    def sample(self, grid: Grid, indices: Int[np.ndarray, "B"], seed: int) -> Bool[Tensor, "B N"]:
        """The hidden patches of samples, a pure function of their indices and the seed. At least one block is hidden
        and one is visible, if there are two; blocks are at most half as long as the grid.
        """
        span = min(self.span, max(1, max(grid) // 2))
        rows, columns = (-(-length // span) for length in grid)
        count = min(max(1, round(self.rate * rows * columns)), max(1, rows * columns - 1))
        keys = noise(seed, indices, _HIDDEN_STREAM, rows * columns)
        blocks = (keys.argsort(1, kind="stable").argsort(1) < count).reshape(-1, rows, columns)
        hidden = blocks.repeat(span, 1).repeat(span, 2)[:, : grid[0], : grid[1]]
        return torch.from_numpy(hidden.reshape(len(indices), -1))


@dataclass(frozen=True)
class MaskedPatchesConfig(TaskConfig):
    """Shared settings of tasks that predict hidden patches of unlabelled images and sounds (Xie et al. 2022, "SimMIM";
    Gong et al. 2022, "SSAST"), in values that are normalised by each patch (He et al. 2022).

    `contrast` is the weight of a second loss: two augmented views of each sample, both with hidden patches, have
    vectors that are nearer to each other than to those of the other samples in the batch (Chen et al. 2020, "SimCLR").
    """

    hiding: HidingConfig = HidingConfig()  # which patches are hidden
    contrast: float = 2.0  # weight of the contrast between two views of each sample; 0: off
    temperature: float = 0.2  # divides the cosines of the contrast
    skip_bad: bool = False  # whether to skip and count files that cannot be read
    split: SplitConfig = SplitConfig(validation=0.05, test=0.0)  # held-out shares

    def __post_init__(self) -> None:
        if self.contrast < 0:
            raise ConfigError(f"task.contrast is {self.contrast:g}; choose a weight of 0 (off) or more")
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature:g}; choose a number above 0, such as 0.2")


class MaskedViews(NamedTuple):
    """Samples as a model sees them, as the domain's inputs: without hidden patches, with them, and with predictions in
    their place.
    """

    inputs: Float[Tensor, "B ..."]
    hidden: Float[Tensor, "B ..."]
    predicted: Float[Tensor, "B ..."]


class MaskedPatchSamples(IndexedExamples):
    """Unlabelled samples. A domain defines their inputs (`view`), the `grid` of patches, and pictures of them.

    With `contrast`, its weight, training batches have two views of each sample: the second half of the rows are the
    second views.
    """

    hiding: HidingConfig
    contrast: float
    grid: Grid

    def set_batches(self, recipe: Recipe, noun: str) -> None:
        """Set the batch size and the seed. Raises ConfigError or UserError for a batch that cannot be contrasted, and
        for fewer than two samples, of which one is held out.
        """
        self.seed, count = recipe.train.seed, len(self.splits.all_indices)
        if count < _MIN_SAMPLES:
            raise UserError(f"only {count} different {noun} can be read; pass at least {_MIN_SAMPLES}")
        if not self.contrast:
            self.batch_size = batch_size_of(recipe)
            return
        self.batch_size = contrastive_batch_size(recipe, noun, ", or task.contrast=0")
        check_splits(self.splits, self.batch_size, noun)

    def view(self, rows: Int[np.ndarray, "B"], positions: Int[np.ndarray, "B"] | None) -> Float[Tensor, "B ..."]:
        """Model inputs, augmented as determined by the positions of the samples in the stream, if there are any."""
        raise NotImplementedError

    def compare(self, views: MaskedViews) -> list[Picture]:
        """Pictures of samples with hidden and with predicted patches."""
        raise NotImplementedError

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Views of samples; the targets are the hidden patches, Bool[B, N]."""
        if rng_key is None:
            inputs, hidden = [self.view(rows, None)], [self.hiding.sample(self.grid, rows, _EVAL_SEED)]
        else:
            streams = [rng_key.positions] + ([rng_key.positions + _SECOND_VIEW] if self.contrast else [])
            inputs = [self.view(rows, positions) for positions in streams]
            hidden = [self.hiding.sample(self.grid, positions, self.seed) for positions in streams]
        all_hidden = torch.cat(hidden)
        return Batch((torch.cat(inputs),), all_hidden, len(rows), all_hidden.numel())


class MaskedPatches(Objective[MaskedPatchSamples]):
    """The mean squared error of the values in hidden patches, each normalised by its own mean and deviation (He et al.
    2022, section 3), and in training InfoNCE between two views of each sample (Chen et al. 2020, equation 1, with the
    other samples' second views as negatives). Both views have hidden patches. `unit` is what a sample is called.
    """

    shares_evaluation = True

    def __init__(self, unit: str, config: MaskedPatchesConfig) -> None:
        self.unit, self.contrast, self.temperature = unit, config.contrast, config.temperature

    @property
    def measure(self) -> str:
        return "squared error per hidden patch in units of its variance"

    def adapt(self, model: ModelConfig, examples: MaskedPatchSamples) -> ModelConfig:
        """`model` with this task's heads, which start from random weights: a contrast of equal vectors has no gradient.
        Raises ConfigError for patches that overlap.
        """
        assert isinstance(model, TransformerConfig)  # checked by the task
        patches = patch_values_head(model)
        pooled = PooledHeadConfig(_SIZE, "mean", dense=True, activation="gelu", unit=True, skip=patches.skip)
        heads = {PATCHES: patches, **({CONTRAST: pooled} if self.contrast else {})}
        return replace(model, heads=heads, init=replace(model.init, head="same"))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts of hidden patches and of samples, by which their losses are divided separately."""
        hidden = {PATCHES: int(batch.targets.sum())}
        return hidden | ({CONTRAST: batch.tokens} if self.contrast else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        (inputs,), hidden = batch.inputs, batch.targets
        heads = cast(Transformer, model).heads
        head = cast(PatchValuesHead, heads[PATCHES])
        encoded = model(head.hide(inputs, hidden))
        rows = true_indices(hidden.flatten(), int(batch.host.targets.sum()))
        predicted, patches = (x.flatten(0, 1).index_select(0, rows) for x in (head(encoded.x), head.cut(inputs)))
        errors = (predicted.float() - normalise(patches)).square().mean(-1)
        extra = sum(encoded.auxiliary.values(), errors.new_zeros(()))
        losses = {PATCHES: Loss(errors.sum() + extra * len(errors), len(errors))}
        if self.contrast:
            first, second = heads[CONTRAST](encoded.x, encoded.layout).float().chunk(2)
            index = torch.arange(len(first), device=first.device)
            same = torch.zeros(len(first), len(first), dtype=torch.bool, device=first.device)
            total = softmax_contrast(first @ second.T / self.temperature, index, same)
            losses[CONTRAST] = Loss(self.contrast * total, len(first))
        return losses

    def evaluate(
        self, model: nn.Module, examples: MaskedPatchSamples, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """`loss`, the squared error per hidden patch, and `explained`, the share of the variance in hidden patches that
        is predicted. A sample has the same hidden patches in every evaluation of every run.
        """
        head = cast(PatchValuesHead, cast(Transformer, model).heads[PATCHES])

        def compute(_: np.ndarray, batch: Batch) -> tuple[float, float, int]:
            (inputs,), hidden = batch.inputs, batch.targets
            targets = normalise(head.cut(inputs)[hidden])
            predicted = head(model(head.hide(inputs, hidden)).x)[hidden].float()
            return (
                float((predicted - targets).square().mean(-1).sum()),
                float(targets.square().mean(-1).sum()),
                len(targets),
            )

        samples = examples.of(split).limited_to(limit)
        errors, variance, count = map(sum, zip(*evaluate_batches(model, samples, compute)))
        return {"loss": errors / count, "explained": 1 - errors / variance if variance else 0.0}

    @torch.no_grad()
    def pictures(self, model: nn.Module, examples: MaskedPatchSamples) -> list[Picture]:
        """Held-out samples with their hidden and predicted patches."""
        batch = examples.take(examples.spread_rows(_MAX_SHOWN)).to(device_of(model))
        (inputs,), hidden = batch.inputs, batch.targets
        head = cast(PatchValuesHead, cast(Transformer, model).heads[PATCHES])
        visible, patches = head.hide(inputs, hidden), head.cut(inputs)
        values = head(model(visible).x).float() * patches.std(-1, keepdim=True) + patches.mean(-1, keepdim=True)
        predicted = head.join(torch.where(hidden[..., None], values, patches), inputs)
        blank = head.join(patches.masked_fill(hidden[..., None], float("nan")), inputs)
        return examples.compare(MaskedViews(inputs.cpu(), blank.cpu(), predicted.cpu()))


def normalise(patches: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Patches with mean 0 and variance 1 each (He et al. 2022, section 3); constant ones become 0."""
    variance, mean = torch.var_mean(patches.float(), -1, keepdim=True)
    return (patches - mean) / (variance + _EPSILON).sqrt()


def patch_values_head(model: TransformerConfig) -> PatchValuesHeadConfig:
    """The head for the patches of a model of images or sounds. ConfigError for others and overlapping patches."""
    embed = model.embed
    if isinstance(embed, PatchEmbedConfig):
        return PatchValuesHeadConfig(embed.patch, embed.channels, embed.tokens + embed.registers)
    if isinstance(embed, FramesEmbedConfig):
        return PatchValuesHeadConfig((2, embed.bands))
    if isinstance(embed, SpectrogramEmbedConfig) and embed.patch == embed.stride and embed.bands % embed.patch[1] == 0:
        return PatchValuesHeadConfig(embed.patch, skip=embed.tokens)
    raise ConfigError(
        f"patches of this model ({type(embed).__name__}) overlap or do not exist, so none can be hidden; choose "
        "another model, such as that of the recipe"
    )


def distinct(keys: Sequence[str], excluded: Collection[str] = ()) -> list[int]:
    """The indices of the first sample with each key, without the excluded keys."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    return [index for key, index in first.items() if key not in excluded]
