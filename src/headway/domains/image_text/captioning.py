"""Captions as a task: foretell the symbols of captions from images, and judge what is written of images alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import nn

from headway.checkpoints.usage import Usage, read_usage
from headway.codecs import Codec
from headway.codecs.processor import ImageProcessor
from headway.config import override
from headway.data.splits import SIDES, larger_share
from headway.domains.image_text.caption import marks, write
from headway.domains.image_text.caption_batches import CaptionBatch, shifted, text_batch
from headway.domains.image_text.caption_config import CaptionsConfig
from headway.domains.image_text.caption_pictures import captions_shown, looks
from headway.domains.image_text.captioned import Captioned
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.metrics import caption_scores, language_scores
from headway.models import Captioner, CaptionerConfig, Loss, ModelConfig, VocabularyHead
from headway.report import Picture
from headway.train import Recipe, Shard, Sided, sharding
from headway.train.recipe import batch_size_of
from headway.train.task import WHOLE

_LOG = logging.getLogger(__name__)
_AT_ONCE = 64  # images that are judged together
_SHOWN = 24  # images of the report
_LOOKED_AT = 4  # of which the attention is shown


class Captioning(Sided):
    """Cross-entropy of captions after their images. A batch is train.batch_size samples."""

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
        self.goal, self.goal_better = (
            config.goal,
            cast(Literal["min", "max"], "min" if config.goal == "loss" else "max"),
        )
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.begin, self.end = marks(codec)
        texts = [text.lower() for text in samples.captions] if config.lowercase else list(samples.captions)
        self.texts = texts
        self.ids = codec.encode_batch(texts)
        self.sides = dict(samples.sides)
        self._leave_out_long()

    def _leave_out_long(self) -> None:
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
            self.sides = {side: rows[~np.isin(rows, long)] for side, rows in self.sides.items()}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """The model with its parts from elsewhere and the codec's symbols. UserError for a split without samples."""
        for split in ("train", "validation"):
            self.numbers(split)
        config = self.config
        held = self.model.symbols if config.decoder is not None else 0  # published tables may be longer
        parts = config.tower is not None or config.decoder is not None  # which the task's own model has
        return override(self.model if parts else model, {"symbols": max(self.codec.size, held)})

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        replace(read_usage(directory), processor=self.usage.processor).save(directory)

    def numbers(self, split: str) -> Int[np.ndarray, "K"]:
        """The samples of a split; "all" is all there are. A UserError where there are none."""
        found = np.sort(np.concatenate(list(self.sides.values()))) if split == "all" else self.sides.get(split)
        if found is None:
            raise UserError(f"there is no split {split!r}; choose from {', '.join(self.sides)}, all")
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.ids):,} captions is empty; give more, a file named {split}, or "
                f"{larger_share(split)}"
            )
        return found

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[CaptionBatch]:
        """Batch k of training holds the samples k size, ..., (k + 1) size - 1 of a shuffled stream of epochs."""
        rows = self.numbers(split)
        if split != "train":
            for some in sharding.once(len(rows), _AT_ONCE, shard):
                yield self.batch(rows[some])
            return
        for places, some in sharding.endless(len(rows), self.size, self.seed, shard, start):
            yield self.batch(rows[some], places)

    def batch(self, rows: Int[np.ndarray, "B"], places: Int[np.ndarray, "B"] | None = None) -> CaptionBatch:
        """Samples by number; where `places` in the endless stream are given, their images are shifted as they say."""
        ids = [self.ids[row] for row in rows.tolist()]
        text, layout, labels = text_batch(ids, self.begin, self.end)
        images = torch.from_numpy(self.images(rows, places))
        return CaptionBatch(images, text, layout, labels, sum(map(len, ids)) + len(ids), self.model.prefix)

    def images(
        self, rows: Int[np.ndarray, "B"], places: Int[np.ndarray, "B"] | None = None
    ) -> Float32[np.ndarray, "B 3 H W"]:
        """What the tower sees of samples."""
        pixels = self.data.pixels(rows)
        if places is not None and self.config.shift:
            pixels = shifted(pixels, self.config.shift, self.seed, places)
        return np.stack([self.processor.numbers(image) for image in pixels])

    def loss(self, model: nn.Module, batch: CaptionBatch) -> dict[str, Loss]:
        return self._loss(model, batch, self.config.smoothing)

    def _loss(self, model: nn.Module, batch: CaptionBatch, smoothing: float) -> dict[str, Loss]:
        encoded = model(batch.images, batch.ids, batch.layout)
        head = cast(VocabularyHead, model.get_submodule("decoder.heads.vocabulary"))
        loss = head.loss(encoded.x, batch.labels, smoothing)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss and perplexity of the captions, without smoothing, and the scores of what is written of the images.

        With the test split, exact matches on further splits (scenes' "novel") are told beside it.
        """
        rows = self.numbers(split)[:limit]
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for some in sharding.once(len(rows), _AT_ONCE, WHOLE):
            loss = self._loss(model, self.batch(rows[some]).to(device), smoothing=0.0)["loss"]
            nats, count = nats + float(loss.total), count + loss.count
        beam = self.config.beam if split in ("test", "all") else 1
        found = {**language_scores(nats, count), **self._scores(model, rows, beam), "beam": beam}
        for further in [side for side in self.sides if side not in SIDES] if split == "test" else ():
            scores = self._scores(model, self.numbers(further)[:limit], beam)
            found |= {name.replace("exact_match", f"exact_match_{further}"): scores[name] for name in _EXACT}
        return found

    def _scores(self, model: nn.Module, rows: Int[np.ndarray, "K"], beam: int) -> dict[str, Any]:
        """Scores of an image's caption against all that it has among `rows`."""
        images = self.data.images[rows]
        first, where = np.unique(images, return_index=True)
        references: dict[int, list[str]] = {image: [] for image in first.tolist()}
        for row, image in zip(rows.tolist(), images.tolist()):
            references[image].append(self.texts[row])
        return caption_scores(self.write(model, rows[where], beam), list(references.values()))

    def write(self, model: nn.Module, rows: Int[np.ndarray, "K"], beam: int | None = None) -> list[str]:
        """The caption that the model writes of each sample's image."""
        batches = (self.images(rows[some]) for some in sharding.once(len(rows), _AT_ONCE, WHOLE))
        search = SearchConfig(beam or self.config.beam, self.config.length_penalty)
        found = write(cast(Captioner, model), batches, self.begin, self.end, search, self.config.longest)
        return [self.codec.decode(best.ids) for best, *_ in found]

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out images with what is written of them and what is right."""
        rows = self._spread(count)
        return [
            {"source": self.data.shown(row), "output": output, "reference": self.texts[row]}
            for row, output in zip(rows.tolist(), self.write(model, rows))
        ]

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Held-out images with their captions, and where the decoder looks while it writes some of them."""
        rows = self._spread(_SHOWN)
        written, pixels = self.write(model, rows), self.data.pixels(rows)
        right = [self.texts[row] for row in rows.tolist()]
        inputs = torch.from_numpy(self.images(rows[:_LOOKED_AT]))
        shown = looks(cast(Captioner, model), self.codec, self.begin, inputs, pixels, written[:_LOOKED_AT])
        return [captions_shown(pixels, written, right), *shown]

    def _spread(self, count: int) -> Int[np.ndarray, "K"]:
        """Samples of the split that is judged last, spread evenly over it."""
        return sharding.spread(self.numbers(self.final_split), count)


_EXACT = ("exact_match", "exact_match_interval")
