"""Tasks on texts and text pairs: a class, a number or several labels, and sentence embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.codecs.tokenizer import SequenceTemplate
from headway.config_kinds import register
from headway.data import SplitConfig, Splits, Table, epoch_seed, read_table, split_by_text
from headway.data.labels import merge_spellings, normalized_label
from headway.data.splits import SplitIndices, text_key
from headway.errors import ConfigError, UserError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.formats.published import classification_head
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import (
    Batch,
    Contents,
    FixedSizeBatches,
    IndexedExamples,
    LengthBatches,
    RngKey,
    SplitExamples,
    split_notes,
    spread_evenly,
)
from headway.learn.objectives.classes import train_on_each_label
from headway.learn.objectives.contrastive import Contrastive, check_splits, contrastive_batch_size, encode_chunks
from headway.learn.objectives.targets import (
    ChosenTarget,
    GroupedConfig,
    TargetSamples,
)
from headway.learn.prepared_rows import PreparedRows
from headway.learn.recipe import batch_tokens_of
from headway.learn.token_rows import (
    MAX_BATCH_TOKENS,
    LengthLimit,
    TokenRows,
    compute_in_batches,
    frame_for,
    frame_rows,
    split_by_length,
)
from headway.metrics import nearest_centroid, neighbour_recall, paired_recall
from headway.nn.models import (
    EncoderDecoderConfig,
    ModelConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    Transformer,
    TransformerConfig,
)
from headway.nn.parts.norm import RMSNormConfig

SPECIAL = ("[CLS]", "[SEP]")


@dataclass(frozen=True)
class EncoderTaskConfig(TaskConfig):
    """`codec`, `size` (maximum vocabulary size) and `lowercase` apply to the codec that is trained for a model from
    scratch.

    A text with more tokens than the model's context is an error or, with `truncate`, truncated. `split` sets the
    held-out shares if no files are named for the splits; equal texts are always in the same split.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 2000  # maximum vocabulary size
    lowercase: bool = True  # whether to lower-case the text
    truncate: bool = False  # whether to truncate texts that are too long
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out shares

    def limit(self, recipe: Recipe) -> LengthLimit:
        return LengthLimit(recipe.model.context, self.truncate)

    def codec_of(self, train_texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or its start model, otherwise one trained on the training texts."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        return sentence_codec(self.codec, train_texts, self.size, SPECIAL, self.lowercase)


def group_column(setting: str | None) -> dict[str, str]:
    """The column of `task.group` by its role, if it is set. ConfigError for a regular expression for file names."""
    if setting is not None and "(" in setting:
        raise ConfigError(f"task.group={setting!r} is a regular expression for file names; name a column")
    return {} if setting is None else {"group": setting}


def check_encoder(model: ModelConfig) -> TransformerConfig:
    """Raises ConfigError for a model that is not a Transformer."""
    if not isinstance(model, TransformerConfig):
        raise ConfigError(
            f"this task needs a single-stream transformer, not a {type(model).__name__}; choose another model"
        )
    return model


class EncodedTextDataset(IndexedExamples):
    """Token rows with one text or text pair each. `batch_size` is in tokens."""

    codec: Codec
    rows: TokenRows | PreparedRows

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError for a split without samples."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        if isinstance(model, EncoderDecoderConfig):
            parts = (replace(part, vocab_size=self.codec.vocab_size) for part in (model.encoder, model.decoder))
            return replace(model, **dict(zip(("encoder", "decoder"), parts)))
        return replace(check_encoder(model), vocab_size=self.codec.vocab_size)

    def training_order(self, rows: np.ndarray) -> LengthBatches:
        return LengthBatches(self.rows.plan(rows, self.batch_size, self.seed), len(rows))

    def evaluation_order(self, rows: np.ndarray) -> LengthBatches:
        return LengthBatches(self.rows.plan(rows, MAX_BATCH_TOKENS), len(rows))

    def input_statistics(self) -> TrainingStatistics:
        """Token statistics of the training texts. Longer texts are not unexpected for a classifier."""
        assert isinstance(self.rows, TokenRows)
        is_train = np.zeros(len(self.rows), bool)
        is_train[self.splits.indices["train"]] = True
        return TrainingStatistics.from_ids(self.rows.ids[np.repeat(is_train, self.rows.lengths)], self.codec.vocab_size)

    def texts_of(self, split: str) -> list[str]:
        """The texts of the samples in a split, which may be empty; of pairs, the first and then the second texts."""
        rows = self.splits.indices[split].tolist()
        return [cast(str, column[row]) for column in self.contents()["texts"] for row in rows]

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.codec.save(directory)


_POOLED_HEADS = ("classes", "number", "embedding", "pooled", "next")  # heads in a start model whose pooling is kept


@dataclass(frozen=True)
class PooledTaskConfig(EncoderTaskConfig):
    """Predict something about each text. `pool` sets the pooling: first, mean or last token (none: what suits the
    model).
    """

    pool: Literal["first", "mean", "last"] | None = None


class TextDataset(EncodedTextDataset, TargetSamples):
    """A table of texts or text pairs with their targets."""

    def __init__(
        self,
        config: PooledTaskConfig,
        recipe: Recipe,
        table: Table,
        workspace: Path,
        chosen: ChosenTarget | None = None,
    ) -> None:
        """Without `chosen`, the targets are set by a subclass."""
        self.table = table
        first_texts, second_texts = table.columns["text"], table.columns.get("text2")
        classes = table.columns["label"] if chosen is not None and chosen.target.kind == "class" else None
        groups = table.columns.get("group")
        splits = split_by_text(first_texts, table.named_splits, config.split, classes, groups)
        if classes is not None and groups is None:
            labels = [(normalized_label(label),) for label in classes]
            splits = train_on_each_label(splits, labels, first_texts, table.named_splits)
        self.configure(config, recipe, Splits(splits, np.arange(len(table))), workspace)
        train_texts = (
            column[row]
            for column in (first_texts, second_texts or [])
            for row in self.splits.indices["train"]
            if column
        )
        self.codec = config.codec_of(train_texts, workspace)
        self.rows = self.tokenize(recipe, first_texts, second_texts)
        if chosen is not None:
            self.assign_targets(table.columns["label"], chosen, table.location, workspace)

    def configure(self, config: PooledTaskConfig, recipe: Recipe, splits: Splits, workspace: Path) -> None:
        """Set everything except codec, rows and targets."""
        self.config, self.splits, self.from_start = config, splits, recipe.start is not None
        self.family = read_usage(workspace).family  # of the published model that it starts from
        self.seed, self.batch_size = recipe.train.seed, batch_tokens_of(recipe, "text")

    def frame(self, model: ModelConfig) -> SequenceTemplate:
        """The special tokens of the model's inputs. ConfigError for a model that takes no text."""
        if not isinstance(model, EncoderDecoderConfig) or not isinstance(model.encoder.embed, TokenEmbedConfig):
            model = check_encoder(model)
        return frame_for(self.codec, model)

    def tokenize(self, recipe: Recipe, first: Sequence[str], second: Sequence[str] | None) -> TokenRows:
        """The model inputs of all rows."""
        frame, limit = self.frame(recipe.model), self.config.limit(recipe)
        first_ids = self.codec.encode_batch(first)
        second_ids = None if second is None else self.codec.encode_batch(second)
        return frame_rows(frame, first_ids, second_ids, limit, self.table.location)

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, and targets of shape [B] or [B, C]."""
        inputs = self.rows.inputs(rows)
        return Batch(inputs, torch.from_numpy(self.targets[rows]), len(rows), inputs.computed)

    def contents(self) -> Contents:
        columns = self.table.columns
        return {**super().contents(), "texts": tuple(columns[role] for role in ("text", "text2") if role in columns)}

    def describe_row(self, row: int) -> str:
        return " | ".join(self.table.columns[role][row] for role in ("text", "text2") if role in self.table.columns)

    def with_head(self, model: ModelConfig, name: str, outputs: int) -> ModelConfig:
        """`model` with one head for complete texts. A start model keeps the pooling of its sentence embeddings, or else
        its BERT pooler; otherwise it gets its family's head, or a BERT-style one. A model from scratch uses the mean of
        its tokens; a causal model uses the last token, and so does the decoder of an encoder-decoder, with BART's dense
        layer.
        """
        if isinstance(model, EncoderDecoderConfig):
            rate = model.decoder.embed.dropout
            head = model.decoder.heads.get(name)
            if not isinstance(head, PooledHeadConfig):
                head = PooledHeadConfig(pool="last", dense=True, activation="tanh", dropout=rate)
            head = replace(head, outputs=outputs, scale=1.0, shift=0.0)
            return replace(model, decoder=replace(model.decoder, heads={name: head}))
        encoder = check_encoder(model)
        rate = encoder.embed.dropout
        heads = (encoder.heads.get(name) for name in _POOLED_HEADS)
        poolers = [
            head for head in heads if isinstance(head, PooledHeadConfig) and self.config.pool in (None, head.pool)
        ]
        if poolers:
            # Sentence embeddings were trained at unit length, so the classifier normalises them too.
            norm = RMSNormConfig(weight=False) if poolers[0].unit else poolers[0].norm
            head = replace(poolers[0], outputs=outputs, dropout=poolers[0].dropout or rate, unit=False, norm=norm)
        elif self.config.pool is None and self.from_start and not encoder.stack.causal:
            head = classification_head(encoder, self.family) or PooledHeadConfig(dense=True, activation="tanh")
            head = replace(head, outputs=outputs, dropout=head.dropout or rate)
        else:
            head = PooledHeadConfig(
                outputs, self.config.pool or ("last" if encoder.stack.causal else "mean"), dropout=rate
            )
        return replace(encoder, heads={name: replace(head, scale=1.0, shift=0.0)})


HEAD = "embedding"
_CENTROID_TEXTS = 50  # texts per class whose mean is its centroid


@register("embedding")
@dataclass(frozen=True)
class EmbeddingConfig(EncoderTaskConfig, GroupedConfig):
    """Contrast each text's partner with the other partners in its batch (InfoNCE, van den Oord et al. 2018; in-batch
    negatives, Karpukhin et al. 2020), in both directions, at a `temperature`; embeddings are mean-pooled and have unit
    length.

    `text` and `text2` are columns with related texts. Files without `text2` have a `label`: texts with the same label
    are related, and each epoch samples their partners again. Texts with the same label, and equal texts, are not
    negatives of each other. A batch is train.batch_size pairs; train.accumulate is 1, because the loss couples the
    whole batch.
    """

    text: str = "text"  # column with the texts
    text2: str = "text2"  # column with their partners
    label: str = "label"  # column with labels, if there are no partners
    temperature: float = 0.05  # divides the cosines

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature}; choose a number above 0, such as 0.05")
        batch_size = contrastive_batch_size(recipe, "pairs", " and raise train.batch_size")
        names = {"text": self.text, "text2": self.text2, "label": self.label, **group_column(self.group)}
        table = read_table(recipe.files(data), names, optional=("text2", "label"))
        if not table.columns.keys() & {"text2", "label"}:
            raise UserError(
                f"{table.locations[0][0]} has neither a column {self.text2!r} nor {self.label!r}; add a column with "
                "related texts or labels, or name it with task.text2=NAME or task.label=NAME"
            )
        sentences = RelatedTextDataset(self, recipe, batch_size, table, workspace)
        return Task(sentences, SentenceContrast(sentences.labels is None, self.temperature))


class RelatedTextDataset(SplitExamples):
    """Texts related by their `partners` or by their `labels`, int64 [N]. Rows are the texts, then the partners."""

    def __init__(self, config: EmbeddingConfig, recipe: Recipe, batch_size: int, table: Table, workspace: Path) -> None:
        self.seed, self.batch_size = recipe.train.seed, batch_size
        self.texts, self.partners = table.columns["text"], table.columns.get("text2")
        merged = merge_spellings(table.columns.get("label", ()))
        self.spelling_notes = merged.notes
        self.labels = None if self.partners is not None else np.unique(merged.labels, return_inverse=True)[1]
        splits = split_by_text(self.texts, table.named_splits, config.split, groups=table.columns.get("group"))
        columns = [self.texts, *([] if self.partners is None else [self.partners])]
        train_texts = (column[row] for column in columns for row in splits["train"])
        self.codec = config.codec_of(train_texts, workspace)
        self.lines = [line for column in columns for line in column]
        encoded = [ids for column in columns for ids in self.codec.encode_batch(column)]
        frame, limit = frame_for(self.codec, check_encoder(recipe.model)), config.limit(recipe)
        self.rows: TokenRows = frame_rows(
            frame, encoded, None, limit, lambda row: table.location(row % len(self.texts))
        )
        related = {split: self._related(rows) for split, rows in splits.items()}
        related_splits = SplitIndices(related, splits.removed, splits.groups)
        all_rows = np.arange(len(self.texts))
        self.splits = Splits(related_splits, self._related(all_rows), "texts with a partner")

    def _related(self, rows: np.ndarray) -> np.ndarray:
        """Those of the texts that have a partner among them."""
        if self.labels is None:
            return rows
        return rows[np.bincount(self.labels[rows])[self.labels[rows]] > 1]

    def of(self, split: str) -> RelatedTextSplit:
        return RelatedTextSplit(self, self.splits.rows(split))

    def texts_of(self, split: str) -> list[str]:
        """The texts in a split, which may be empty, and then their partners."""
        rows = self.splits.indices[split].tolist()
        return [column[row] for column in (self.texts, self.partners or ()) if column for row in rows]

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*split_notes(self.splits), *self.spelling_notes)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError for a split without pairs or with fewer than one
        batch.
        """
        check_splits(self.splits, self.batch_size, "pairs")
        return replace(check_encoder(model), vocab_size=self.codec.vocab_size)

    def batch(self, text_rows: np.ndarray, partner_rows: np.ndarray) -> Batch:
        """Tokens of texts and partners. Equal texts, and texts with the same label, count as the same."""
        keys = [self._keys(text_rows), self._keys(partner_rows)]
        same = np.logical_or.reduce([key[:, None] == key for key in keys])
        parts = split_by_length(self.rows, np.concatenate([text_rows, partner_rows]))
        return Batch((parts,), (torch.arange(len(same)), torch.from_numpy(same)), len(same), parts.computed)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        """Keys that are equal for rows that are not negatives of each other."""
        if self.labels is not None:
            return self.labels[rows]
        return np.array([text_key(self.lines[row]) for row in rows.tolist()], np.uint64)

    def contents(self) -> Contents:
        return {"texts": (self.lines,), **({} if self.labels is None else {"labels": (self.labels,)})}


