"""Labelled texts and text pairs as shards of token ids, and trainings that start from their table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.data import Splits
from headway.data.input_files import File
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.sample_shards import EncodedSample
from headway.data.splits import split_by_key
from headway.data.table_files import iter_table, table_files
from headway.domains.understanding.task import SPECIAL, PooledTaskConfig, TextDataset
from headway.errors import UserError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.learn import Recipe
from headway.learn.examples import Contents, TrainingOrder
from headway.learn.objectives.targets import ChosenTarget, TargetSamples
from headway.learn.prepared_rows import PreparedRows, PreparedTokens
from headway.learn.shard_batches import PlacedLengthBatches
from headway.learn.token_shards import SourceRow, encode_columns


class LabelledTextReader:
    """The rows of tables with labelled texts, or text pairs if `name` is labelled-pairs; `columns` has the names of
    columns that are not text, text2 or label. A new tokenizer has this kind and size (codec, size), and lower-cases
    texts as that of a training does.
    """

    num_sums, vocabularies = 0, 1

    def __init__(
        self, name: str, paths: Sequence[Path], columns: Mapping[str, str], codec: Kind = "bpe", size: int | None = 8192
    ) -> None:
        uses = ("text", "label") if name == "labelled-texts" else ("text", "text2", "label")
        if unknown := next((use for use in columns if use not in uses), None):
            raise UserError(f"--columns has {unknown!r}, which {name} do not have; use {', '.join(uses)}")
        self.name, self.parts, self._size = name, len(uses) - 1, size
        self.codec: Kind = codec
        self._paths, self._columns = paths, {use: columns.get(use, use) for use in uses}
        self.files: Sequence[File] = table_files(paths)
        self.settings: Mapping[str, Any] = {
            "columns": self._columns,
            "codec": codec,
            "size": size,
            "lowercase": True,
        }

    def rows(self) -> Iterator[SourceRow]:
        remedy = f"name the columns, such as --columns {' '.join(f'{use}=NAME' for use in self._columns)}"
        for values, file, line, code in iter_table(self._paths, self._columns, remedy=remedy, target="label"):
            label = values.pop("label")
            yield SourceRow(list(values.values()), label, code, f"{file.name}, line {line}")

    def texts(self, content: Any) -> Sequence[str]:
        return content

    def train(self, texts: Iterable[str]) -> Codec:
        return sentence_codec(self.codec, texts, self._size, SPECIAL, lowercase=True)

    def encode(self, rows: Sequence[SourceRow], codecs: Sequence[Codec]) -> Iterable[EncodedSample]:
        return encode_columns([row.content for row in rows], codecs)


class PreparedTextDataset(TextDataset):
    """Texts or text pairs in shards with their targets. Only the table and the lengths are in memory."""

    rows: PreparedRows

    def __init__(
        self,
        config: PooledTaskConfig,
        recipe: Recipe,
        samples: PreparedSamples,
        workspace: Path,
        chosen: ChosenTarget,
    ) -> None:
        self.samples, self.places = samples, recipe.train.accumulate
        self.codec = load_codec(workspace if (workspace / FILE).exists() else samples.data.companion_folder())
        tokens = PreparedTokens(samples, self.codec)
        classes = samples.labels if chosen.target.kind == "class" else None
        splits = split_by_key(tokens.keys, samples.named_splits, config.split, classes)
        self.configure(config, recipe, Splits(splits, np.arange(len(samples))), workspace)
        locate = samples.names.__getitem__
        frame, limit = self.frame(recipe.model), config.limit(recipe)
        self.rows = PreparedRows(tokens, frame, limit, locate)
        self.assign_targets(samples.labels, chosen, locate, workspace)

    def training_order(self, rows: np.ndarray) -> TrainingOrder:
        if not self.samples.is_windowed:
            return super().training_order(rows)
        plan = lambda indices: self.rows.plan(rows[indices], self.batch_size, self.seed)  # noqa: E731
        return PlacedLengthBatches(self.samples, rows, plan, self.places, self.seed)

    def input_statistics(self) -> TrainingStatistics:
        """Token statistics of the training texts in the first shard."""
        ids = self.rows.framed(self.samples.in_one_shard(self.splits.indices["train"])).ids
        return TrainingStatistics.from_ids(ids, self.codec.vocab_size)

    def texts_of(self, split: str) -> list[str]:
        raise UserError(f"{self.samples.data.name} has no texts to pre-train on; pass the tables")

    def contents(self) -> Contents:
        return {**TargetSamples.contents(self), "texts": (self.samples.keys,)}

    def describe_row(self, row: int) -> str:
        ((parts, _),) = self.rows.tokens.contents(np.array([row]))
        return " | ".join(self.codec.decode(ids.tolist()) for ids in parts)
