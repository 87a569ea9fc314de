"""Pairs of sequences as a task: foretell targets from sources, and judge what is decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from headway.checkpoints.familiar import Familiar
from headway.data import Column, Pair, PairCache, grouped, open_pairs, split_pairs
from headway.data import pairs as read_all
from headway.domains.translation.alignment import alignment_pictures
from headway.domains.translation.batches import PairBatch, Pairs, Sentences
from headway.domains.translation.config import Codecs, Marks, PairsConfig, TranslationConfig, with_symbols
from headway.domains.translation.decode import translate
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.metrics import bleu, language_scores, translation_scores
from headway.models import EncoderDecoder, EncoderDecoderConfig, Loss, ModelConfig, VocabularyHead
from headway.report import Picture
from headway.train import Recipe, Shard, sharding
from headway.train.task import WHOLE

_LOG = logging.getLogger(__name__)
_EVALUATED_AT_ONCE = 2048  # tokens a side; larger batches of few pairs are mostly padding
_NO_LIMIT = 1 << 31
_LOOKED_AT = 20  # texts from which one is drawn as a picture


class Sources(NamedTuple):
    """Texts to translate, each with one or more references."""

    texts: list[str]
    references: list[list[str]]


class PairTask:
    """What all tasks over pairs share; `reverse` swaps the sides of the files."""

    goal: str = "loss"
    goal_better: Literal["min", "max"] = "min"
    groups: bool = False  # whether a source is scored once, against all its targets

    def __init__(
        self, config: PairsConfig, recipe: Recipe, paths: Sequence[Path], codecs: Codecs, *, reverse: bool = False
    ) -> None:
        self.config = config
        self.paths = paths
        self.codecs = codecs
        self.reverse = reverse
        self.seed = recipe.train.seed
        self.batch_tokens = recipe.train.batch_tokens or 0
        self._model_limit = _longest_of(recipe.model)
        self.cache = self._open()
        self._splits: dict[str, Pairs] = {}
        self._texts: dict[str, Sources] = {}

    def _open(self) -> PairCache:
        first, second = self.codecs if not self.reverse else self.codecs[::-1]
        return open_pairs(self.paths, first, second)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codecs' symbols. Raises UserError where there are no pairs to train it on or to judge it by,
        or pairs that do not fit it.
        """
        for split in ("train", "validation"):
            self.pairs(split)
        return with_symbols(model, self.codecs)

    def save(self, directory: Path) -> None:
        self.codecs.save(directory)

    def met(self) -> Familiar:
        """Sources, each with the end that is put after it."""
        source, codec = self.pairs("train").source, self.codecs.source
        return Familiar.of(source.ids, codec.size, int(source.lengths.max()) + 1, (codec.begin, codec.end))

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[PairBatch]:
        pairs = self.pairs(split)
        if split == "train":
            return pairs.endless(self.batch_tokens, self.seed, shard, start)
        return pairs.once(self._at_once(pairs), shard)

    def pairs(self, split: str) -> Pairs:
        """The pairs of a split that can be computed."""
        if split not in self._splits:
            self._splits[split] = self._select(split)
        return self._splits[split]

    def _select(self, split: str) -> Pairs:
        numbers = self._numbers(split)
        longest = self.config.longest if split == "train" else None
        most = self.batch_tokens if split == "train" else _NO_LIMIT
        limit = min(limit for limit in (longest, self._model_limit, most) if limit is not None)
        # The end symbol takes a place of its own.
        found = self.cache.fitting(numbers, limit - 1, limit - 1, drop_long=longest is not None)
        if found.too_long or found.empty:
            _LOG.warning(
                f"{split}: {found.too_long:,} of {len(numbers):,} pairs of over {limit:,} tokens are left out, "
                f"and {found.empty:,} that are empty on a side"
            )
        kept = found.pairs
        if self.reverse and split == "train":
            kept = kept[~self._held_out(kept)]
        sides = [_sentences(column, kept) for column in (self.cache.source, self.cache.target)]
        source, target = sides[::-1] if self.reverse else sides
        return Pairs(source, target, Marks.of(self.codecs), self.config.reverse_source)

    def _numbers(self, split: str) -> np.ndarray:
        return np.arange(len(self.cache)) if split == "all" else self.cache.split(split, self.config.split)

    def _held_out(self, numbers: np.ndarray) -> np.ndarray:
        """Which pairs have a source that is held out too: splits are drawn by the other side, the files' first."""
        others: set[bytes] = set()
        for split in ("validation", "test"):
            if self._has(split):
                others.update(self.cache.target[pair].tobytes() for pair in self.cache.split(split, self.config.split))
        return np.array([self.cache.target[pair].tobytes() in others for pair in numbers], dtype=bool)

    @property
    def final_split(self) -> str:
        """The split on which a finished model is judged: test, or validation where there is no test."""
        return "test" if self._has("test") else "validation"

    def _has(self, split: str) -> bool:
        try:
            self.cache.split(split, self.config.split)
        except UserError:
            return False
        return True

    def _at_once(self, pairs: Pairs) -> int:
        longest = int(max(pairs.source.lengths.max(), pairs.target.lengths.max())) + 1
        return max(_EVALUATED_AT_ONCE, longest)

    def loss(self, model: nn.Module, batch: PairBatch) -> dict[str, Loss]:
        return self._loss(model, batch, self.config.smoothing)

    def _loss(self, model: nn.Module, batch: PairBatch, smoothing: float) -> dict[str, Loss]:
        encoded = model(batch.source, batch.source_layout, batch.target, batch.target_layout)
        head = cast(VocabularyHead, model.get_submodule("heads.vocabulary"))
        loss = head.loss(encoded.x, batch.labels, smoothing)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss and perplexity of the targets, without smoothing, and the scores of what is decoded from the sources.

        The split "all" is all of the data.
        """
        pairs = self.pairs(split)
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for batch in pairs.some(limit).once(self._at_once(pairs), WHOLE):
            loss = self._loss(model, batch.to(device), smoothing=0.0)["loss"]
            nats, count = nats + float(loss.total), count + loss.count
        sources = self.sources(split, limit)
        beam = self.config.beam if split in ("test", "all") else 1
        outputs = self.translate(model, sources.texts, beam)
        return {**language_scores(nats, count), **self.scores(outputs, sources.references), "beam": beam}

    def count(self, split: str) -> int:
        return len(self.pairs(split))

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """The texts of a split, at most `limit`, spread evenly over them."""
        if split not in self._texts:
            self._texts[split] = self._read(split)
        texts, references = self._texts[split]
        kept = sharding.spread(np.arange(len(texts)), limit).tolist()
        return Sources([texts[row] for row in kept], [references[row] for row in kept])

    def _read(self, split: str) -> Sources:
        pairs = read_all(self.paths) if split == "all" else split_pairs(self.paths, split, self.config.split)
        both = [Pair(*pair[::-1]) if self.reverse else pair for pair in pairs]
        if self.groups:
            together = grouped(both)
            return Sources(list(together), list(together.values()))
        return Sources([source for source, _ in both], [[target] for _, target in both])

    def scores(self, outputs: list[str], references: list[list[str]]) -> dict[str, Any]:
        raise NotImplementedError

    def translate(self, model: nn.Module, texts: Sequence[str], beam: int) -> list[str]:
        """The best translation of each text."""
        search = SearchConfig(beam=beam, length_penalty=self.config.length_penalty)
        found = translate(cast(EncoderDecoder, model), self.codecs, self.config, texts, search)
        return [best for best, *_ in found]

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Sources of the test split, or of the validation split where there is none, spread evenly over it."""
        texts, references = self._spread(count)
        outputs = self.translate(model, texts, self.config.beam)
        return [
            {"source": source, "output": output, "reference": " | ".join(some)}
            for source, output, some in zip(texts, outputs, references)
        ]

    def pictures(self, model: nn.Module) -> list[Picture]:
        """The alignment of one of the samples."""
        texts = self._spread(_LOOKED_AT).texts
        return alignment_pictures(cast(EncoderDecoder, model), self.codecs, self.config, texts)

    def _spread(self, count: int) -> Sources:
        texts, references = self.sources(self.final_split)
        places = np.unique(np.linspace(0, len(texts) - 1, count).astype(int)).tolist()
        return Sources([texts[place] for place in places], [references[place] for place in places])


class Translation(PairTask):
    """The task over parallel text."""

    def __init__(self, config: TranslationConfig, recipe: Recipe, paths: Sequence[Path], codecs: Codecs) -> None:
        super().__init__(config, recipe, paths, codecs, reverse=config.reverse)
        self.settings = config
        self.goal = config.goal
        self.groups = config.grouped
        self.goal_better = "min" if config.goal == "loss" else "max"

    def scores(self, outputs: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = translation_scores(outputs, references)
        if not self.settings.lowercase_bleu:
            return scores
        lower = bleu(outputs, references, lowercase=True)
        return {**scores, **{name.replace("bleu", "bleu_lowercase"): value for name, value in lower.items()}}


def _longest_of(model: ModelConfig) -> int | None:
    """The most tokens that both sides of a model take; None where there is no limit."""
    if not isinstance(model, EncoderDecoderConfig):
        return None
    return min((c for c in (model.encoder.context, model.decoder.context) if c is not None), default=None)


def _sentences(column: Column, pairs: np.ndarray) -> Sentences:
    # As plain arrays: each look-up in a memory map costs more than in the array that it is.
    return Sentences(np.asarray(column.ids), column.offsets[pairs], column.lengths[pairs])
