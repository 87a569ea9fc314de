"""Image captioning: its data, objective and pictures."""

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
from headway.codecs.processor import ImageProcessor
from headway.config import override
from headway.data import SIDES, Splits
from headway.data.splits import Sides
from headway.domains.image_text.caption import marks, write
from headway.domains.image_text.caption_config import Captioned, CaptionsConfig
from headway.errors import UserError, logger
from headway.formats.usage import Usage, read_usage
from headway.generate import SearchConfig
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.learn import Recipe
from headway.learn.examples import Batch, Chance, Contents, Numbered, Selected
from headway.learn.objective import judged
from headway.learn.objectives.written import Ids, Sourced, Sources, Written, shifted
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture, Tile, tiled
from headway.metrics import caption_scores
from headway.nn.models import Captioner, CaptionerConfig, ModelConfig, attention_maps

_DARK = 0.2  # brightness of pixels without attention
_WORDS = 16  # maximum words of a caption in a picture


def captions_shown(pixels: UInt8[np.ndarray, "N H W 3"], written: Sequence[str], right: Sequence[str]) -> Picture:
    """Images with their generated captions, and the reference if it differs."""
    tiles = [
        Tile(image, text, "" if text == reference else reference, text == reference)
        for image, text, reference in zip(pixels, written, right)
    ]
    return Picture("Captions", "of held-out images; references below those that differ", tiled(tiles), wide=True)


def looks(
    model: Captioner,
    codec: Codec,
    begin: int,
    inputs: Float[Tensor, "N 3 H W"],
    pixels: UInt8[np.ndarray, "N H W 3"],
    written: Sequence[str],
) -> list[Picture]:
    """The decoder's attention for each generated word, averaged over heads and layers; empty without attention."""
    found = []
    for image, shown, text in zip(inputs, pixels, written):
        ids = codec.encode(text)
        weights = attention_to_image(model, image, [begin, *ids]) if ids else None
        if weights is None:
            continue
        words, of = text.split()[:_WORDS], words_of(codec, ids)
        tiles = [
            Tile(lit(shown, weights[: len(ids)][of == number].mean(0)), word)
            for number, word in enumerate(words)
            if (of == number).any()
        ]
        found.append(Picture("Attention", text, tiled([Tile(shown, "the image"), *tiles], small=True), wide=True))
    return found


def attention_to_image(
    model: Captioner, image: Float[Tensor, "3 H W"], ids: Sequence[int]
) -> Float[np.ndarray, "T rows columns"] | None:
    """The weight of each patch when the token after each of `ids` is predicted; None without attention."""
    row, layout = torch.tensor([ids], device=device_of(model)), Layout.full(1, len(ids), device=device_of(model))
    images = image[None].to(device_of(model))
    with evaluating(model):
        maps = attention_maps(model, lambda: model(images, row, layout))
    read = [weights[0].mean(0) for name, weights in maps.items() if name.startswith("decoder.")]
    if not read:
        return None
    rows, columns = model.config.images.grid((image.shape[1], image.shape[2]))
    mean = torch.stack(read).mean(0)[-len(ids) :, : rows * columns]
    return mean.unflatten(1, (rows, columns)).float().cpu().numpy()


def words_of(codec: Codec, ids: Sequence[int]) -> np.ndarray:
    """The index of the word that each token belongs to."""
    return np.array([max(1, len(codec.decode(ids[: end + 1]).split())) - 1 for end in range(len(ids))])