class RelatedTextSplit:
    """The texts that have a partner in the split, or the `first` of them."""

    def __init__(self, examples: RelatedTextDataset, rows_with_partner: np.ndarray, limit: int | None = None) -> None:
        self.examples, self.rows_with_partner, self.rows = examples, rows_with_partner, rows_with_partner[:limit]
        if examples.labels is not None:
            labels = examples.labels[rows_with_partner]
            self._order = np.argsort(labels, kind="stable")
            self._rank = np.argsort(self._order, kind="stable")
            grouped = labels[self._order]
            self._starts = np.searchsorted(grouped, labels, "left")
            self._counts = np.searchsorted(grouped, labels, "right") - self._starts

    def __len__(self) -> int:
        return len(self.rows)

    def partners(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """The rows of the texts' partners, a pure function of (seed, epoch). Among texts with labels, each text is the
        partner of exactly one other text with its label.
        """
        if self.examples.labels is None:
            return self.rows_with_partner[indices] + len(self.examples.texts)
        starts, counts = self._starts[indices], self._counts[indices]
        step = 1 + (epoch_seed(self.examples.seed, epoch) % (1 << 32)) % (counts - 1)
        return self.rows_with_partner[self._order[starts + (self._rank[indices] - starts + step) % counts]]

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        epoch = 0 if rng_key is None else int(rng_key.positions[0]) // len(self.rows_with_partner)
        return self.examples.batch(self.rows_with_partner[indices], self.partners(indices, epoch))

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.batch_size, self.examples.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.batch_size)

    def limited_to(self, limit: int | None) -> RelatedTextSplit:
        return RelatedTextSplit(self.examples, self.rows_with_partner, limit)


