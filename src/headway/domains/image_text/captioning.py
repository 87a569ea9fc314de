"""Image captioning: data, objective and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from headway.codecs import Codec
from headway.codecs.image_processor import ImageProcessor
from headway.config import override
from headway.data import SPLITS, Splits
from headway.data.splits import SplitIndices
from headway.domains.image_text.caption_config import CaptionData, CaptionsConfig
from headway.domains.image_text.caption_inference import bos_and_eos, search_captions
from headway.errors import UserError, logger
from headway.formats.usage import Usage, read_usage
from headway.generate import SearchConfig
from headway.generate.prompts import device_of, evaluation_mode
from headway.layout import Layout
from headway.learn import Recipe
from headway.learn.examples import Batch, Contents, IndexedExamples, RngKey, RowSubset
from headway.learn.objective import evaluation_batches
from headway.learn.objectives.sequences import Ids, SequenceGeneration, Sources, SourceTargetExamples, teacher_forcing
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture, Tile, tile_grid
from headway.metrics import caption_scores
from headway.nn.models import Captioner, CaptionerConfig, ModelConfig, attention_maps

_MIN_BRIGHTNESS = 0.2  # brightness of pixels that get no attention
_MAX_WORDS = 16  # maximum words per caption in a picture


def caption_tiles(pixels: UInt8[np.ndarray, "N H W 3"], generated: Sequence[str], references: Sequence[str]) -> Picture:
    """Images with their generated captions, and with the reference if it differs."""
    tiles = [
        Tile(image, text, "" if text == reference else reference, text == reference)
        for image, text, reference in zip(pixels, generated, references)
    ]
    return Picture(
        "Captions", "for held-out images; where a caption differs, the reference is below", tile_grid(tiles), wide=True
    )


def attention_pictures(
    model: Captioner,
    codec: Codec,
    bos: int,
    inputs: Float[Tensor, "N 3 H W"],
    pixels: UInt8[np.ndarray, "N H W 3"],
    generated: Sequence[str],
) -> list[Picture]:
    """The decoder's attention for each generated word, averaged over heads and layers; empty without attention."""
    pictures = []
    for image, image_pixels, text in zip(inputs, pixels, generated):
        ids = codec.encode(text)
        weights = attention_to_image(model, image, [bos, *ids]) if ids else None
        if weights is None:
            continue
        words, word_of = text.split()[:_MAX_WORDS], word_indices(codec, ids)
        tiles = [
            Tile(highlight(image_pixels, weights[: len(ids)][word_of == word_index].mean(0)), word)
            for word_index, word in enumerate(words)
            if (word_of == word_index).any()
        ]
        pictures.append(
            Picture("Attention", text, tile_grid([Tile(image_pixels, "the image"), *tiles], small=True), wide=True)
        )
    return pictures


def attention_to_image(
    model: Captioner, image: Float[Tensor, "3 H W"], ids: Sequence[int]
) -> Float[np.ndarray, "T rows columns"] | None:
    """Each patch's weight in predicting the token after each of `ids`; None without attention."""
    input_ids, layout = torch.tensor([ids], device=device_of(model)), Layout.full(1, len(ids), device=device_of(model))
    images = image[None].to(device_of(model))
    with evaluation_mode(model):
        maps = attention_maps(model, lambda: model(images, input_ids, layout))
    decoder_weights = [weights[0].mean(0) for name, weights in maps.items() if name.startswith("decoder.")]
    if not decoder_weights:
        return None
    rows, columns = model.config.images.grid((image.shape[1], image.shape[2]))
    mean = torch.stack(decoder_weights).mean(0)[-len(ids) :, : rows * columns]
    return mean.unflatten(1, (rows, columns)).float().cpu().numpy()


def word_indices(codec: Codec, ids: Sequence[int]) -> np.ndarray:
    """The index of the word that each token belongs to."""
    return np.array([max(1, len(codec.decode(ids[: stop + 1]).split())) - 1 for stop in range(len(ids))])


