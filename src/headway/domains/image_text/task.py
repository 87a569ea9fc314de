"""The task of images and texts: which text belongs to which image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.checkpoints.usage import Usage, read_usage
from headway.codecs import Codec
from headway.codecs.processor import ImageProcessor
from headway.config import override
from headway.data import epoch_seed, sides_of
from headway.data.order import mixed
from headway.data.splits import key_of, larger_share
from headway.domains.image_text.config import ImageTextConfig, check_towers
from headway.domains.image_text.contrast import of_parts, sigmoid_contrast, softmax_contrast
from headway.domains.image_text.data import Captions
from headway.domains.image_text.nearest import nearest_pictures
from headway.domains.image_text.pictures import open_pictures
from headway.domains.image_text.processing import processor_of
from headway.domains.image_text.recall import recall
from headway.domains.image_text.texts import encode, text_rows, text_vectors
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.models import Loss, ModelConfig, TwoTower
from headway.report import Picture
from headway.train import WHOLE, Recipe, Shard, Sided, TrainConfig, sharding
from headway.train.rows import Parts, in_parts

_IMAGES_AT_ONCE = 64
_PADDING = 0.2  # of texts, which are short: more parts would take longer than what they save
_PICTURED = 8  # texts and images in the pictures of a report


@dataclass(frozen=True)
class PairBatch:
    """Images and texts. Text n belongs to image `of[n]`; pairs that are the `same` are no negatives of each other."""

    images: Float[Tensor, "B C H W"]
    texts: Parts
    of: Int[Tensor, "N"]
    same: Bool[Tensor, "B N"]
    patches: int  # tokens of an image

    @property
    def tokens(self) -> int:
        return len(self.of)

    @property
    def computed(self) -> int:
        return len(self.images) * self.patches + self.texts.computed

    def to(self, device: torch.device | str) -> Self:
        if self.of.device == torch.device(device):
            return self
        moved = (self.images.to(device), self.texts.to(device), self.of.to(device), self.same.to(device))
        return type(self)(*moved, self.patches)


class ImageText(Sided):
    """The task over captions."""

    goal = "recall_at_1"
    unit = "pair"
    goal_better: Literal["min", "max"] = "max"

    def __init__(self, config: ImageTextConfig, recipe: Recipe, captions: Captions, workspace: Path) -> None:
        """Raises UserError for images that cannot be read, and for texts that are too long."""
        self.config = config
        self.captions = captions
        self.seed = recipe.train.seed
        self.size = recipe.train.batch_size or 0
        towers = check_towers(recipe.model)
        self.usage = read_usage(workspace)
        self.usage = replace(self.usage, processor=processor_of(self.usage, towers))
        self.processor = ImageProcessor.read(self.usage.processor, "preprocessor_config.json")
        self.patches = cast(Any, towers.left.embed).length
        self.pictures_of = open_pictures(captions.images, self.processor, config.skip_bad)
        sound = np.ones(len(captions.images), bool)
        sound[list(self.pictures_of.wrong)] = False
        found = sides_of(captions.groups or self.pictures_of.keys, captions.named, config.split)
        self.sides = {side: numbers[sound[numbers]] for side, numbers in found.items()}
        self.order = np.argsort(captions.of, kind="stable")  # texts, image by image
        self.starts = np.searchsorted(captions.of[self.order], np.arange(len(captions.images) + 1))
        trained = np.isin(captions.of, self.sides["train"])
        self.codec = config.codec_of((captions.texts[row] for row in np.flatnonzero(trained)), workspace)
        self.rows = text_rows(self.codec, captions.texts, towers, config.truncate, captions.places.__getitem__)
        self.said = np.array([key_of(text.casefold()) for text in captions.texts], np.uint64)
        self.alike = np.unique(self.pictures_of.keys, return_inverse=True)[1].astype(np.uint64)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and its end."""
        self.numbers("validation")
        if len(self.numbers("train")) < self.size:
            raise UserError(
                f"train.batch_size {self.size} exceeds the {len(self.numbers('train'))} images to train on; lower it, "
                "or give more"
            )
        towers = override(check_towers(model), {"symbols": self.codec.size})
        return towers if towers.filler is not None else replace(towers, end=self.codec.end)

    def numbers(self, split: str) -> np.ndarray:
        """The images of a split, int64 [N]. A UserError where there are none."""
        found = np.sort(np.concatenate(list(self.sides.values()))) if split == "all" else self.sides[split]
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.captions.images):,} images is empty; give tables named {split}, or "
                f"{larger_share(split)}"
            )
        return found

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[PairBatch]:
        """Batch k of training holds the images k size, ..., (k + 1) size - 1 of a shuffled stream of epochs."""
        numbers = self.numbers(split)
        if split != "train":
            for places in sharding.once(len(numbers), self.size, shard):
                yield self._batch(numbers[places], places, None)
            return
        for stream, places in sharding.endless(len(numbers), self.size, self.seed, shard, start):
            yield self._batch(numbers[places], stream, epoch_seed(self.seed, int(stream[0])))

    def _batch(self, images: np.ndarray, stream: np.ndarray, seed: int | None) -> PairBatch:
        """`seed` is that of the augmentation, None for images as they are; `stream` decides which texts are drawn."""
        pixels = self.images(images)
        if seed is not None:
            pixels = self.config.augment(pixels, seed)
        texts = self._drawn(images, stream)
        of = np.repeat(np.arange(len(images)), self.config.captions)
        said = self.said[texts]
        own = np.concatenate([_pair(self.alike[image], self.said[self.texts_of(image)]) for image in images])
        same = np.isin(_pair(self.alike[images][:, None], said[None]), own)
        parts = in_parts(self.rows, texts, _PADDING, self.config.at_once)
        return PairBatch(pixels, parts, torch.from_numpy(of), torch.from_numpy(same), self.patches)

    def images(self, numbers: np.ndarray) -> Float[Tensor, "B 3 H W"]:
        """What the model reads of images."""
        return torch.from_numpy(np.stack([self.processor.numbers(each) for each in self.pictures_of.pixels[numbers]]))

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

    def loss(self, model: nn.Module, batch: PairBatch) -> dict[str, Loss]:
        towers = cast(TwoTower, model)
        if self.config.scale_limit is not None and torch.is_grad_enabled():
            towers.limit_scale(self.config.scale_limit)
        at_once = self.config.at_once
        some = batch.images.split(at_once or len(batch.images))
        again = model if at_once is not None else None
        images = of_parts(lambda part: towers.vectors("left", part), some, again)
        texts = of_parts(lambda part: encode(towers, part), batch.texts.parts, again)[batch.texts.order]
        contrast = softmax_contrast if self.config.loss == "softmax" else sigmoid_contrast
        return {"loss": Loss(contrast(towers.logits(images, texts), batch.of, batch.same), batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Recall of texts given an image and of images given a text, at 1 and 5, among all of the split."""
        images = self.numbers(split)[:limit]
        texts, of = self.asked(images)
        spoken = self.captions.languages
        languages = None if spoken is None else [spoken[row] for row in texts.tolist()]
        found = recall(self.image_vectors(model, images), self.text_vectors(model, texts), of, languages)
        bad = len(self.pictures_of.wrong)
        return {**found, "skipped_images": bad} if bad else found

    def asked(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts of images that are asked for, and the places of their images, int64 [N] each."""
        each = [texts[self.captions.asked[texts]] for texts in map(self.texts_of, images.tolist())]
        return np.concatenate(each), np.repeat(np.arange(len(images)), [len(texts) for texts in each])

    def image_vectors(self, model: nn.Module, images: np.ndarray) -> Float[np.ndarray, "N E"]:
        towers = cast(TwoTower, model)
        parts = np.split(images, range(_IMAGES_AT_ONCE, len(images), _IMAGES_AT_ONCE))
        with evaluating(towers), torch.inference_mode():
            found = [towers.vectors("left", self.images(part).to(device_of(towers))).cpu() for part in parts]
        return torch.cat(found).numpy()

    def text_vectors(self, model: nn.Module, texts: np.ndarray) -> Float[np.ndarray, "N E"]:
        return text_vectors(cast(TwoTower, model), self.rows, texts).numpy()

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out images with the nearest of all their texts and their own first one."""
        images = self.numbers(self.final_split)
        texts, of = self.asked(images)
        asked = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
        similar = self.image_vectors(model, images[asked]) @ self.text_vectors(model, texts).T
        said = self.captions.texts
        return [
            {
                "source": self.captions.images[images[place]].name,
                "output": said[texts[best]],
                "reference": " | ".join(said[row] for row in texts[of == place]),
            }
            for place, best in zip(asked.tolist(), similar.argmax(1).tolist())
        ]

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Held-out texts with the images that are nearest to them, and images with the texts nearest to them."""
        images = self.numbers(self.final_split)
        texts, of = self.asked(images)
        similar = self.text_vectors(model, texts) @ self.image_vectors(model, images).T
        shown = [self.captions.texts[row] for row in texts.tolist()]
        return nearest_pictures(self.pictures_of.pixels[images], shown, of, similar, _PICTURED)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        self.usage.save(directory)


def published_task(model: TwoTower, codec: Codec, usage: Usage, paths: Sequence[Path]) -> ImageText:
    """The task that judges a published model on the user's own captions. UserErrors as in `ImageText`."""
    with TemporaryDirectory() as folder:  # where a task finds the tokenizer of the model it starts from
        workspace = Path(folder)
        codec.save(workspace)
        usage.save(workspace)
        train = TrainConfig(batch_size=_IMAGES_AT_ONCE)
        recipe = Recipe("image-text", "image_text", "", (), model.config, ImageTextConfig(), train=train)
        return recipe.task.open(recipe, paths, workspace)  # type: ignore[return-value]


def _pair(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """A number for a pair of an image and a text; two pairs have the same one with a chance of 2^-64."""
    return mixed(images.astype(np.uint64)) ^ texts
