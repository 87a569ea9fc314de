"""Pairs as shards of token ids and their texts, and trainings that start from their table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from headway.codecs import FILE, Codec, Kind
from headway.data import Pair
from headway.data.corpus import AlignedFiles, pair_sources, read_pairs
from headway.data.input_files import File
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.sample_shards import EncodedSample
from headway.data.splits import split_code, text_key
from headway.data.token_store import PairCache, TokenColumn
from headway.domains.translation.task import (
    Codecs,
    PairsConfig,
    ParallelText,
    SentencePairs,
    TokenSequences,
)
from headway.errors import ConfigError, UserError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.formats.usage import Usage, read_usage
from headway.io.json_files import parse_json
from headway.learn import Recipe
from headway.learn.examples import Batch, Contents, RngKey, TrainingOrder, spread_evenly
from headway.learn.objectives.sequences import Sources
from headway.learn.prepared_rows import PreparedTokens
from headway.learn.shard_batches import PlacedLengthBatches
from headway.learn.token_shards import KEY_BYTES, SourceRow, encode_columns

PARTS = 2  # source and target


class PairReader:
    """The pairs of files, whose sources a task `config` prepares. A new tokenizer has this kind and size (codec, size).
    With two `vocabularies`, sources and targets each have a tokenizer, if a published one has two.
    """

    parts, num_sums = PARTS, 0

    def __init__(
        self, config: PairsConfig, paths: Sequence[Path], codec: Kind, size: int | None, vocabularies: int = 1
    ) -> None:
        self._sources, self._config, self.vocabularies = pair_sources(paths), config, vocabularies
        (self.name,) = config.prepared_kinds
        self.codec: Kind = codec
        files = ((s.source, s.target) if isinstance(s, AlignedFiles) else (s,) for s in self._sources)
        self.files: Sequence[File] = [file for pair in files for file in pair]
        self.settings: Mapping[str, Any] = {
            "codec": codec,
            "size": size,
            "prefix": config.prefix,
            "vocabularies": vocabularies,
        }

    def rows(self) -> Iterator[SourceRow]:
        for source in self._sources:
            code = 0 if source.named_split is None else split_code(source.named_split)
            file = source.source if isinstance(source, AlignedFiles) else source
            for number, pair in enumerate(read_pairs(source), 1):
                yield SourceRow(list(pair), "", code, f"{file.name}, pair {number}")

    def texts(self, content: Any) -> Sequence[str]:
        return self._config.training_texts(content)

    def train(self, texts: Iterable[str]) -> Codec:
        return self._config.train_codec(texts)

    def encode(self, rows: Sequence[SourceRow], codecs: Sequence[Codec]) -> Iterable[EncodedSample]:
        contents = [row.content for row in rows]
        prepared = [[self._config.prepare(source), target] for source, target in contents]
        for pair, sample in zip(contents, encode_columns(prepared, codecs)):
            # Scores need the texts: tokens of a tokenizer that normalises cannot be turned back into them.
            content = sample.content + json.dumps(pair, ensure_ascii=False).encode()
            yield sample._replace(content=content, key=text_key(pair[0]).to_bytes(KEY_BYTES, "little"))


@dataclass(frozen=True, kw_only=True)
class PreparedPairs(SentencePairs):
    """Pairs in shards, `rows` of `tokens`, int64 [N]; only the lengths of sources and targets are in memory. A step
    takes `places` batches.
    """

    tokens: PreparedTokens
    rows: np.ndarray
    places: int

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        parts = [parts for parts, _ in self.tokens.contents(self.rows[indices])]
        source, target = (
            TokenSequences(np.concatenate(ids), np.cumsum([0, *map(len, ids[:-1])]), sequences.lengths[indices])
            for ids, sequences in zip(zip(*parts), (self.source, self.target))
        )
        return SentencePairs(source, target, self.special_tokens, self.reverse_source).take(np.arange(len(indices)))

    def training_order(self) -> TrainingOrder:
        samples = self.tokens.samples
        if not samples.is_windowed:
            return super().training_order()
        plan = lambda indices: self._select(indices).plan(self.batch_tokens, self.seed)  # noqa: E731
        return PlacedLengthBatches(samples, self.rows, plan, self.places, self.seed)

    def limited_to(self, limit: int | None) -> PreparedPairs:
        return self._select(spread_evenly(np.arange(len(self)), limit))

    def _select(self, indices: np.ndarray) -> PreparedPairs:
        source, target = self.source.select(indices), self.target.select(indices)
        return replace(self, source=source, target=target, rows=self.rows[indices])


class PreparedParallelText(ParallelText):
    """Text pairs in shards, whose table has the lengths of sources and targets."""

    def __init__(
        self,
        config: PairsConfig,
        recipe: Recipe,
        samples: PreparedSamples,
        codecs: Codecs,
        usage: Usage,
        grouped: bool = False,
    ) -> None:
        self.tokens, self.places = PreparedTokens(samples, *dict.fromkeys(codecs)), recipe.train.accumulate
        super().__init__(config, recipe, (), codecs, usage, grouped=grouped)

    def open_cache(self) -> PairCache:
        """The lengths and keys of all pairs, without their tokens."""
        samples, no_ids = self.tokens.samples, np.zeros(0, np.uint16)
        source, target = (TokenColumn(no_ids, np.append(0, np.cumsum(lengths))) for lengths in self.tokens.lengths.T)
        return PairCache(samples.data.folder, source, target, self.tokens.keys, samples.named_splits)

    def contents(self) -> Contents:
        return {"source texts": (self.cache.keys,), "target texts": (self.tokens.samples.checksums,)}

    def input_statistics(self) -> TrainingStatistics:
        """In-distribution statistics of the training sources in the first shard."""
        rows, codec = self.tokens.samples.in_one_shard(self.of("train").rows), self.codecs.source
        sources = [source for (source, _), _ in self.tokens.contents(rows)]
        longest = int(self.of("train").source.lengths.max()) + 1
        return TrainingStatistics.from_ids(
            np.concatenate(sources), codec.vocab_size, longest, (codec.bos_id, codec.eos_id)
        )

    def of(self, split: str) -> PreparedPairs:
        return cast(PreparedPairs, super().of(split))

    def select_pairs(
        self, rows: np.ndarray, source: TokenSequences, target: TokenSequences, eval_tokens: int
    ) -> SentencePairs:
        pairs = super().select_pairs(rows, source, target, eval_tokens)
        return PreparedPairs(**vars(pairs), tokens=self.tokens, rows=rows, places=self.places)

    def read_pairs(self, split: str) -> Iterator[Pair]:
        return self._texts(self.splits.rows(split))

    def sources(self, split: str, limit: int | None = None) -> Sources:
        if self.grouped:
            return super().sources(split, limit)
        pairs = list(self._texts(spread_evenly(self.splits.rows(split), limit)))
        inputs = [source for source, _ in pairs]
        return Sources(inputs, [[target] for _, target in pairs], inputs)

    def _texts(self, rows: np.ndarray) -> Iterator[Pair]:
        for _, content in self.tokens.contents(rows):
            try:
                source, target = map(str, parse_json(bytes(content)))
            except (TypeError, ValueError, RecursionError):
                raise UserError(
                    f"a pair of {self.tokens.samples.data.name} has no texts; prepare the data again"
                ) from None
            yield Pair(source, target)


def open_prepared(
    config: PairsConfig, recipe: Recipe, paths: Sequence[Path], workspace: Path, shared: bool, grouped: bool
) -> PreparedParallelText:
    """The examples of prepared pairs. ConfigError for settings that other tokens would need."""
    samples = PreparedSamples.open(paths, config.prepared_kinds[0], PARTS)
    name, prefix = samples.data.name, str(samples.details.get("prefix"))
    if config.prefix != prefix:
        raise ConfigError(
            f"task.prefix is {config.prefix!r}, but {name} was prepared with {prefix[:60]!r}; set it to this, or "
            "prepare the data again with --prefix"
        )
    is_new = not (workspace / FILE).exists()
    codecs = config.codecs(samples.data.companion_folder() if is_new else workspace)
    if is_new and shared and codecs.source is not codecs.target:
        raise ConfigError(f"{name} has a vocabulary per language, but task.shared is true; set it to false")
    if is_new and not shared and codecs.source is codecs.target:
        raise ConfigError(
            f"{name} has one vocabulary for both languages, but task.shared is false; set it to true, or prepare the "
            "data again with --separate"
        )
    return PreparedParallelText(config, recipe, samples, codecs, read_usage(workspace), grouped)
