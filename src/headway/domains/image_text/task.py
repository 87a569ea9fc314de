"""Contrastive learning of images and texts: CLIP and SigLIP, with lightly augmented images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway.codecs import END_OF_TEXT, FILE, Codec, Kind, load_codec, sentence_codec
from headway.codecs.marks import frame
from headway.codecs.processor import ImageProcessor
from headway.config import register
from headway.data import SplitConfig, Splits, epoch_seed, sides_of
from headway.data.order import mixed
from headway.data.splits import Sides, key_of
from headway.domains.image_text.data import CaptionColumns, Captions, open_pictures, read_captions
from headway.domains.image_text.recall import nearest_pictures, recall
from headway.domains.image_text.use import text_rows, text_vectors
from headway.errors import ConfigError
from headway.formats.usage import Usage, read_usage
from headway.generate.prompts import device_of, evaluating
from headway.learn import Recipe, Task, TaskConfig, TrainConfig
from headway.learn.examples import Batch, Chance, Contents, Numbered
from headway.learn.objectives.contrast import (
    Contrast,
    check_sides,
    coupled,
    of_parts,
    softmax_contrast,
)
from headway.learn.report import Picture
from headway.learn.rows import in_parts
from headway.nn.models import Loss, ModelConfig, PatchEmbedConfig, TwoTower, TwoTowerConfig


@dataclass(frozen=True)
class ImageMovesConfig:
    """Random augmentation of each image at every step: shifted by up to `shift` of its size, zoomed by up to `zoom`,
    rotated by up to `turn` degrees, flipped half of the time with `flip`; brightness and contrast change by up to
    `light`. Pixels from outside repeat the edge.
    """

    shift: float = 0.0  # maximum shift, as a share of the image size
    zoom: float = 0.0  # maximum change of scale, as a share
    turn: float = 0.0  # maximum rotation in degrees
    light: float = 0.0  # maximum change of brightness and contrast
    flip: bool = False  # whether half of the images are flipped horizontally

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"task.augment.{name} is {getattr(self, name)}; choose a share from 0 to below 1")
        if not 0 <= self.turn <= 180:
            raise ConfigError(f"task.augment.turn is {self.turn}; choose degrees from 0 to 180")

    def __call__(self, images: Float[Tensor, "B C H W"], seed: int) -> Float[Tensor, "B C H W"]:
        """A pure function of the images and the seed."""
        if self == ImageMovesConfig():
            return images
        generator = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
        drawn = 2 * torch.rand(7, len(images), generator=generator) - 1  # from -1 to 1
        angle = drawn[2] * self.turn * torch.pi / 180
        size = 1 + drawn[3] * self.zoom
        mirror = torch.where(drawn[4] > 0, -1.0, 1.0) if self.flip else torch.ones(len(images))
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = torch.stack(
            [cos * mirror, -sin, 2 * self.shift * drawn[0], sin * mirror, cos, 2 * self.shift * drawn[1]], 1
        )
        grid = F.affine_grid(rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain, offset = 1 + self.light * drawn[5], self.light * drawn[6]
        return moved * gain[:, None, None, None] + offset[:, None, None, None]


SPECIAL = ("<|startoftext|>", END_OF_TEXT)  # CLIP's
_KEPT = ("image_processor_type", "feature_extractor_type", "image_mean", "image_std", "resample", "rescale_factor")
_IMAGES_AT_ONCE = 64
_SCALES = tuple(2.0**power for power in range(8))  # inverse temperatures
_BLOCK = 1024  # images per contrastive block in evaluation
_PADDING = 0.2  # maximum padding of texts: they are short, so more batches would cost more time than they save
_PICTURED = 8  # texts and images per picture of a report


@register("image_text")
@dataclass(frozen=True)
class ImageTextConfig(TaskConfig):
    """Find the texts of an image among those of others, and the image of a text (Radford et al. 2021).

    `image`, `caption` and `language` name the columns; the last may be missing. `loss` is CLIP's softmax or SigLIP's
    sigmoid, which needs a model with a bias. A batch is train.batch_size images, each with `captions` of its texts,
    sampled again every epoch; train.accumulate is 1, because the loss couples the whole batch. `at_once` images or
    texts are computed together, and recomputed in the backward pass. exp(scale) is limited to `scale_limit`.

    `codec`, `size` (maximum) and `lowercase` apply to the codec that a model from scratch trains. A text with more
    tokens than the model's context is an error, or is cut with `truncate`. A corrupt image is an error, or left out and
    counted with `skip_bad`. `split` sets the held-out shares if no table is named for them.
    """

    image: str = "path"  # column with the images
    caption: str = "caption"  # column with the texts
    language: str = "language"  # column with the language, which may be missing
    loss: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's, or SigLIP's
    captions: int = 1  # texts per image in a batch
    at_once: int | None = None  # images or texts computed together; none: all
    scale_limit: float | None = 100.0  # maximum of exp(scale)
    augment: ImageMovesConfig = ImageMovesConfig()  # augmentation of training images
    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 2000  # maximum vocabulary size
    lowercase: bool = True  # whether to lower-case the texts
    truncate: bool = False  # whether to cut texts that are too long
    skip_bad: bool = False  # whether to leave corrupt images out, and count them
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out shares

    def __post_init__(self) -> None:
        for name in ("captions", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"task.{name} is {value}; choose 1 or more")
        if self.scale_limit is not None and self.scale_limit <= 0:
            raise ConfigError(f"task.scale_limit is {self.scale_limit}; choose a number above 0, such as 100, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        size = self.check(recipe)
        columns = CaptionColumns(self.image, self.caption, self.language)
        images = CaptionedImages(self, recipe, size, read_captions(recipe.files(data), columns), workspace)
        return Task(images, Matching(self))

    def check(self, recipe: Recipe) -> int:
        """The images per batch. Raises ConfigError for incompatible settings."""
        model = check_towers(recipe.model)
        size = coupled(recipe, "images", ", and task.at_once to what fits into memory")
        if self.loss == "sigmoid" and model.bias is None:
            raise ConfigError(
                "task.loss sigmoid needs a bias, but the model has none; set model.bias to -10 and model.scale to "
                "2.3, or task.loss to softmax"
            )
        return size

    def codec_of(self, texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or of its start model, otherwise one trained on the training texts."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        codec = sentence_codec(self.codec, texts, self.size, SPECIAL, self.lowercase)
        frame(codec.tokenizer, "clip", codec.marks, {})  # for other programs that read the tokenizer.json
        return codec


def check_towers(model: ModelConfig) -> TwoTowerConfig:
    """Raises ConfigError for a model that is not a pair of an image and a text tower."""
    if not isinstance(model, TwoTowerConfig) or not isinstance(model.left.embed, PatchEmbedConfig):
        raise ConfigError(
            f"this task needs an image tower and a text tower, but the model is a {type(model).__name__}; start "
            "from a CLIP or SigLIP, or use the model of the recipe"
        )
    return model


class CaptionedImages(Numbered):
    """Images, augmented in training, with some of their texts, sampled again every epoch."""

    def __init__(self, config: ImageTextConfig, recipe: Recipe, size: int, captions: Captions, workspace: Path) -> None:
        """Raises UserError for images that cannot be read, and for texts that are too long."""
        self.config, self.captions = config, captions
        self.seed, self.size, self.at_once = recipe.train.seed, size, size
        towers = check_towers(recipe.model)
        usage = read_usage(workspace)
        self.usage = replace(usage, processor=processor_of(usage, towers))
        self.processor = ImageProcessor.read(self.usage.processor, "preprocessor_config.json")
        self.patches = cast(PatchEmbedConfig, towers.left.embed).length
        self.pictures = open_pictures(captions.images, self.processor, config.skip_bad)
        found = sides_of(captions.groups or self.pictures.keys, captions.named, config.split)
        wrong = list(self.pictures.wrong)
        sides = Sides({side: np.setdiff1d(images, wrong) for side, images in found.items()}, found.removed)
        self.splits = Splits(sides, np.sort(np.concatenate(list(sides.values()))), "images", "tables")
        self.order = np.argsort(captions.of, kind="stable")  # texts, image by image
        self.starts = np.searchsorted(captions.of[self.order], np.arange(len(captions.images) + 1))
        trained = np.isin(captions.of, sides["train"])
        self.codec = config.codec_of((captions.texts[row] for row in np.flatnonzero(trained)), workspace)
        self.rows = text_rows(self.codec, captions.texts, towers, config.truncate, captions.places.__getitem__)
        self.said = np.array([key_of(text.casefold()) for text in captions.texts], np.uint64)
        self.alike = np.unique(self.pictures.keys, return_inverse=True)[1].astype(np.uint64)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size and eos. UserError for a split without images or with fewer than one
        batch.
        """
        check_sides(self.splits, self.size, "images")
        towers = check_towers(model)
        end = self.codec.end if towers.filler is None else towers.end
        return replace(towers, right=replace(towers.right, symbols=self.codec.size), end=end)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Pixels and texts. Text n belongs to image `of[n]`; pairs that are the `same` are not negatives of each other.
        The sampled texts depend on the positions in the stream, or otherwise on the images alone.
        """
        pixels = self.inputs(rows)
        if chance is not None:
            pixels = self.config.augment(pixels, epoch_seed(self.seed, int(chance.places[0])))
        texts = self._drawn(rows, rows if chance is None else chance.places)
        of = np.repeat(np.arange(len(rows)), self.config.captions)
        same = self.same(rows, texts)
        parts = in_parts(self.rows, texts, _PADDING, self.config.at_once)
        targets = torch.from_numpy(of), torch.from_numpy(same)
        return Batch((pixels, parts), targets, len(of), len(rows) * self.patches + parts.computed)

    def same(self, images: np.ndarray, texts: np.ndarray) -> Bool[np.ndarray, "M N"]:
        """Pairs of an image and a text that is equal to one of the image's own texts."""
        own = np.concatenate([_pair(self.alike[image], self.said[self.texts_of(image)]) for image in images])
        return np.isin(_pair(self.alike[images][:, None], self.said[texts][None]), own)

    def contents(self) -> Contents:
        return {"images": (self.pictures.keys,), "texts": (self.captions.texts, self.captions.of)}

    def inputs(self, images: np.ndarray) -> Float[Tensor, "B 3 H W"]:
        """Model inputs of images."""
        return torch.from_numpy(np.stack([self.processor.numbers(each) for each in self.pictures.pixels[images]]))

    def texts_of(self, image: int) -> np.ndarray:
        return self.order[self.starts[image] : self.starts[image + 1]]

    def _drawn(self, images: np.ndarray, stream: np.ndarray) -> np.ndarray:
        """`captions` texts of each image at its position of the stream: consecutive queries or, if there are other
        texts, those half of the time.
        """
        count = self.config.captions
        places = stream.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
        chances = mixed(places ^ mixed(np.uint64(self.seed)))
        drawn = []
        for image, row in zip(images.tolist(), chances.tolist()):
            texts = self.texts_of(image)
            asked = self.captions.asked[texts]
            for turn, chance in enumerate(row):
                kind = texts[asked] if (chance & 1 or asked.all()) and asked.any() else texts[~asked]
                drawn.append(kind[((row[0] >> 1) + turn) % len(kind)])
        return np.array(drawn)

    def asked(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The query texts of images, and the indices of their images, int64 [N] each."""
        each = [texts[self.captions.asked[texts]] for texts in map(self.texts_of, images.tolist())]
        return np.concatenate(each), np.repeat(np.arange(len(images)), [len(texts) for texts in each])

    def shown(self, row: int) -> str:
        return self.captions.images[row].name

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        self.usage.save(directory)


class Matching(Contrast[CaptionedImages]):
    """Contrastive matching of texts and images; the best model has the highest recall in both directions."""

    goal = "mean_recall_at_1"

    def __init__(self, config: ImageTextConfig) -> None:
        self.config, self.kind = config, config.loss

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        if self.config.scale_limit is not None and torch.is_grad_enabled():
            cast(TwoTower, model).limit_scale(self.config.scale_limit)
        return super().loss(model, batch)

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B N"]:
        towers, (pixels, texts), at_once = cast(TwoTower, model), batch.inputs, self.config.at_once
        again = model if at_once is not None else None
        images = of_parts(lambda part: towers.vectors("left", part), pixels.split(at_once or len(pixels)), again)
        said = of_parts(lambda part: towers.vectors("right", *part), texts.parts, again)[texts.order]
        return towers.logits(images, said)

    def judge(
        self, model: nn.Module, examples: CaptionedImages, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Recall of texts given an image and of images given a text, at 1 and 5, over the complete split, the mean of
        both directions, and the loss at the best temperature.
        """
        images = examples.of(split).some(limit).rows
        (texts, of), spoken = examples.asked(images), examples.captions.languages
        languages = None if spoken is None else [spoken[row] for row in texts.tolist()]
        vectors = self.images(model, examples, images), self.texts(model, examples, texts)
        scores = recall(*vectors, of, languages)
        both = (scores["recall_at_1"] + scores["image_recall_at_1"]) / 2
        found = {self.goal: both, **scores, "loss": self._held_out(examples, images, texts, of, *vectors)}
        bad = len(examples.pictures.wrong)
        return {**found, "skipped_images": bad} if bad else found

    def _held_out(
        self, examples: CaptionedImages, images: np.ndarray, texts: np.ndarray, of: np.ndarray, *vectors: np.ndarray
    ) -> float:
        """CLIP's loss per text, over blocks of images with their texts, at the temperature with the lowest loss: an
        overconfident model may still have a high recall.
        """
        left, right = (torch.from_numpy(each) for each in vectors)
        totals = [0.0] * len(_SCALES)
        for start in range(0, len(images), _BLOCK):
            block, some = np.flatnonzero((of >= start) & (of < start + _BLOCK)), slice(start, start + _BLOCK)
            own = torch.from_numpy(of[block] - start)
            same = torch.from_numpy(examples.same(images[some], texts[block]))
            similar = left[some] @ right[block].T
            totals = [
                total + float(softmax_contrast(scale * similar, own, same)) for total, scale in zip(totals, _SCALES)
            ]
        return min(totals) / len(texts)

    def texts(self, model: nn.Module, examples: CaptionedImages, texts: np.ndarray) -> Float[np.ndarray, "N E"]:
        """The embeddings of texts."""
        return text_vectors(cast(TwoTower, model), examples.rows, texts).numpy()

    def images(self, model: nn.Module, examples: CaptionedImages, images: np.ndarray) -> Float[np.ndarray, "N E"]:
        """The embeddings of images."""
        towers, parts = cast(TwoTower, model), np.split(images, range(_IMAGES_AT_ONCE, len(images), _IMAGES_AT_ONCE))
        with evaluating(towers), torch.inference_mode():
            found = [towers.vectors("left", examples.inputs(part).to(device_of(towers))).cpu() for part in parts]
        return torch.cat(found).numpy()

    def samples(self, model: nn.Module, examples: CaptionedImages, count: int) -> list[dict[str, str]]:
        """Held-out images with the nearest of all their texts and their own ones."""
        images = examples.splits.rows(examples.final_split)
        texts, of = examples.asked(images)
        asked = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
        similar = self.images(model, examples, images[asked]) @ self.texts(model, examples, texts).T
        said = examples.captions.texts
        return [
            {
                "source": examples.shown(int(images[place])),
                "output": said[texts[best]],
                "reference": " | ".join(said[row] for row in texts[of == place]),
            }
            for place, best in zip(asked.tolist(), similar.argmax(1).tolist())
        ]

    def pictures(self, model: nn.Module, examples: CaptionedImages) -> list[Picture]:
        """Held-out texts with their nearest images, and images with their nearest texts."""
        images = examples.splits.rows(examples.final_split)
        texts, of = examples.asked(images)
        similar = self.texts(model, examples, texts) @ self.images(model, examples, images).T
        shown = [examples.captions.texts[row] for row in texts.tolist()]
        return nearest_pictures(examples.pictures.pixels[images], shown, of, similar, _PICTURED)


def processor_of(usage: Usage, model: TwoTowerConfig) -> dict[str, Any]:
    """A preprocessor_config.json for the model's image size, based on `usage` or on CLIP's."""
    size = cast(PatchEmbedConfig, model.left.embed).size
    said = usage.processor or {"image_processor_type": "CLIPImageProcessor"}
    if usage.processor:
        known = ImageProcessor.read(usage.processor, "preprocessor_config.json")
        if size == known.shape:
            return usage.processor
    kept = {name: said[name] for name in _KEPT if name in said}
    edges = {"height": size[0], "width": size[1]}
    if size[0] == size[1]:
        return {**kept, "size": {"shortest_edge": size[0]}, "do_center_crop": True, "crop_size": edges}
    return {**kept, "size": edges, "do_center_crop": False}


def published_task(model: TwoTower, codec: Codec, usage: Usage, paths: Sequence[Path]) -> Task:
    """The task that evaluates a published model on the user's captions. UserErrors as in `ImageTextDataset`."""
    with TemporaryDirectory() as folder:  # the workspace, with the start model's tokenizer
        workspace = Path(folder)
        codec.save(workspace)
        usage.save(workspace)
        train = TrainConfig(batch_size=_IMAGES_AT_ONCE)
        recipe = Recipe("image-text", "image_text", "", (), model.config, ImageTextConfig(), train=train)
        return recipe.task.open(recipe, paths, workspace)


def _pair(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """A key for a pair of an image and a text; two pairs collide with probability 2^-64."""
    return mixed(images.astype(np.uint64)) ^ texts
