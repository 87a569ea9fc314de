"""Image classification, from labels and by distillation from a teacher model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs.image_processor import ImageProcessor
from headway.config_kinds import register
from headway.data import ClassSplitConfig
from headway.data.image_cache import DecodedImages
from headway.domains.vision.attribution import ImageAttention, patch_weights
from headway.domains.vision.augment import Augment, ImageAugmentConfig
from headway.domains.vision.labelled_images import LabelledImages, load_images, read_samples
from headway.domains.vision.normalization import (
    MAX_MEASURED,
    Normalizer,
    channel_moments,
    image_processor,
    measured_rows,
)
from headway.errors import ConfigError, UserError
from headway.formats.open import open_model
from headway.formats.out_of_distribution import (
    MIN_IMAGE_SIZE,
    SampleStatistics,
    TrainingStatistics,
    stack_image_statistics,
)
from headway.formats.usage import read_usage
from headway.io.hub import named_folder
from headway.layout import to_device
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, RngKey, spread_evenly
from headway.learn.objectives.classes import Classification, ClassSamples, check_classes
from headway.learn.objectives.predictions import HEAD, Prediction
from headway.learn.objectives.targets import ChosenTarget, TargetConfig, TargetSamples, choose_target, target_task
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture, Tile, tile_grid
from headway.learn.shard_batches import PreparedExamples
from headway.nn.models import (
    DistilledHead,
    DistilledHeadConfig,
    Loss,
    ModelConfig,
    PatchEmbed,
    PatchEmbedConfig,
    PooledHeadConfig,
    Transformer,
    TransformerConfig,
)
from headway.nn.models.kinds import is_vision_classifier
from headway.predict.image_inputs import processor_of

_MAX_TILES = 12  # images


@register("vision")
@dataclass(frozen=True)
class VisionConfig(TaskConfig, TargetConfig):
    """Predict the class of each image or, from a table, its number or its labels.

    `smoothing` is label smoothing (Szegedy et al. 2016). `names` are the names of numeric classes. `skip_bad` skips and
    counts images that cannot be read or have no label. `teacher` is a run or published model with the same classes,
    from which a second token learns (hard distillation, Touvron et al. 2021).
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("images",)

    split: ClassSplitConfig = ClassSplitConfig()  # held-out shares
    smoothing: float = 0.0
    augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)  # augmentation of training images
    names: tuple[str, ...] = ()
    skip_bad: bool = False
    teacher: str | None = None

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for images that cannot be read, are too few, or do not fit the model."""
        samples = read_samples(recipe.files(data), self.names, self.label, self.group)
        if self.group is not None and samples.groups is None:
            raise UserError(
                f"task.group={self.group!r} needs a file per image, but {samples.locations[0]} is one of many in a "
                "file; use folders or a table of paths"
            )
        location = samples.locations.__getitem__
        chosen = choose_target(samples.labels, location, self, "image", self.skip_bad, samples.classes)
        embed = recipe.model.embed if isinstance(recipe.model, TransformerConfig) else None
        if not isinstance(embed, PatchEmbedConfig):
            raise ConfigError(
                "this model does not take images; use one that does, such as --set model=vit-ti16, or start from a ViT"
            )
        samples = samples.select(chosen.rows)
        # grey images need only one channel, unless a start model has three
        channels = 1 if samples.grey is not None and recipe.start is None else embed.channels
        if samples.prepared is not None and recipe.start is None and not (workspace / "recipe.json").exists():
            height, width, channels = samples.prepared.details["shape"]
            embed = replace(embed, size=(height, width))
        embed = replace(embed, channels=channels, tokens=max(embed.tokens, 2 if self.teacher else 0))
        settings, has_means = image_processor(read_usage(workspace).processor, embed)
        images = load_images(samples, ImageProcessor.read(settings, "preprocessor_config.json"), self.skip_bad)
        dataset = ImageDataset(self, recipe, samples, images, chosen, embed, settings, has_means, workspace)
        if self.teacher is None:
            return target_task(dataset, self, "image", self.smoothing, workspace)
        if chosen.target.kind != "class":
            raise ConfigError(
                f"task.teacher={self.teacher!r} can only teach classes, but {chosen.target.reason}; remove it"
            )
        # a run that has started has checked its teacher, so it is loaded when training needs it
        make_objective = partial(DistilledClassification, self, dataset, not (workspace / "recipe.json").exists())
        return target_task(dataset, self, "image", self.smoothing, workspace, make_objective)


class ImageDataset(PreparedExamples, TargetSamples):
    """Images as model inputs, with random augmentation in training."""

    def __init__(
        self,
        config: VisionConfig,
        recipe: Recipe,
        samples: LabelledImages,
        images: DecodedImages,
        chosen: ChosenTarget,
        embed: PatchEmbedConfig,
        processor: dict[str, Any],
        has_means: bool,
        workspace: Path,
    ) -> None:
        """`processor` is a preprocessor_config.json, whose means are measured unless it `has_means`."""
        self.config, self.embed, self.images = config, embed, images.pixels
        self.prepared, self.places = samples.prepared, recipe.train.accumulate
        self.files, self.origins, self.locations = samples.files, samples.origins, samples.locations
        self.rows = self.prepared_rows = rows = np.setdiff1d(np.arange(len(samples)), list(images.errors))
        self.keys = [images.keys[row] for row in rows.tolist()]
        labels = [samples.labels[row] for row in rows.tolist()]
        if chosen.target.kind == "class":
            check_classes(samples.labels, labels, "image")
        locate = lambda row: samples.locations[int(rows[row])]  # noqa: E731
        groups = None if samples.groups is None else [samples.groups[row] for row in rows.tolist()]
        labelled = ClassSamples(labels, samples.named_splits[rows], self.keys, locate, groups)
        self.seed, self.batch_size = recipe.train.seed, batch_size_of(recipe)
        self.set_targets(labelled, chosen, config.split, "images", "a folder", workspace)
        self.augment = Augment(config.augment, self.seed)
        moments = None
        if not has_means:
            moments = channel_moments(self.images, self.rows[self.splits.rows("train")], self.prepared)
        self.normalizer = Normalizer(processor, moments)
        self.processor, self.mean, self.std = self.normalizer.processor, self.normalizer.mean, self.normalizer.std

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the images' channels. UserError for a split without images."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)  # checked by the task
        return replace(model, embed=self.embed)

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Normalised pixels, Float[B, C, H, W], and targets, augmented and mixed in training."""
        raw_pixels, labels = np.asarray(self.images[self.rows[rows]]), torch.from_numpy(self.targets[rows])
        if rng_key is None:
            pixels = self.normalizer(torch.from_numpy(raw_pixels).permute(0, 3, 1, 2).float())
            return Batch((pixels,), labels, len(rows), len(rows) * self.embed.length)
        pixels = self.augment.erase(
            self.normalizer(self.augment.augment_pixels(raw_pixels, rng_key.positions)), rng_key.positions
        )
        if self.config.augment.mixup or self.config.augment.cutmix:
            probabilities = F.one_hot(labels, len(self.labels)).float() if self.target.kind == "class" else labels
            pixels, mixed_probabilities = self.augment.mix(pixels, probabilities.view(len(rows), -1), rng_key.positions)
            labels = mixed_probabilities.view_as(probabilities)
        return Batch((pixels,), labels, len(rows), len(rows) * self.embed.length)

    def contents(self) -> Contents:
        return {**super().contents(), "images": (self.keys,)}

    def describe_row(self, row: int) -> str:
        """The file name of an image, or its location in a file."""
        index = int(self.rows[row])
        return self.files[index].name if self.files is not None else Path(self.locations[index]).name

    def input_statistics(self) -> TrainingStatistics:
        """In-distribution statistics of the training images."""
        sample = measured_rows(self.in_few_shards(self.rows[self.splits.rows("train")], MAX_MEASURED))
        height, width = self.embed.size
        return TrainingStatistics(
            alike=SampleStatistics.fit(stack_image_statistics(self.images[row] for row in sample))
            if min(height, width) >= MIN_IMAGE_SIZE
            else None
        )

    def save(self, directory: Path) -> None:
        super().save(directory)
        replace(read_usage(directory), processor=self.processor).save(directory)

    def with_head(self, model: ModelConfig, name: str, outputs: int) -> TransformerConfig:
        """`model` with its own head, or one over its class token or the mean of its patches."""
        assert isinstance(model, TransformerConfig)  # checked by the task
        start_head, embed = model.heads.get(name) or model.heads.get(HEAD), self.embed
        if isinstance(start_head, PooledHeadConfig):
            head = replace(start_head, outputs=outputs, scale=1.0, shift=0.0)
        elif isinstance(start_head, DistilledHeadConfig) and name == HEAD:
            head = replace(start_head, outputs=outputs)
        else:
            head = PooledHeadConfig(outputs, "first" if embed.tokens else "mean", skip=embed.registers)
        return replace(model, heads={name: head})

    def gallery(self, model: nn.Module, predictions: Sequence[Prediction]) -> list[Picture]:
        """Example images with predictions and attention maps, up to half of them wrong if predictions can be right or
        wrong.
        """
        incorrect = [prediction for prediction in predictions if prediction.is_correct is False]
        rest = [prediction for prediction in predictions if prediction.is_correct is not False]
        num_incorrect = min(len(incorrect), _MAX_TILES // 2)
        selection = [
            group[index]
            for group, limit in ((incorrect, num_incorrect), (rest, _MAX_TILES - num_incorrect))
            for index in spread_evenly(np.arange(len(group)), limit).tolist()
        ]
        tiles = []
        for prediction in sorted(selection):
            pixels = np.asarray(self.images[self.rows[prediction.row]])
            pixels_rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            inputs = self.take(np.array([prediction.row])).inputs
            weights = next(patch_weights(cast(Transformer, model), *inputs), None)
            heat_map = None if weights is None else ImageAttention(pixels_rgb, weights).picture()
            caption = prediction.output
            if not prediction.is_correct:
                separator = " for " if prediction.is_correct is None else ", not "
                caption += f"{separator}{prediction.reference}"
            tiles.append(Tile(pixels_rgb, caption, is_correct=prediction.is_correct, companion=heat_map))
        note = "; next to each, the model's attention" if any(tile.companion is not None for tile in tiles) else ""
        are_judged = all(tile.is_correct is not None for tile in tiles)
        subject = "correct and incorrect predictions" if are_judged else "predictions, with the true values"
        return [Picture("Images", f"{subject}{note}", tile_grid(tiles), wide=True)]


class DistilledClassification(Classification[ImageDataset]):
    """Mean of two cross-entropies: the class token's with the labels and the distillation token's with the teacher's
    classes (Touvron et al. 2021, equation 3).
    """

    def __init__(self, config: VisionConfig, images: ImageDataset, load_now: bool, *settings: Any) -> None:
        """`load_now` loads the teacher immediately, so that errors occur early; `settings` are passed to
        `Classification`.
        """
        super().__init__(*settings)
        self._path, self._images, self._teacher = config.teacher or "", images, None
        if load_now:
            self._teacher = Teacher.open(self._path, images.labels)

    def adapt(self, model: ModelConfig, examples: ImageDataset) -> ModelConfig:
        assert isinstance(model, TransformerConfig)  # checked by the task
        return replace(model, heads={HEAD: DistilledHeadConfig(len(examples.labels))})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        self._teacher = self._teacher or Teacher.open(self._path, self._images.labels)
        student, (pixels,) = cast(Transformer, model), batch.inputs
        label_logits, teacher_logits = cast(DistilledHead, student.heads[HEAD]).both(student(pixels).x)
        teacher_classes = self._teacher.classes(pixels, self._images.mean, self._images.std)
        label_loss = self.entropy(label_logits, batch.targets, self.smoothing)
        return {"loss": Loss((label_loss + self.entropy(teacher_logits, teacher_classes)) / 2, batch.tokens)}


class Teacher:
    """A teacher model, where the student's classes are in its outputs, and its input size and normalisation."""

    def __init__(
        self, model: Transformer, order: Int[Tensor, "K"], size: tuple[int, int], mean: Tensor, std: Tensor
    ) -> None:
        self.model, self.order, self.size, self.mean, self.std = model.eval(), order, size, mean, std

    @staticmethod
    def open(path: str, labels: Sequence[str]) -> Teacher:
        """Load a run or published model. UserError if it does not take images or lacks one of the student's classes."""
        opened = open_model(named_folder(path))
        model = cast(Transformer, opened.model)
        if not is_vision_classifier(model):
            raise UserError(f"the teacher {path} is not an image classifier; set task.teacher to an image classifier")
        teacher_labels = opened.usage.labels
        missing = next((label for label in labels if label not in teacher_labels), None)
        if missing is not None:
            raise UserError(f"the teacher {path} has no class {missing!r}; use one trained on the same classes")
        processor = processor_of(opened.usage, path)
        embed = cast(PatchEmbed, model.embed).config
        mean, std = (
            torch.tensor(values or (default,) * embed.channels).float().view(1, -1, 1, 1)
            for values, default in ((processor.mean, 0.0), (processor.std, 1.0))
        )
        order = torch.tensor([teacher_labels.index(label) for label in labels])
        return Teacher(model, order, processor.shape or embed.size, mean, std)

    @torch.no_grad()
    def classes(self, x: Float[Tensor, "B C H W"], mean: Tensor, std: Tensor) -> Int[Tensor, "B"]:
        """The teacher's predicted classes, as student class indices, for inputs normalised with `mean` and `std`. The
        teacher sees the same augmented images at its own size.
        """
        self.model.to(x.device)
        mean, std, own_mean, own_std, order = to_device((mean, std, self.mean, self.std, self.order), x.device)
        pixels = x * std + mean
        if pixels.shape[1] != self.mean.shape[1]:
            pixels = pixels.mean(1, keepdim=True).expand(-1, self.mean.shape[1], -1, -1)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        logits = self.model.output(HEAD, (pixels - own_mean) / own_std)
        return logits.index_select(1, order).argmax(-1)
