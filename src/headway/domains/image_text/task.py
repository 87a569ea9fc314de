"""Contrastive learning of images and texts (CLIP and SigLIP), with lightly augmented images: task, recall, and pictures
of nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from headway.codecs import END_OF_TEXT, FILE, Codec, Kind, load_codec, sentence_codec
from headway.codecs.image_processor import ImageProcessor, pillow
from headway.codecs.special_tokens import set_post_processor
from headway.config_kinds import register
from headway.data import SplitConfig, Splits, epoch_seed, split_by_text
from headway.data.image_cache import DecodedImages
from headway.data.shuffling import splitmix64
from headway.data.splits import text_key
from headway.domains.image_text.captioned_images import CaptionColumns, Captions, decode_captioned, open_captions
from headway.domains.image_text.pair_inference import text_rows, text_vectors
from headway.errors import ConfigError, UserError
from headway.formats.usage import Usage, read_usage
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig, TrainConfig
from headway.learn.examples import Batch, Contents, RngKey, spread_evenly
from headway.learn.objectives.contrastive import (
    Contrastive,
    check_splits,
    contrastive_batch_size,
    encode_chunks,
    softmax_contrast,
)
from headway.learn.report import Picture
from headway.learn.report.charts import ellipsize, svg, text
from headway.learn.report.rendering import data_uri
from headway.learn.shard_batches import PreparedExamples
from headway.learn.token_rows import split_by_length
from headway.metrics import bootstrap_mean, wilson_interval
from headway.nn.models import (
    Loss,
    ModelConfig,
    PatchEmbedConfig,
    TokenInputs,
    TwoTower,
    TwoTowerConfig,
    evaluation_mode,
)
from headway.nn.models.two_tower import HEAD

_TILE_SIDE, _GAP, _LABEL_WIDTH = 56, 8, 180  # in SVG units
_NEAREST = 5
_THUMBNAIL = 96  # pixels per side


def _drawing(rows: Sequence[Sequence[str]], title: str) -> str:
    step = _TILE_SIDE + 2 * _GAP
    groups = [f'<g transform="translate(2 {2 + index * step})">{"".join(row)}</g>' for index, row in enumerate(rows)]
    return svg(_LABEL_WIDTH + _NEAREST * (_TILE_SIDE + _GAP), len(rows) * step, groups, title)


def _image_element(x: float, pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    image = pillow().fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return f'<image x="{x}" y="0" width="{_TILE_SIDE}" height="{_TILE_SIDE}" href="{data_uri(np.array(image))}"/>'


RECALL_AT = (1, 5)
_TOLERANCE = 1e-6  # minimum difference of similarities; equal texts are equally near
_BLOCK_ROWS = 1024  # queries per block of similarities


def retrieval_recall(
    images: Float[np.ndarray, "M E"],
    texts: Float[np.ndarray, "N E"],
    of: Int[np.ndarray, "N"],
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`recall_at_K` is how often one of an image's texts is among the K nearest texts; `image_recall_at_K` is how often
    a text's image is among the K nearest images. Text n belongs to image `of[n]`.

    With `languages` [N], only texts in the same language are compared: recall_at_K is the mean over languages, and
    recall_at_K_LANGUAGE is for one. Intervals resample images. Ties count in favour of the true pair.
    """
    if not len(texts):
        raise UserError("there are no texts to measure; pass at least one")
    text_languages = np.array(languages) if languages is not None else np.full(len(texts), "")
    ranks: dict[str, np.ndarray] = {}  # for each image, the texts nearer than its own nearest; -1 if it has no text
    for name in np.unique(text_languages).tolist():
        candidates = np.flatnonzero(text_languages == name)
        ranks[name] = np.full(len(images), -1)
        for image in np.unique(of[candidates]):
            similarity = texts[candidates] @ images[image]
            ranks[name][image] = (similarity > similarity[of[candidates] == image].max() + _TOLERANCE).sum()
    image_ranks = []  # for each text, the images nearer than its own, including images without a text
    for start in range(0, len(texts), _BLOCK_ROWS):
        similarity = texts[start : start + _BLOCK_ROWS] @ images.T
        image_of = of[start : start + _BLOCK_ROWS]
        own = similarity[np.arange(len(image_of)), image_of][:, None]
        image_ranks.append((similarity > own + _TOLERANCE).sum(1))
    scores = {
        **_scores("recall", ranks),
        **_scores("image_recall", {"": np.concatenate(image_ranks)}),
        "samples": len(np.unique(of)),
    }
    if languages is not None:
        for name, language_ranks in ranks.items():
            scores |= {
                f"recall_at_{k}_{name}": float((language_ranks[language_ranks >= 0] < k).mean()) for k in RECALL_AT
            }
    return scores