def lit(image: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image that is bright where the weights are large."""
    light = torch.from_numpy(weights / max(float(weights.max()), 1e-9))[None, None]
    wide = torch.nn.functional.interpolate(light, image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return (image * (_DARK + (1 - _DARK) * wide.numpy()[:, :, None])).round().astype(np.uint8)


_LOG = logger(__name__)
_SHOWN = 24  # images in the report
_LOOKED_AT = 4  # images with attention maps
_EXACT = ("exact_match", "exact_match_interval")


class ImagesToCaption(Sourced, Numbered):
    """Images with captions. A batch is train.batch_size captions, each with its image."""

    def __init__(
        self,
        config: CaptionsConfig,
        recipe: Recipe,
        model: CaptionerConfig,
        samples: Captioned,
        codec: Codec,
        usage: Usage,
        processor: ImageProcessor,
    ) -> None:
        """Raises UserError for captions that are too long, ConfigError for settings that do not fit."""
        self.config, self.model, self.data = config, model, samples
        self.codec, self.usage, self.processor = codec, usage, processor
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.begin, self.end = marks(codec)
        self.captions = [text.lower() for text in samples.captions] if config.lowercase else list(samples.captions)
        self.ids = codec.encode_batch(self.captions)
        sides = self._without_long(samples.sides)
        self.splits = Splits(sides, np.sort(np.concatenate(list(sides.values()))), "captions", "a file")

    def _without_long(self, sides: Sides) -> Sides:
        room, longest = self.model.context, self.config.longest
        most = longest if room is None else min(longest, room - 1)
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        long = np.flatnonzero(lengths > most)
        if len(long) and not self.config.drop_long:
            row = int(long[0])
            limit = "task.longest" if most == longest else "the model's context, without bos and eos,"
            raise UserError(
                f"{self.data.place(row)}: a caption of {lengths[row]} tokens exceeds {limit} of {most}; shorten "
                f"it, raise {'task.longest' if most == longest else 'model.context'}, or set task.drop_long=true, "
                f"which leaves out {len(long):,} of {len(lengths):,}"
            )
        if len(long):
            _LOG.warning(
                "left out %s of %s captions with more than %d tokens", f"{len(long):,}", f"{len(lengths):,}", most
            )
        return Sides({side: rows[~np.isin(rows, long)] for side, rows in sides.items()}, sides.removed)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """The model with its pretrained parts and the codec's vocabulary size. UserError for a split without
        samples.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        config = self.config
        held = self.model.symbols if config.decoder is not None else 0  # published vocabularies may be larger
        parts = config.tower is not None or config.decoder is not None  # the task's model has them
        return override(self.model if parts else model, {"symbols": max(self.codec.size, held)})

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        replace(read_usage(directory), processor=self.usage.processor).save(directory)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """The first rows: the captions of an image are consecutive."""
        return rows[:limit]

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Inputs are images, Float[B, 3, H, W], and tokens, [B, T]; labels are the next tokens, [B, T]. In training,
        images are shifted at random.
        """
        pixels = self.data.pixels(rows)
        if chance is not None and self.config.shift:
            pixels = moved(pixels, self.config.shift, self.seed, chance.places)
        images = torch.from_numpy(np.stack([self.processor.numbers(image) for image in pixels]))
        ids = [self.ids[row] for row in rows.tolist()]
        read, layout, labels = shifted(ids, (self.begin,), self.end)
        computed = read.numel() + self.model.prefix * len(ids)
        return Batch((images, read, layout), labels, sum(map(len, ids)) + len(ids), computed)

    def contents(self) -> Contents:
        return {"images": (self.data.keys,), "captions": (self.data.captions,)}

    def shown(self, row: int) -> str:
        return self.data.shown(row)

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """Each image once, with all its captions."""
        rows = self.some(self.splits.rows(split), limit)
        images = self.data.images[rows]
        first, where = np.unique(images, return_index=True)
        references: dict[int, list[str]] = {image: [] for image in first.tolist()}
        for row, image in zip(rows.tolist(), images.tolist()):
            references[image].append(self.captions[row])
        return self._sources(rows[where], list(references.values()))

    def looked_at(self, count: int) -> Sources:
        rows = self.spread(count)
        return self._sources(rows, [[self.captions[row]] for row in rows.tolist()])

    def _sources(self, rows: np.ndarray, references: list[list[str]]) -> Sources:
        return Sources(Selected(self, rows), references, [self.shown(row) for row in rows.tolist()])


class CaptionText(Written[ImagesToCaption]):
    """The caption of an image, scored by exact matches, BLEU and chrF."""

    def __init__(self, config: CaptionsConfig) -> None:
        search = SearchConfig(config.beam, config.length_penalty)
        super().__init__(config.goal, search, config.smoothing, "decoder.heads.vocabulary")

    def write(self, model: nn.Module, examples: ImagesToCaption, sources: Sources, search: SearchConfig) -> list[Ids]:
        images = (batch.inputs[0] for _, batch in judged(model, sources.given))
        longest = examples.config.longest
        found = write(cast(Captioner, model), images, examples.begin, examples.end, search, longest)
        return [best.ids for best, *_ in found]

    def scores(self, examples: ImagesToCaption, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        return caption_scores(examples.texts(written), sources.references)

    def judge(
        self, model: nn.Module, examples: ImagesToCaption, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """The scores, and for the test split also exact matches on additional splits (such as "novel" of scenes)."""
        found = super().judge(model, examples, split, limit)
        for further in [side for side in examples.splits.sides if side not in SIDES] if split == "test" else ():
            sources = examples.sources(further, limit)
            scores = self.scores(examples, sources, self.write(model, examples, sources, self.search))
            found |= {name.replace("exact_match", f"exact_match_{further}"): scores[name] for name in _EXACT}
        return found

    def pictures(self, model: nn.Module, examples: ImagesToCaption) -> list[Picture]:
        """Held-out images with their captions, and attention maps for some of them."""
        sources = examples.looked_at(_SHOWN)
        rows = sources.given.rows
        written = examples.texts(self.write(model, examples, sources, self.search))
        pixels, inputs = examples.data.pixels(rows), examples.take(rows[:_LOOKED_AT]).inputs[0]
        shown = looks(cast(Captioner, model), examples.codec, examples.begin, inputs, pixels, written[:_LOOKED_AT])
        return [captions_shown(pixels, written, [text for (text,) in sources.references]), *shown]


def moved(
    images: UInt8[np.ndarray, "B H W 3"], most: int, seed: int, places: Int[np.ndarray, "B"]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Each image shifted by up to `max_shift` pixels, with its edges repeated, at random for (seed, position in the
    stream).
    """
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    out = np.empty_like(images)
    high, width = images.shape[1:3]
    for number, place in enumerate(places.tolist()):
        down, right = np.random.default_rng([seed, place]).integers(0, 2 * most + 1, 2).tolist()
        out[number] = wide[number, down : down + high, right : right + width]
    return out