class SentenceContrast(Contrastive[RelatedTextDataset]):
    """Matches texts with their partners by the cosine of their embeddings, divided by a `temperature`."""

    def __init__(self, partnered: bool, temperature: float) -> None:
        self.goal, self.temperature = "recall_at_1" if partnered else "accuracy", temperature

    def adapt(self, model: ModelConfig, examples: RelatedTextDataset) -> ModelConfig:
        """`model` with its own embedding head, or a new one."""
        encoder = check_encoder(model)
        head_config = encoder.heads.get(HEAD)
        pool: Literal["mean", "last"] = "last" if encoder.stack.causal else "mean"
        head = head_config if isinstance(head_config, PooledHeadConfig) else PooledHeadConfig(pool=pool, unit=True)
        return replace(encoder, heads={HEAD: head})

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B B"]:
        encoder, (chunks,) = cast(Transformer, model), batch.inputs
        queries, keys = encode_chunks(lambda part: encoder.output(HEAD, *part), chunks.chunks)[chunks.order].chunk(2)
        return queries @ keys.T / self.temperature

    def vectors(self, model: nn.Module, examples: RelatedTextDataset, rows: np.ndarray) -> Float[np.ndarray, "N D"]:
        """The rows' embeddings."""
        encoder = cast(Transformer, model)
        return compute_in_batches(encoder, examples.rows, rows, lambda part: encoder.output(HEAD, *part)).numpy()

    def evaluate(
        self, model: nn.Module, examples: RelatedTextDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """For pairs: recall of the partner at 1 and 5 among all partners in the split. For texts with labels: recall of
        a text with the same label, and accuracy of the nearest class centroid, from training texts.
        """
        samples = examples.of(split).limited_to(limit)
        embeddings = self.vectors(model, examples, samples.rows)
        if examples.labels is None:
            return paired_recall(embeddings, self.vectors(model, examples, samples.rows + len(examples.texts)))
        reference_rows = examples.splits.rows("all" if split == "all" else "train")
        order = reference_rows[np.argsort(examples.labels[reference_rows], kind="stable")]
        grouped = examples.labels[order]
        centroid_rows = order[
            np.arange(len(order)) - np.searchsorted(grouped, grouped) < _CENTROID_TEXTS
        ]  # the first of each label
        labels = examples.labels[samples.rows]
        scores = nearest_centroid(
            self.vectors(model, examples, centroid_rows), examples.labels[centroid_rows], embeddings, labels
        )
        return {**neighbour_recall(embeddings, labels), **scores}

    def samples(self, model: nn.Module, examples: RelatedTextDataset, count: int) -> list[dict[str, str]]:
        """Held-out texts with the nearest other text or, if there are partners, the nearest partner."""
        rows, lines, partners = examples.of(examples.final_split).rows, examples.lines, examples.partners
        queries, candidates = spread_evenly(rows, count), rows if partners is None else rows + len(examples.texts)
        similar = self.vectors(model, examples, queries) @ self.vectors(model, examples, candidates).T
        similar[candidates == queries[:, None]] = -np.inf
        nearest = candidates[similar.argmax(1)]
        samples = [{"source": lines[query], "output": lines[row]} for query, row in zip(queries, nearest)]
        if partners is None:
            return samples
        return [{**sample, "reference": partners[query]} for sample, query in zip(samples, queries)]