def _scores(name: str, ranks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates and their intervals, over the rows [M] with a rank (0 or more) in any language."""
    scores: dict[str, Any] = {}
    table = np.stack(list(ranks.values()), 1)
    ranked = table[(table >= 0).any(1)]
    for k in RECALL_AT:
        hits = ((ranked >= 0) & (ranked < k)).sum(1) / (ranked >= 0).sum(1)
        rate = float(hits.mean())
        scores[f"{name}_at_{k}"] = rate
        has_several = table.shape[1] > 1
        scores[f"{name}_at_{k}_interval"] = (
            bootstrap_mean(hits) if has_several else wilson_interval(int(hits.sum()), len(hits))
        )
    return scores


@dataclass(frozen=True)
class ImageTextAugmentConfig:
    """Random augmentation of each image at every step: shift by up to `shift` of its size, zoom by up to `zoom`,
    rotation by up to `turn` degrees, a flip half of the time with `flip`, and brightness and contrast changes of up to
    `light`. Pixels from outside the image repeat the edge.
    """

    shift: float = 0.0  # maximum shift, as a share of the image size
    zoom: float = 0.0  # maximum change of scale, as a share
    turn: float = 0.0  # maximum rotation in degrees
    light: float = 0.0  # maximum change of brightness and contrast
    flip: bool = False  # whether half of the images are flipped horizontally

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "light"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"task.augment.{name} is {getattr(self, name)}; choose a fraction of at least 0 and below 1"
                )
        if not 0 <= self.turn <= 180:
            raise ConfigError(f"task.augment.turn is {self.turn}; choose an angle from 0 to 180 degrees")

    def __call__(self, images: Float[Tensor, "B C H W"], seed: int) -> Float[Tensor, "B C H W"]:
        """A pure function of the images and the seed."""
        if self == ImageTextAugmentConfig():
            return images
        generator = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
        uniform = 2 * torch.rand(7, len(images), generator=generator) - 1  # from -1 to 1
        angle = uniform[2] * self.turn * torch.pi / 180
        zoom = 1 + uniform[3] * self.zoom
        mirror = torch.where(uniform[4] > 0, -1.0, 1.0) if self.flip else torch.ones(len(images))
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        aspect = images.shape[-2] / images.shape[-1]  # coordinates go from -1 to 1 in both directions
        across, down = 2 * self.shift * uniform[0], 2 * self.shift * uniform[1]
        rows = torch.stack([cos * mirror, -sin * aspect, across, sin * mirror / aspect, cos, down], 1)
        grid = F.affine_grid(rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
        warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain, offset = 1 + self.light * uniform[5], self.light * uniform[6]
        return warped * gain[:, None, None, None] + offset[:, None, None, None]


SPECIAL = ("<|startoftext|>", END_OF_TEXT)  # as in CLIP
_PROCESSOR_KEYS = (
    "image_processor_type",
    "feature_extractor_type",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
)
_IMAGE_BATCH = 64
_SCALES = tuple(2.0**power for power in range(8))  # inverse temperatures
_BLOCK = 1024  # images per block in evaluation
_MAX_PADDING = 0.2  # maximum padding: texts are short, so more batches would cost more time than they save
_PICTURE_ROWS = 8  # texts and images per picture in a report


@register("image_text")
@dataclass(frozen=True)
class ImageTextConfig(TaskConfig):
    """Match images with their texts, in both directions, among those of others (Radford et al. 2021).

    `image`, `caption` and `language` name the columns; the last is optional. `loss` is CLIP's softmax, SigLIP's
    sigmoid, which needs a model with a bias, or `tokens`: an image predicts each token of its texts (Joulin et al.
    2016), which needs fewer images. Its text tower embeds tokens one by one in training, so it should pool their mean.
    A batch is train.batch_size images, each with `captions` of its texts,
    sampled again every epoch; train.accumulate is 1, because the loss couples the whole batch. `at_once` images or
    texts are computed together, and recomputed in the backward pass. exp(scale) is limited to `scale_limit`.

    `codec`, `size` (maximum vocabulary size) and `lowercase` apply to the codec that is trained for a model from
    scratch. A text with more tokens than the model's context is an error or, with `truncate`, truncated. A corrupt
    image is an error or, with `skip_bad`, skipped and counted. `split` sets the held-out shares if no tables are named
    for the splits.
    """

    image: str = "path"  # column with the image paths
    caption: str = "caption"  # column with the texts
    language: str = "language"  # optional column with the language
    prepared_kinds: ClassVar[tuple[str, ...]] = ("image-text",)

    loss: Literal["softmax", "sigmoid", "tokens"] = "softmax"  # softmax as in CLIP, sigmoid as in SigLIP, or tokens
    captions: int = 1  # texts per image in a batch
    at_once: int | None = None  # images or texts computed together; none: all
    scale_limit: float | None = 100.0  # maximum of exp(scale)
    augment: ImageTextAugmentConfig = ImageTextAugmentConfig()  # augmentation of training images
    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 2000  # maximum vocabulary size
    lowercase: bool = True  # whether to lower-case the texts
    truncate: bool = False  # whether to truncate texts that are too long
    skip_bad: bool = False  # whether to skip and count corrupt images
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out shares

    def __post_init__(self) -> None:
        for name in ("captions", "at_once"):
            setting = getattr(self, name)
            if setting is not None and setting < 1:
                raise ConfigError(f"task.{name} is {setting}; choose 1 or more")
        if self.scale_limit is not None and self.scale_limit <= 0:
            raise ConfigError(f"task.scale_limit is {self.scale_limit}; choose a number above 0, such as 100, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        columns = CaptionColumns(self.image, self.caption, self.language)
        dataset = self.dataset(recipe, lambda: open_captions(recipe.files(data), columns), workspace)
        return Task(dataset, ImageTextMatching(self))

    def dataset(self, recipe: Recipe, read: Callable[[], Captions], workspace: Path) -> ImageTextDataset:
        """The captions from `read` with their images. Raises ConfigError for incompatible settings, UserError for
        images that cannot be read and texts that are too long.
        """
        model = check_towers(recipe.model)
        size = contrastive_batch_size(recipe, "images", ", and task.at_once to what fits into memory")
        if self.loss == "sigmoid" and model.bias is None:
            raise ConfigError(
                "task.loss sigmoid needs a bias, but the model has none; set model.bias to -10 and model.scale to "
                "2.3, or task.loss to softmax"
            )
        captions, usage = read(), read_usage(workspace)
        if captions.prepared is not None and not usage.processor:
            height, width, _ = captions.prepared.details["shape"]
            model = with_size(model, (height, width))
        usage = replace(usage, processor=processor_of(usage, model))
        processor = ImageProcessor.read(usage.processor, "preprocessor_config.json")
        decoded = decode_captioned(captions, processor, self.skip_bad)
        return ImageTextDataset(self, recipe, model, size, captions, decoded, usage, processor, workspace)


def check_towers(model: ModelConfig) -> TwoTowerConfig:
    """Raises ConfigError for a model that is not an image tower with a text tower."""
    if not isinstance(model, TwoTowerConfig) or not isinstance(model.left.embed, PatchEmbedConfig):
        raise ConfigError(
            f"this task needs an image tower and a text tower, but the model is a {type(model).__name__}; start from "
            "CLIP or SigLIP, or use the recipe's model"
        )
    return model


def with_size(towers: TwoTowerConfig, size: tuple[int, int]) -> TwoTowerConfig:
    """The towers for images of this size."""
    embed = replace(cast(PatchEmbedConfig, towers.left.embed), size=size)
    return replace(towers, left=replace(towers.left, embed=embed))


class ImageTextDataset(PreparedExamples):
    """Images, augmented in training, with some of their texts, which are sampled again every epoch."""

    def __init__(
        self,
        config: ImageTextConfig,
        recipe: Recipe,
        towers: TwoTowerConfig,
        size: int,
        captions: Captions,
        decoded: DecodedImages,
        usage: Usage,
        processor: ImageProcessor,
        workspace: Path,
    ) -> None:
        """Raises UserError for texts that are too long."""
        self.config, self.captions, self.decoded = config, captions, decoded
        self.usage, self.processor = usage, processor
        self.seed, self.batch_size, self.eval_batch_size = recipe.train.seed, size, size
        embed = cast(PatchEmbedConfig, towers.left.embed)
        self.num_patches, self.image_size = embed.length, embed.size
        self.prepared, self.prepared_rows = captions.prepared, np.arange(len(captions.images))
        split_images = split_by_text(captions.groups or decoded.keys, captions.named_splits, config.split)
        splits = split_images.without(list(decoded.errors))
        self.splits = Splits(splits, np.sort(np.concatenate(list(splits.values()))), "images", "tables")
        self.text_order = np.argsort(captions.image_of, kind="stable")  # texts, image by image
        self.text_starts = np.searchsorted(captions.image_of[self.text_order], np.arange(len(captions.images) + 1))
        if (workspace / FILE).exists():  # of the run or its start model
            self.codec = load_codec(workspace)
        else:
            is_train = np.isin(captions.image_of, splits["train"])
            train_texts = (captions.texts[row] for row in np.flatnonzero(is_train))
            self.codec = codec = sentence_codec(config.codec, train_texts, config.size, SPECIAL, config.lowercase)
            # For other programs that read the tokenizer.json.
            set_post_processor(codec.tokenizer, "clip", codec.special_tokens, {})
        self.rows = text_rows(self.codec, captions.texts, towers, config.truncate, captions.locations.__getitem__)
        self.text_keys = np.array([text_key(text.casefold()) for text in captions.texts], np.uint64)
        self.image_keys = np.unique(self.decoded.keys, return_inverse=True)[1].astype(np.uint64)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the size of the images, and the codec's vocabulary size and eos. UserError for a split without
        images or with fewer than one batch.
        """
        check_splits(self.splits, self.batch_size, "images")
        towers = with_size(check_towers(model), self.image_size)
        end = self.codec.eos_id if towers.filler is None else towers.end
        return replace(towers, right=replace(towers.right, vocab_size=self.codec.vocab_size), end=end)

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Pixels and texts. Targets are each text's image and, if texts are compared, the pairs that are the `same`.
        The sampled texts depend on the positions in the stream or, without these, only on the images: consecutive
        queries or, half of the time, other texts if there are any.
        """
        pixels = self.inputs(rows)
        if rng_key is not None:
            pixels = self.config.augment(pixels, epoch_seed(self.seed, int(rng_key.positions[0])))
        count = self.config.captions
        positions = rows if rng_key is None else rng_key.positions
        counters = positions.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
        random_bits = splitmix64(counters ^ splitmix64(np.uint64(self.seed)))
        sampled = []
        for image, row in zip(rows.tolist(), random_bits.tolist()):
            texts = self.text_rows(image)
            is_query = self.captions.is_query[texts]
            for offset, bits in enumerate(row):
                candidates = texts[is_query] if (bits & 1 or is_query.all()) and is_query.any() else texts[~is_query]
                sampled.append(candidates[((row[0] >> 1) + offset) % len(candidates)])
        text_indices = np.array(sampled)
        image_of = np.repeat(np.arange(len(rows)), count)
        parts = split_by_length(self.rows, text_indices, _MAX_PADDING, self.config.at_once)
        targets = (torch.from_numpy(image_of),)
        if self.config.loss != "tokens":
            targets = (*targets, torch.from_numpy(self.same(rows, text_indices)))
        return Batch((pixels, parts), targets, len(image_of), len(rows) * self.num_patches + parts.computed)

    def same(self, images: np.ndarray, texts: np.ndarray) -> Bool[np.ndarray, "M N"]:
        """Pairs of an image and a text that is equal to one of the image's own texts."""
        own_keys = np.concatenate(
            [_pair_keys(self.image_keys[image], self.text_keys[self.text_rows(image)]) for image in images]
        )
        return np.isin(_pair_keys(self.image_keys[images][:, None], self.text_keys[texts][None]), own_keys)

    def contents(self) -> Contents:
        return {"images": (self.decoded.keys,), "texts": (self.captions.texts, self.captions.image_of)}

    def inputs(self, images: np.ndarray) -> Float[Tensor, "B 3 H W"]:
        """Model inputs for images."""
        return torch.from_numpy(np.stack([self.processor.normalize(pixels) for pixels in self.decoded.pixels[images]]))

    def text_rows(self, image: int) -> np.ndarray:
        return self.text_order[self.text_starts[image] : self.text_starts[image + 1]]

    def query_rows(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images' query texts, and the index of each text's image, int64 [N] each."""
        rows_per_image = [texts[self.captions.is_query[texts]] for texts in map(self.text_rows, images.tolist())]
        return np.concatenate(rows_per_image), np.repeat(
            np.arange(len(images)), [len(texts) for texts in rows_per_image]
        )

    def describe_row(self, row: int) -> str:
        return self.captions.images[row].name

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        self.usage.save(directory)


class ImageTextMatching(Contrastive[ImageTextDataset]):
    """Contrastive matching of texts and images; the best model has the highest recall in both directions."""

    goal = "mean_recall_at_1"

    def __init__(self, config: ImageTextConfig) -> None:
        self.config = config
        if config.loss != "tokens":
            self.kind = config.loss

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        if self.config.scale_limit is not None and torch.is_grad_enabled():
            cast(TwoTower, model).limit_scale(self.config.scale_limit)
        if self.config.loss == "tokens":
            return {"loss": Loss(self.token_loss(cast(TwoTower, model), batch), batch.tokens)}
        return super().loss(model, batch)

    def token_loss(self, towers: TwoTower, batch: Batch) -> Float[Tensor, ""]:
        """-log p(token | image), the mean over each text's tokens, summed over texts. The candidates are all tokens of
        the batch, as often as they occur, so a logit is how much likelier a token is with this image than in general.
        """
        texts, text_images = batch.inputs[1], batch.targets[0][batch.inputs[1].order.argsort()]
        ids = [part.tokens.ids[part.layout.mask] for part in texts.chunks]
        lengths = torch.cat([part.layout.mask.sum(1) for part in texts.chunks])
        tokens, token_of, counts = torch.cat(ids).unique(return_inverse=True, return_counts=True)
        # Not of unit length: a token that fits many images should count less in a text's mean.
        vectors = towers.right.output(HEAD, TokenInputs(tokens[:, None]), Layout.full(len(tokens), 1))
        logits = towers.logits(self._image_vectors(towers, batch), vectors)
        image_of = text_images.repeat_interleave(lengths)
        log_probabilities = (logits + counts.log()).log_softmax(1)[image_of, token_of]
        return -(log_probabilities / lengths.repeat_interleave(lengths)).sum()

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B N"]:
        towers, texts = cast(TwoTower, model), batch.inputs[1]
        recompute_module = model if self.config.at_once is not None else None
        images = self._image_vectors(towers, batch)
        text_vectors = encode_chunks(lambda part: towers.vectors("right", *part), texts.chunks, recompute_module)[
            texts.order
        ]
        return towers.logits(images, text_vectors)

    def _image_vectors(self, towers: TwoTower, batch: Batch) -> Float[Tensor, "B E"]:
        pixels, at_once = batch.inputs[0], self.config.at_once
        recompute_module = towers if at_once is not None else None
        return encode_chunks(
            lambda part: towers.vectors("left", part), pixels.split(at_once or len(pixels)), recompute_module
        )

    def evaluate(
        self, model: nn.Module, examples: ImageTextDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Recall at 1 and 5 of texts given an image and of images given a text, over the complete split; the mean of
        both directions; and the loss at the best temperature.
        """
        images = examples.of(split).limited_to(limit).rows
        (texts, image_of), text_languages = examples.query_rows(images), examples.captions.languages
        languages = None if text_languages is None else [text_languages[row] for row in texts.tolist()]
        vectors = self.embed_images(model, examples, images), self.embed_texts(model, examples, texts)
        scores = retrieval_recall(*vectors, image_of, languages)
        mean_recall = (scores["recall_at_1"] + scores["image_recall_at_1"]) / 2
        # CLIP's loss per text, over blocks of images with their texts, at the temperature with the lowest loss, because
        # an overconfident model may still have high recall.
        image_vectors, text_vectors = (torch.from_numpy(array) for array in vectors)
        totals = [0.0] * len(_SCALES)
        for start in range(0, len(images), _BLOCK):
            block = np.flatnonzero((image_of >= start) & (image_of < start + _BLOCK))
            image_slice = slice(start, start + _BLOCK)
            owners = torch.from_numpy(image_of[block] - start)
            same = torch.from_numpy(examples.same(images[image_slice], texts[block]))
            similarity = image_vectors[image_slice] @ text_vectors[block].T
            for index, scale in enumerate(_SCALES):
                totals[index] += float(softmax_contrast(scale * similarity, owners, same))
        results = {self.goal: mean_recall, **scores, "loss": min(totals) / len(texts)}
        num_invalid = len(examples.decoded.errors)
        return {**results, "skipped_images": num_invalid} if num_invalid else results

    def embed_texts(self, model: nn.Module, examples: ImageTextDataset, texts: np.ndarray) -> Float[np.ndarray, "N E"]:
        """The embeddings of texts."""
        return text_vectors(cast(TwoTower, model), examples.rows, texts).numpy()

    def embed_images(
        self, model: nn.Module, examples: ImageTextDataset, images: np.ndarray
    ) -> Float[np.ndarray, "N E"]:
        """The embeddings of images."""
        towers, batches = cast(TwoTower, model), np.split(images, range(_IMAGE_BATCH, len(images), _IMAGE_BATCH))
        with evaluation_mode(towers), torch.inference_mode():
            embeddings = [
                towers.vectors("left", examples.inputs(batch).to(device_of(towers))).cpu() for batch in batches
            ]
        return torch.cat(embeddings).numpy()

    def samples(self, model: nn.Module, examples: ImageTextDataset, count: int) -> list[dict[str, str]]:
        """Held-out images with the nearest texts and their own texts."""
        images = examples.splits.rows(examples.final_split)
        texts, image_of = examples.query_rows(images)
        sampled = spread_evenly(np.arange(len(images)), count)
        similarity = self.embed_images(model, examples, images[sampled]) @ self.embed_texts(model, examples, texts).T
        all_texts = examples.captions.texts
        return [
            {
                "source": examples.describe_row(int(images[index])),
                "output": all_texts[texts[best]],
                "reference": " | ".join(all_texts[row] for row in texts[image_of == index]),
            }
            for index, best in zip(sampled.tolist(), similarity.argmax(1).tolist())
        ]

    def pictures(self, model: nn.Module, examples: ImageTextDataset) -> list[Picture]:
        """Held-out texts with their nearest images, and images with their nearest texts."""
        images = examples.splits.rows(examples.final_split)
        texts, image_of = examples.query_rows(images)
        similarity = self.embed_texts(model, examples, texts) @ self.embed_images(model, examples, images).T
        query_texts = [examples.captions.texts[row] for row in texts.tolist()]
        pixels = examples.decoded.pixels[images]
        text_groups, image_groups = [], []
        for row in spread_evenly(np.arange(len(texts)), _PICTURE_ROWS).tolist():
            row_name = ellipsize(query_texts[row], 22)
            elements = [text("name", _LABEL_WIDTH - _GAP, _TILE_SIDE / 2 + 4, row_name, "end")]
            for rank, image in enumerate(np.argsort(-similarity[row], kind="stable")[:_NEAREST].tolist()):
                x = _LABEL_WIDTH + rank * (_TILE_SIDE + _GAP)
                side = _TILE_SIDE + 4
                elements.append(_image_element(x, pixels[image]))
                if image == image_of[row]:
                    elements.append(f'<rect class="whisker" x="{x - 2}" y="-2" width="{side}" height="{side}"/>')
            text_groups.append(elements)
        for image in spread_evenly(np.arange(len(pixels)), _PICTURE_ROWS).tolist():
            elements = [_image_element(0, pixels[image])]
            for rank, row in enumerate(np.argsort(-similarity[:, image], kind="stable")[:_NEAREST].tolist()):
                is_match = image_of[row] == image
                line = ("✓ " if is_match else "") + ellipsize(query_texts[row], 60)
                elements.append(text("name" if is_match else "label", _TILE_SIDE + 2 * _GAP, 9 + rank * 12, line))
            image_groups.append(elements)
        caption = f"held out; the {_NEAREST} nearest of {len(pixels):,}, true pairs framed"
        text_caption = f"held out; the {_NEAREST} nearest of {len(texts):,}, true pairs marked"
        return [
            Picture("Nearest images for each text", caption, _drawing(text_groups, "texts and their nearest images")),
            Picture("Nearest texts for each image", text_caption, _drawing(image_groups, "images and their texts")),
        ]


def processor_of(usage: Usage, model: TwoTowerConfig) -> dict[str, Any]:
    """A preprocessor_config.json for the model's image size, based on `usage` or on CLIP's."""
    size = cast(PatchEmbedConfig, model.left.embed).size
    base = usage.processor or {"image_processor_type": "CLIPImageProcessor"}
    if usage.processor:
        current = ImageProcessor.read(usage.processor, "preprocessor_config.json")
        if size == current.shape:
            return usage.processor
    settings = {name: base[name] for name in _PROCESSOR_KEYS if name in base}
    edges = {"height": size[0], "width": size[1]}
    if size[0] == size[1]:
        return {**settings, "size": {"shortest_edge": size[0]}, "do_center_crop": True, "crop_size": edges}
    return {**settings, "size": edges, "do_center_crop": False}


def published_task(model: TwoTower, codec: Codec, usage: Usage, paths: Sequence[Path]) -> Task:
    """The task for evaluating a published model on the user's captions. UserErrors as in `ImageTextDataset`."""
    with TemporaryDirectory() as folder:  # the workspace, with the start model's tokenizer
        workspace = Path(folder)
        codec.save(workspace)
        usage.save(workspace)
        train = TrainConfig(batch_size=_IMAGE_BATCH)
        recipe = Recipe("image-text", "image_text", "", (), model.config, ImageTextConfig(), train=train)
        return recipe.task.open(recipe, paths, workspace)


def _pair_keys(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """A key for an image-text pair; two pairs collide with probability 2^-64."""
    return splitmix64(images.astype(np.uint64)) ^ texts
