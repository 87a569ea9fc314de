"""Masked images: predict hidden patches of unlabelled images, and recognise two views of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs.image_processor import ImageProcessor
from headway.config_kinds import register
from headway.data.image_cache import DecodedImages
from headway.data.splits import Splits, split_by_text
from headway.domains.vision.augment import Augment, ImageAugmentConfig
from headway.domains.vision.normalization import Normalizer, channel_moments, image_processor
from headway.domains.vision.unlabelled_images import UnlabelledImages, read_images
from headway.errors import ConfigError
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task
from headway.learn.examples import Contents
from headway.learn.objectives.masked_patches import (
    MaskedPatches,
    MaskedPatchesConfig,
    MaskedPatchSamples,
    MaskedViews,
    distinct,
    patch_values_head,
)
from headway.learn.report import Picture, Tile, tile_grid
from headway.learn.shard_batches import PreparedExamples
from headway.nn.models import ModelConfig, PatchEmbedConfig, TransformerConfig

_HIDDEN_GREY = 128  # value of hidden pixels in pictures
_GAP = 2  # white pixels between the pictures of an image


@register("masked_images")
@dataclass(frozen=True)
class MaskedImagesConfig(MaskedPatchesConfig):
    """Predict hidden patches of unlabelled images, and recognise two views of one image."""

    prepared_kinds: ClassVar[tuple[str, ...]] = ("images",)

    augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)  # augmentation of views

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for images that cannot be read, are too few, or do not fit the model."""
        embed = recipe.model.embed if isinstance(recipe.model, TransformerConfig) else None
        if not isinstance(embed, PatchEmbedConfig):
            raise ConfigError(
                "this model does not take images; use one that does, such as --set model=vit-ti16, or start from a ViT"
            )
        images = read_images(recipe.files(data))
        shape = images.prepared_shape
        if shape is not None and recipe.start is None and not (workspace / "recipe.json").exists():
            embed = replace(embed, size=shape[:2], channels=shape[2])
        settings, has_means = image_processor(read_usage(workspace).processor, embed)
        decoded = images.decode(ImageProcessor.read(settings, "preprocessor_config.json"), self.skip_bad)
        dataset = MaskedImages(self, recipe, embed, images, decoded)
        train, prepared = dataset.splits.indices["train"], dataset.prepared
        if prepared is not None and prepared.is_windowed:
            train = dataset.prepared_rows[train]
            train = train[train >= 0]
        moments = None if has_means or not len(train) else channel_moments(decoded.pixels, train, prepared)
        dataset.normalizer = Normalizer(settings, moments)
        return Task(dataset, MaskedPatches("image", self))


class MaskedImages(PreparedExamples, MaskedPatchSamples):
    """Unlabelled images, each once, with augmented views in training."""

    normalizer: Normalizer

    def __init__(
        self,
        config: MaskedImagesConfig,
        recipe: Recipe,
        embed: PatchEmbedConfig,
        images: UnlabelledImages,
        decoded: DecodedImages,
    ) -> None:
        assert isinstance(recipe.model, TransformerConfig)  # checked by the task
        self.embed, self.images, self.pixels, self.keys = embed, images, decoded.pixels, decoded.keys
        self.hiding, self.contrast, self.grid = config.hiding, config.contrast, embed.grid(embed.size)
        patch_values_head(replace(recipe.model, embed=embed))  # a ConfigError for patches that cannot be hidden
        readable = np.array([row for row in distinct(decoded.keys) if row not in decoded.errors], np.int64)
        self.set_prepared(images.parts(), recipe)
        stated = images.decided_splits()[readable]
        indices = split_by_text([decoded.keys[row] for row in readable.tolist()], stated, config.split)
        for split, rows in indices.items():
            indices[split] = readable[rows]
        self.splits = Splits(indices, readable, "images", "images")
        self.set_batches(recipe, "images")
        self.augment = Augment(config.augment, self.seed)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the size of prepared images. UserError for a split without images."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)  # checked by the task
        return replace(model, embed=self.embed)

    def view(self, rows: Int[np.ndarray, "B"], positions: Int[np.ndarray, "B"] | None) -> Float[Tensor, "B C H W"]:
        """Normalised pixels."""
        raw_pixels = np.asarray(self.pixels[rows])
        if positions is None:
            return self.normalizer(torch.from_numpy(raw_pixels).permute(0, 3, 1, 2).float())
        pixels = self.normalizer(self.augment.augment_pixels(raw_pixels, positions))
        return self.augment.erase(pixels, positions)

    def contents(self) -> Contents:
        return {"images": (self.keys,)}

    def describe_row(self, row: int) -> str:
        """The file name of an image, with its index if the file has several."""
        index = self.images.indices[row]
        return self.images.files[row].name + ("" if index is None else f", image {index + 1}")

    def save(self, directory: Path) -> None:
        super().save(directory)
        replace(read_usage(directory), processor=self.normalizer.processor).save(directory)

    def compare(self, views: MaskedViews) -> list[Picture]:
        """Each image with its hidden patches in grey, with the predicted ones, and as it is."""
        tiles = []
        for parts in zip(views.hidden, views.predicted, views.inputs):
            columns = []
            for part in parts:
                pixels = self.normalizer.undo(part[None])[0].nan_to_num(_HIDDEN_GREY).clamp(0, 255)
                image = np.broadcast_to(pixels.permute(1, 2, 0).round().to(torch.uint8).numpy(), (*pixels.shape[1:], 3))
                columns += [image, np.full((image.shape[0], _GAP, 3), 255, np.uint8)]
            tiles.append(Tile(np.concatenate(columns[:-1], 1)))
        caption = "held-out images: with hidden patches, with the predicted ones, and complete"
        return [Picture("Hidden patches", caption, tile_grid(tiles), wide=True)]
