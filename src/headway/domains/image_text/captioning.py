"""Captions as a task: the symbols of captions are foretold from images, and what is written of images is judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import nn

from headway.checkpoints.usage import Usage, read_usage
from headway.codecs import Codec
from headway.codecs.processor import ImageProcessor
from headway.config import override
from headway.data import SIDES, Splits
from headway.domains.image_text.caption import marks, write
from headway.domains.image_text.caption_config import Captioned, CaptionsConfig
from headway.domains.image_text.caption_pictures import captions_shown, looks
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.metrics import caption_scores
from headway.models import Captioner, CaptionerConfig, ModelConfig
from headway.report import Picture
from headway.train import Recipe
from headway.train.examples import Batch, Chance, Numbered, Selected
from headway.train.objective import judged
from headway.train.objectives.written import Ids, Sourced, Sources, Written, shifted
from headway.train.recipe import batch_size_of

_LOG = logging.getLogger(__name__)
_SHOWN = 24  # images of the report
_LOOKED_AT = 4  # of which the attention is shown
_EXACT = ("exact_match", "exact_match_interval")


class CaptionedImages(Sourced, Numbered):
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

    def _without_long(self, sides: dict[str, Int[np.ndarray, "K"]]) -> dict[str, Int[np.ndarray, "K"]]:
        room, longest = self.model.context, self.config.longest
        most = longest if room is None else min(longest, room - 1)
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        long = np.flatnonzero(lengths > most)
        if len(long) and not self.config.drop_long:
            row = int(long[0])
            limit = "task.longest" if most == longest else "the model's context, less begin and end,"
            raise UserError(
                f"{self.data.place(row)}: a caption of {lengths[row]} symbols exceeds {limit} of {most}; shorten "
                f"it, raise {'task.longest' if most == longest else 'model.context'}, or set task.drop_long=true, "
                f"which leaves out {len(long):,} of {len(lengths):,}"
            )
        if len(long):
            _LOG.warning(
                "%s of %s captions of over %d symbols are left out", f"{len(long):,}", f"{len(lengths):,}", most
            )
        return {side: rows[~np.isin(rows, long)] for side, rows in sides.items()}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """The model with its parts from elsewhere and the codec's symbols. UserError for a split without samples."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        config = self.config
        held = self.model.symbols if config.decoder is not None else 0  # published tables may be longer
        parts = config.tower is not None or config.decoder is not None  # which the task's own model has
        return override(self.model if parts else model, {"symbols": max(self.codec.size, held)})

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        replace(read_usage(directory), processor=self.usage.processor).save(directory)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """The first ones: the captions of an image stand together."""
        return rows[:limit]

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """The model is called with images, Float[B, 3, H, W], and symbols, [B, T]; targets are the symbols after these,
        [B, T]. In training images are shifted as their places in the stream say.
        """
        pixels = self.data.pixels(rows)
        if chance is not None and self.config.shift:
            pixels = moved(pixels, self.config.shift, self.seed, chance.places)
        images = torch.from_numpy(np.stack([self.processor.numbers(image) for image in pixels]))
        ids = [self.ids[row] for row in rows.tolist()]
        read, layout, labels = shifted(ids, (self.begin,), self.end)
        computed = read.numel() + self.model.prefix * len(ids)
        return Batch((images, read, layout), labels, sum(map(len, ids)) + len(ids), computed)

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


class CaptionText(Written[CaptionedImages]):
    """The caption of an image, by exact matches, BLEU and chrF."""

    def __init__(self, config: CaptionsConfig) -> None:
        search = SearchConfig(config.beam, config.length_penalty)
        super().__init__(config.goal, search, config.smoothing, "decoder.heads.vocabulary")

    def write(self, model: nn.Module, examples: CaptionedImages, sources: Sources, search: SearchConfig) -> list[Ids]:
        images = (batch.inputs[0] for _, batch in judged(model, sources.given))
        longest = examples.config.longest
        found = write(cast(Captioner, model), images, examples.begin, examples.end, search, longest)
        return [best.ids for best, *_ in found]

    def scores(self, examples: CaptionedImages, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        return caption_scores(examples.texts(written), sources.references)

    def judge(
        self, model: nn.Module, examples: CaptionedImages, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """With the test split, exact matches on further splits (scenes' "novel") are told beside it."""
        found = super().judge(model, examples, split, limit)
        for further in [side for side in examples.splits.sides if side not in SIDES] if split == "test" else ():
            sources = examples.sources(further, limit)
            scores = self.scores(examples, sources, self.write(model, examples, sources, self.search))
            found |= {name.replace("exact_match", f"exact_match_{further}"): scores[name] for name in _EXACT}
        return found

    def pictures(self, model: nn.Module, examples: CaptionedImages) -> list[Picture]:
        """Held-out images with their captions, and where the decoder looks while it writes some of them."""
        sources = examples.looked_at(_SHOWN)
        rows = sources.given.rows
        written = examples.texts(self.write(model, examples, sources, self.search))
        pixels, inputs = examples.data.pixels(rows), examples.take(rows[:_LOOKED_AT]).inputs[0]
        shown = looks(cast(Captioner, model), examples.codec, examples.begin, inputs, pixels, written[:_LOOKED_AT])
        return [captions_shown(pixels, written, [text for (text,) in sources.references]), *shown]


def moved(
    images: UInt8[np.ndarray, "B H W 3"], most: int, seed: int, places: Int[np.ndarray, "B"]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Each image moved by up to `most` pixels, its edges drawn out, by what (seed, place in the stream) draws."""
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    out = np.empty_like(images)
    high, width = images.shape[1:3]
    for number, place in enumerate(places.tolist()):
        down, right = np.random.default_rng([seed, place]).integers(0, 2 * most + 1, 2).tolist()
        out[number] = wide[number, down : down + high, right : right + width]
    return out
