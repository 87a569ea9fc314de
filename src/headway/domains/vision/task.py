"""The class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.checkpoints.alike import SMALLEST, Alike, looks
from headway.checkpoints.familiar import Familiar
from headway.checkpoints.usage import read_usage
from headway.codecs.processor import ImageProcessor
from headway.config import register
from headway.data import SplitConfig
from headway.domains.vision.augment import Augment, AugmentConfig
from headway.domains.vision.pictures import pictures
from headway.domains.vision.pixels import load_images
from headway.domains.vision.samples import Samples, read_samples
from headway.domains.vision.teacher import Teacher
from headway.errors import ConfigError
from headway.models import (
    DistilledHead,
    DistilledHeadConfig,
    HeadConfig,
    Loss,
    ModelConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    Transformer,
    TransformerConfig,
)
from headway.report import Picture
from headway.train import Recipe, TaskConfig
from headway.train.classes import HEAD, ClassBatch, ClassSamples, ClassTask, check_classes

_MEASURED = 10_000  # images whose mean and deviation are taken


@register("vision")
@dataclass(frozen=True)
class VisionConfig(TaskConfig):
    """Give each image its class.

    `smoothing` spreads that share of each label over all classes (Szegedy et al. 2016). `names` are those of classes
    that data have as numbers. `skip_bad` leaves images out that cannot be read, and counts them. `teacher` is a run
    or a published model of the same classes, from which a second token learns (Touvron et al. 2021, hard distillation).
    """

    split: SplitConfig = SplitConfig()  # what is held out
    smoothing: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # what training changes of images
    names: tuple[str, ...] = ()
    skip_bad: bool = False
    teacher: str | None = None

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Vision:
        """Raises UserError for images that cannot be read, hold too little, or do not fit the model."""
        paths = recipe.files(data)
        return Vision(self, recipe, read_samples(paths, self.names), workspace)


class Vision(ClassTask):
    """Images as the model reads them, changed at random in training."""

    unit = "image"

    def __init__(self, config: VisionConfig, recipe: Recipe, samples: Samples, workspace: Path) -> None:
        self.config = config
        embed = _embed(recipe.model)
        # grey images need no three channels, but in a model that has them
        grey = samples.grey is not None and recipe.start is None
        channels = 1 if grey else embed.channels
        self.embed = replace(embed, channels=channels, tokens=max(embed.tokens, 2 if config.teacher else 0))
        self.processor, known = _processor(read_usage(workspace).processor, self.embed)
        reader = ImageProcessor.read(self.processor, "preprocessor_config.json")
        images = load_images(samples, reader, config.skip_bad)
        kept = np.setdiff1d(np.arange(len(samples)), list(images.wrong))
        self.rows = kept
        self.images = images.pixels
        self.files = samples.files
        self.places = samples.places
        labels = [samples.labels[row] for row in kept.tolist()]
        check_classes(samples.labels, labels, self.unit)
        labelled = ClassSamples(
            labels,
            samples.named[kept],
            [images.keys[row] for row in kept.tolist()],
            lambda row: samples.places[int(kept[row])],
        )
        super().__init__(recipe, labelled, config.split, config.smoothing, workspace)
        self.augment = Augment(config.augment, self.seed)
        if not known:
            self.processor = {**self.processor, **self._measured()}
        read = ImageProcessor.read(self.processor, "preprocessor_config.json")
        mean, std, self.factor = read.mean or (0.0,), read.std or (1.0,), read.factor or 1.0
        self.mean, self.std = (torch.tensor(each).float().view(1, -1, 1, 1) for each in (mean, std))
        self._teacher: Teacher | None = None
        if config.teacher is not None and not (workspace / "recipe.json").exists():  # a run that has begun had one
            self._taught()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the images' channels and a head of as many classes as there are."""
        for split in ("train", "validation"):
            self.numbers(split)
        assert isinstance(model, TransformerConfig)  # as `_embed` has seen
        return replace(model, embed=self.embed, heads={HEAD: self._head(model.heads.get(HEAD))})

    def _head(self, before: HeadConfig | None) -> HeadConfig:
        count, embed = len(self.labels), self.embed
        if isinstance(before, DistilledHeadConfig) or self.config.teacher is not None:
            return DistilledHeadConfig(count)
        if isinstance(before, PooledHeadConfig):
            return replace(before, outputs=count)
        return PooledHeadConfig(count, "first" if embed.tokens else "mean", skip=embed.registers)

    def _measured(self) -> dict[str, Any]:
        """Mean and standard deviation of each channel of training images, from 0 to 1."""
        rows = self.rows[self.numbers("train")]
        some = self.images[rows[:: max(1, len(rows) // _MEASURED)]]
        levels = np.arange(256) / 255
        counts = [np.bincount(some[..., i].reshape(-1), minlength=256) for i in range(self.embed.channels)]
        mean = np.array([np.average(levels, weights=each) for each in counts])
        square = np.array([np.average(levels**2, weights=each) for each in counts])
        std = np.sqrt(np.maximum(square - mean**2, 1e-4))
        return {"image_mean": mean.round(4).tolist(), "image_std": std.round(4).tolist()}

    def inputs(self, rows: np.ndarray, places: np.ndarray | None = None) -> Float[Tensor, "B C H W"]:
        """Normalised pixels; with `places`, changed at random."""
        found = np.asarray(self.images[self.rows[rows]])
        if places is None:
            return self._normalised(torch.from_numpy(found).permute(0, 3, 1, 2).float())
        return self.augment.erase(self._normalised(self.augment.pixels(found, places)), places)

    def _normalised(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return ((x * self.factor - self.mean) / self.std).contiguous()

    def training_batch(self, rows: np.ndarray, places: np.ndarray) -> ClassBatch:
        config = self.config.augment
        inputs, labels = self.inputs(rows, places), torch.from_numpy(self.classes[rows])
        if config.mixup or config.cutmix:
            shares = F.one_hot(labels, len(self.labels)).float()
            inputs, labels = self.augment.mix(inputs, shares, places)
        return ClassBatch(inputs, labels, self.embed.length)

    def loss(self, model: nn.Module, batch: ClassBatch) -> dict[str, Loss]:
        """Cross-entropy; with a teacher, its mean with that of the second token to the class which the teacher names
        (Touvron et al. 2021, equation 3).
        """
        if self.config.teacher is None:
            return super().loss(model, batch)
        student = cast(Transformer, model)
        labelled, taught = cast(DistilledHead, student.heads[HEAD]).both(student(batch.inputs).x)
        says = self._taught().classes(batch.inputs, self.mean, self.std)
        given = F.cross_entropy(labelled, batch.labels, reduction="sum", label_smoothing=self.smoothing)
        return {"loss": Loss((given + F.cross_entropy(taught, says, reduction="sum")) / 2, batch.tokens)}

    def _taught(self) -> Teacher:
        if self._teacher is None:
            self._teacher = Teacher.open(self.config.teacher or "", self.labels)
        return self._teacher

    def shown(self, row: int) -> str:
        """The name of its file, or its place in one."""
        number = int(self.rows[row])
        return self.files[number].name if self.files is not None else Path(self.places[number]).name

    def met(self) -> Familiar:
        """What the training images have in common."""
        rows = self.rows[self.numbers("train")]
        some = rows[:: max(1, len(rows) // _MEASURED)]
        high, wide = self.embed.size
        return Familiar(
            alike=Alike.of(looks(self.images[row] for row in some)) if min(high, wide) >= SMALLEST else None
        )

    def pictures(self, model: nn.Module) -> list[Picture]:
        """What is taken for what, and where the model looks in some images."""
        return pictures(self, cast(Transformer, model))

    def save(self, directory: Path) -> None:
        super().save(directory)
        replace(read_usage(directory), processor=self.processor).save(directory)


def _embed(model: ModelConfig) -> PatchEmbedConfig:
    embed = model.embed if isinstance(model, TransformerConfig) else None
    if not isinstance(embed, PatchEmbedConfig):
        raise ConfigError(
            "this model reads no images; take one that does, such as --set model=vit-ti16, or start from a ViT"
        )
    return embed


def _processor(given: dict[str, Any], embed: PatchEmbedConfig) -> tuple[dict[str, Any], bool]:
    """What makes inputs of images, in the model's size, and whether its means are known: from what was `given`.

    Where nothing was, images are squeezed or stretched to that size whole, as by ViT's own processor.
    """
    before = ImageProcessor.read(given, "preprocessor_config.json") if given else None
    if before is not None and before.shape == embed.size and before.channels == embed.channels:
        return given, True
    mean = std = (0.5,) * embed.channels
    known = before is not None and before.channels == embed.channels
    if before is not None and known:
        mean, std = before.mean or mean, before.std or std
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": embed.size[0], "width": embed.size[1]},
        "resample": 2 if before is None else before.resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }, known
