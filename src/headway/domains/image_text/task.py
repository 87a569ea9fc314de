"""Which text belongs to which image: CLIP and SigLIP, from images that are moved a little."""

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
    """Each image is drawn anew at every step: shifted by up to `shift` of its sides, made larger or smaller by up to
    `zoom`, turned by up to `turn` degrees, mirrored half of the time with `flip`; brightness and contrast change by up
    to `light`. What comes in from outside repeats the edge.
    """

    shift: float = 0.0  # share of the sides by which it is moved at most
    zoom: float = 0.0  # share by which it is made larger or smaller at most
    turn: float = 0.0  # most degrees
    light: float = 0.0  # most change of brightness and contrast
    flip: bool = False  # whether half are mirrored

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"task.augment.{name} is {getattr(self, name)}; give a share from 0 to below 1")
        if not 0 <= self.turn <= 180:
            raise ConfigError(f"task.augment.turn is {self.turn}; give degrees from 0 to 180")

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
_SCALES = tuple(2.0**power for power in range(8))  # by which similarities are multiplied
_BLOCK = 1024  # images whose texts compete with each other in the loss of a split
_PADDING = 0.2  # of texts, which are short: more parts would take longer than what they save
_PICTURED = 8  # texts and images in the pictures of a report


@register("image_text")
@dataclass(frozen=True)
class ImageTextConfig(TaskConfig):
    """Find the texts of an image among those of others, and the image of a text (Radford et al. 2021).

    `image`, `caption` and `language` are the names of the columns; the last may be missing. `loss` is CLIP's softmax or
    SigLIP's sigmoid, which wants a model with a bias. A batch is train.batch_size images, each with so many `captions`
    of its own, drawn anew each epoch; as the loss couples them, train.accumulate is 1, and `at_once` images or texts
    are computed together, the others again on the way back. exp(scale) is held to `scale_limit`.

    `codec`, `size` (at most) and `lowercase` are for the codec that is trained where the model starts from scratch. A
    text of more tokens than the model reads is an error, or cut with `truncate`. An image that is corrupt is an error,
    or left out and counted with `skip_bad`. `split` says what is held out where no table is named for it.
    """

    image: str = "path"  # column of the images
    caption: str = "caption"  # column of the texts
    language: str = "language"  # column of the language, which may be missing
    loss: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's, or SigLIP's
    captions: int = 1  # texts of each image in a batch
    at_once: int | None = None  # images or texts computed together; none: all
    scale_limit: float | None = 100.0  # the most that exp(scale) may be
    augment: ImageMovesConfig = ImageMovesConfig()  # what training changes of images
    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 2000  # most symbols
    lowercase: bool = True  # whether texts are lower-cased
    truncate: bool = False  # cut texts that are too long
    skip_bad: bool = False  # leave corrupt images out, and count them
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def __post_init__(self) -> None:
        for name in ("captions", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"task.{name} is {value}; give 1 or more")
        if self.scale_limit is not None and self.scale_limit <= 0:
            raise ConfigError(f"task.scale_limit is {self.scale_limit}; give a number above 0, such as 100, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        size = self.check(recipe)
        columns = CaptionColumns(self.image, self.caption, self.language)
        images = CaptionedImages(self, recipe, size, read_captions(recipe.files(data), columns), workspace)
        return Task(images, Matching(self))

    def check(self, recipe: Recipe) -> int:
        """The images of a batch. Raises ConfigError for settings that do not go together."""
        model = check_towers(recipe.model)
        size = coupled(recipe, "images", ", and task.at_once to what fits into memory")
        if self.loss == "sigmoid" and model.bias is None:
            raise ConfigError(
                "task.loss sigmoid learns a bias, and the model has none; set model.bias to -10 and model.scale to "
                "2.3, or task.loss to softmax"
            )
        return size

    def codec_of(self, texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or of the model it starts from; else one made of the texts that are trained on."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        codec = sentence_codec(self.codec, texts, self.size, SPECIAL, self.lowercase)
        frame(codec.tokenizer, "clip", codec.marks, {})  # for others who read the tokenizer.json
        return codec


def check_towers(model: ModelConfig) -> TwoTowerConfig:
    """Raises ConfigError for a model that is no pair of towers, an image's and a text's."""
    if not isinstance(model, TwoTowerConfig) or not isinstance(model.left.embed, PatchEmbedConfig):
        raise ConfigError(
            f"this task needs a tower of images and one of texts, and the model is a {type(model).__name__}; start "
            "from a CLIP or SigLIP, or take the model of the recipe"
        )
    return model


class CaptionedImages(Numbered):
    """Images, moved at random in training, with texts of theirs, drawn anew each epoch."""

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
        """`model` with the codec's symbols and its end. UserError for a split without images, and for fewer than a
        batch holds.
        """
        check_sides(self.splits, self.size, "images")
        towers = check_towers(model)
        end = self.codec.end if towers.filler is None else towers.end
        return replace(towers, right=replace(towers.right, symbols=self.codec.size), end=end)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Pixels and texts. Text n belongs to image `of[n]`; pairs that are the `same` are no negatives of each other.
        Which texts are drawn hangs on the places in the stream, or else on the images alone.
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
        """Which texts say of which images what one of their own texts says."""
        own = np.concatenate([_pair(self.alike[image], self.said[self.texts_of(image)]) for image in images])
        return np.isin(_pair(self.alike[images][:, None], self.said[texts][None]), own)

    def contents(self) -> Contents:
        return {"images": (self.pictures.keys,), "texts": (self.captions.texts, self.captions.of)}

    def inputs(self, images: np.ndarray) -> Float[Tensor, "B 3 H W"]:
        """What the model reads of images."""
        return torch.from_numpy(np.stack([self.processor.numbers(each) for each in self.pictures.pixels[images]]))

    def texts_of(self, image: int) -> np.ndarray:
        return self.order[self.starts[image] : self.starts[image + 1]]

    def _drawn(self, images: np.ndarray, stream: np.ndarray) -> np.ndarray:
        """Texts of images at places of the stream, `captions` of each: a run of those that are asked for or, where
        there are others, of these half of the time.
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
        """The texts of images that are asked for, and the places of their images, int64 [N] each."""
        each = [texts[self.captions.asked[texts]] for texts in map(self.texts_of, images.tolist())]
        return np.concatenate(each), np.repeat(np.arange(len(images)), [len(texts) for texts in each])

    def shown(self, row: int) -> str:
        return self.captions.images[row].name

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        self.usage.save(directory)


class Matching(Contrast[CaptionedImages]):
    """Texts and images find each other: the best model is the one that finds most in both directions."""

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
        """Recall of texts given an image and of images given a text, at 1 and 5, among all of the split, the mean of
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
        """CLIP's loss per text, of blocks of images with their texts, at the temperature of least loss: a model that is
        too sure of its pairs may find more of them all the same.
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
        """The vectors of texts."""
        return text_vectors(cast(TwoTower, model), examples.rows, texts).numpy()

    def images(self, model: nn.Module, examples: CaptionedImages, images: np.ndarray) -> Float[np.ndarray, "N E"]:
        """The vectors of images."""
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
        """Held-out texts with the images that are nearest to them, and images with the texts nearest to them."""
        images = examples.splits.rows(examples.final_split)
        texts, of = examples.asked(images)
        similar = self.texts(model, examples, texts) @ self.images(model, examples, images).T
        shown = [examples.captions.texts[row] for row in texts.tolist()]
        return nearest_pictures(examples.pictures.pixels[images], shown, of, similar, _PICTURED)


def processor_of(usage: Usage, model: TwoTowerConfig) -> dict[str, Any]:
    """A preprocessor_config.json whose images are of the model's size: what `usage` says, or CLIP's."""
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
    """The task that judges a published model on the user's own captions. UserErrors as in `CaptionedImages`."""
    with TemporaryDirectory() as folder:  # where a task finds the tokenizer of the model it starts from
        workspace = Path(folder)
        codec.save(workspace)
        usage.save(workspace)
        train = TrainConfig(batch_size=_IMAGES_AT_ONCE)
        recipe = Recipe("image-text", "image_text", "", (), model.config, ImageTextConfig(), train=train)
        return recipe.task.open(recipe, paths, workspace)


def _pair(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """A number for a pair of an image and a text; two pairs have the same one with a chance of 2^-64."""
    return mixed(images.astype(np.uint64)) ^ texts