def highlight(
    image: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The image, bright where the weights are large."""
    heat = torch.from_numpy(weights / max(float(weights.max()), 1e-9))[None, None]
    brightness = torch.nn.functional.interpolate(heat, image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return (image * (_MIN_BRIGHTNESS + (1 - _MIN_BRIGHTNESS) * brightness.numpy()[:, :, None])).round().astype(np.uint8)


_LOG = logger(__name__)
_REPORT_IMAGES = 24  # images in the report
_ATTENTION_IMAGES = 4  # images with attention maps
_EXACT_MATCH = ("exact_match", "exact_match_interval")


class CaptionDataset(SourceTargetExamples, IndexedExamples):
    """Images with captions. A batch is train.batch_size captions, each with its image."""

    def __init__(
        self,
        config: CaptionsConfig,
        recipe: Recipe,
        model: CaptionerConfig,
        samples: CaptionData,
        codec: Codec,
        usage: Usage,
        processor: ImageProcessor,
    ) -> None:
        """Raises UserError for captions that are too long, ConfigError for settings that do not fit."""
        self.config, self.model, self.samples = config, model, samples
        self.codec, self.usage, self.processor = codec, usage, processor
        self.seed, self.batch_size = recipe.train.seed, batch_size_of(recipe)
        self.bos, self.eos = bos_and_eos(codec)
        self.captions = [text.lower() for text in samples.captions] if config.lowercase else list(samples.captions)
        self.ids = codec.encode_batch(self.captions)
        splits = self._without_long(samples.splits)
        self.splits = Splits(splits, np.sort(np.concatenate(list(splits.values()))), "captions", "a file")

    def _without_long(self, splits: SplitIndices) -> SplitIndices:
        context, max_length = self.model.context, self.config.max_length
        limit = max_length if context is None else min(max_length, context - 1)
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        too_long = np.flatnonzero(lengths > limit)
        if len(too_long) and not self.config.drop_long:
            row = int(too_long[0])
            limit_name = "task.max_length" if limit == max_length else "the model's context, without bos and eos,"
            raise UserError(
                f"{self.samples.locate(row)}: a caption of {lengths[row]} tokens exceeds {limit_name} of {limit}; "
                f"shorten it, raise {'task.max_length' if limit == max_length else 'model.context'}, or set "
                f"task.drop_long=true to skip {len(too_long):,} of {len(lengths):,}"
            )
        if len(too_long):
            _LOG.warning(
                "skipped %s of %s captions with more than %d tokens", f"{len(too_long):,}", f"{len(lengths):,}", limit
            )
        return SplitIndices({split: rows[~np.isin(rows, too_long)] for split, rows in splits.items()}, splits.removed)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """The model with its pretrained parts and the codec's vocabulary size. UserError for a split without
        samples.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        config = self.config
        decoder_vocab_size = (
            self.model.vocab_size if config.decoder is not None else 0
        )  # published vocabularies may be larger
        has_parts = config.tower is not None or config.decoder is not None  # the task's model has them
        return override(
            self.model if has_parts else model, {"vocab_size": max(self.codec.vocab_size, decoder_vocab_size)}
        )

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        replace(read_usage(directory), processor=self.usage.processor).save(directory)

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """The first rows; an image's captions are consecutive."""
        return rows[:limit]

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Inputs are images, Float[B, 3, H, W], and tokens, [B, T]; labels are the next tokens, [B, T]. In training,
        images are shifted at random.
        """
        pixels = self.samples.pixels(rows)
        if rng_key is not None and self.config.shift:
            pixels = shift_images(pixels, self.config.shift, self.seed, rng_key.positions)
        images = torch.from_numpy(np.stack([self.processor.normalize(image) for image in pixels]))
        ids = [self.ids[row] for row in rows.tolist()]
        decoder_ids, layout, labels = teacher_forcing(ids, (self.bos,), self.eos)
        computed = decoder_ids.numel() + self.model.prefix * len(ids)
        return Batch((images, decoder_ids, layout), labels, sum(map(len, ids)) + len(ids), computed)

    def contents(self) -> Contents:
        return {"images": (self.samples.keys,), "captions": (self.samples.captions,)}

    def describe_row(self, row: int) -> str:
        return self.samples.describe(row)

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """Each image once, with all its captions."""
        rows = self.limited_rows(self.splits.rows(split), limit)
        images = self.samples.images[rows]
        unique_images, first_rows = np.unique(images, return_index=True)
        references: dict[int, list[str]] = {image: [] for image in unique_images.tolist()}
        for row, image in zip(rows.tolist(), images.tolist()):
            references[image].append(self.captions[row])
        return self._sources(rows[first_rows], list(references.values()))

    def sample_sources(self, count: int) -> Sources:
        rows = self.spread_rows(count)
        return self._sources(rows, [[self.captions[row]] for row in rows.tolist()])

    def _sources(self, rows: np.ndarray, references: list[list[str]]) -> Sources:
        return Sources(RowSubset(self, rows), references, [self.describe_row(row) for row in rows.tolist()])


class CaptionGeneration(SequenceGeneration[CaptionDataset]):
    """Captions of images, scored by exact matches, BLEU and chrF."""

    def __init__(self, config: CaptionsConfig) -> None:
        search = SearchConfig(config.beam, config.length_penalty)
        super().__init__(config.goal, search, config.smoothing, "decoder.heads.vocabulary")

    def generate(self, model: nn.Module, examples: CaptionDataset, sources: Sources, search: SearchConfig) -> list[Ids]:
        images = (batch.inputs[0] for _, batch in evaluation_batches(model, sources.inputs))
        max_length = examples.config.max_length
        hypotheses = search_captions(cast(Captioner, model), images, examples.bos, examples.eos, search, max_length)
        return [best.ids for best, *_ in hypotheses]

    def scores(self, examples: CaptionDataset, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        return caption_scores(examples.decode_all(generated), sources.references)

    def evaluate(
        self, model: nn.Module, examples: CaptionDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """The scores, and for the test split also exact matches on additional splits (such as "novel" for scenes)."""
        scores = super().evaluate(model, examples, split, limit)
        for extra_split in (
            [split for split in examples.splits.indices if split not in SPLITS] if split == "test" else ()
        ):
            sources = examples.sources(extra_split, limit)
            extra_scores = self.scores(examples, sources, self.generate(model, examples, sources, self.search))
            scores |= {
                name.replace("exact_match", f"exact_match_{extra_split}"): extra_scores[name] for name in _EXACT_MATCH
            }
        return scores

    def pictures(self, model: nn.Module, examples: CaptionDataset) -> list[Picture]:
        """Held-out images with their captions, and attention maps for some of them."""
        sources = examples.sample_sources(_REPORT_IMAGES)
        rows = sources.inputs.rows
        generated = examples.decode_all(self.generate(model, examples, sources, self.search))
        pixels, inputs = examples.samples.pixels(rows), examples.take(rows[:_ATTENTION_IMAGES]).inputs[0]
        attention_maps = attention_pictures(
            cast(Captioner, model), examples.codec, examples.bos, inputs, pixels, generated[:_ATTENTION_IMAGES]
        )
        return [caption_tiles(pixels, generated, [text for (text,) in sources.references]), *attention_maps]


def shift_images(
    images: UInt8[np.ndarray, "B H W 3"], max_shift: int, seed: int, positions: Int[np.ndarray, "B"]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Shift each image at random by up to `max_shift` pixels, repeating its edges: a function of the seed and the
    position in the stream.
    """
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)), mode="edge")
    out = np.empty_like(images)
    height, width = images.shape[1:3]
    for index, position in enumerate(positions.tolist()):
        row, column = np.random.default_rng([seed, position]).integers(0, 2 * max_shift + 1, 2).tolist()
        out[index] = padded[index, row : row + height, column : column + width]
    return out
