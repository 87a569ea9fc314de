"""Shared parts of conversation tasks (settings, tokens, splits, samples), and instruction tuning, which trains on the
assistant's replies given the conversation before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from headway.codecs import FILE, Kind, load_codec
from headway.codecs.chat_template import StopSequences
from headway.config import override
from headway.config_kinds import register
from headway.data import IGNORE_INDEX, SplitConfig, Splits
from headway.data.dialogues import find_chat_files
from headway.data.input_files import File
from headway.data.packing import TokenWindows, best_fit_rows, expand_ranges, gather_windows
from headway.data.splits import split_by_key
from headway.data.token_store import ChatCache, ChatSample, open_chats
from headway.domains.chat.chat_samples import (
    CONVERSATIONS,
    ChatData,
    ChatKind,
    chat_template,
    train_chat_codec,
)
from headway.errors import ConfigError, logger
from headway.formats.usage import read_usage
from headway.generate import Completion, Limits, Sampling, Session
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, FixedSizeBatches, IndexedExamples, RngKey, RowSubset, TrainingOrder
from headway.learn.objectives.sequences import Likelihood
from headway.metrics import language_scores
from headway.nn.models import ModelConfig, Transformer, TransformerConfig

EVAL_BATCH_TOKENS = 8192  # tokens
_LOG = logger(__name__)
_EMPTY_LINES = re.compile(r"\n\s*\n")
_MAX_REPLY_TOKENS = 200  # maximum tokens of a displayed reply


@dataclass(frozen=True)
class ChatConfig(TaskConfig):
    """Tasks on conversations.

    A start model provides its tokenizer and chat template; without one, `codec` and `size` (maximum vocabulary size)
    set the tokenizer. A conversation with more than `context` tokens is an error or, with `drop_long`, skipped and
    counted. `split` sets the held-out shares if no files are named for the splits.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 4096  # maximum vocabulary size
    context: int = 512  # maximum tokens per conversation
    drop_long: bool = False  # whether to skip and count longer ones
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"task.context {self.context} is too short for a conversation; choose 2 or more")

    def check_model(self, model: ModelConfig) -> None:
        """Raises ConfigError for a model that does not generate text, or whose context is too short for a
        conversation.
        """
        if not isinstance(model, TransformerConfig) or not model.stack.causal or "vocabulary" not in model.heads:
            raise ConfigError("conversations need a model that generates text; choose a decoder such as gpt2 or Llama")
        if model.context is not None and self.context > model.context:
            raise ConfigError(
                f"task.context {self.context} exceeds the model's context of {model.context}; lower task.context"
            )

    def read(self, kind: ChatKind, paths: Sequence[Path], workspace: Path) -> ChatData:
        """The samples at some paths, with the codec and chat template of the run or its start model, from the
        workspace; otherwise a codec trained on the messages, or that of prepared data, and the default template.
        """
        from headway.data.prepared.shard_reader import is_prepared  # not needed for inference

        codec = load_codec(workspace) if (workspace / FILE).exists() else None
        if any(map(is_prepared, paths)):
            from headway.domains.chat.chat_shards import open_prepared

            return open_prepared(paths, kind, codec, read_usage(workspace).template)
        sources = find_chat_files(paths)
        if codec is None:
            all_messages = (messages for file in sources for _, *sample in kind.read(file) for messages in sample)
            texts = (message["content"] for messages in all_messages for message in messages)
            codec = train_chat_codec(self.codec, texts, self.size)
        template = chat_template(read_usage(workspace).template, codec)

        def samples(file: File) -> Iterator[ChatSample]:
            for line, *messages in kind.read(file):
                key, chats = kind.encode(template, codec, f"{file}, line {line}", *messages)
                yield ChatSample(key, line, chats)

        return ChatData(codec, template, open_chats(sources, kind.parts, codec, samples, template.text))


class Conversations(IndexedExamples):
    """Conversations as ids, with masks of the assistant's tokens."""

    noun = "conversations"

    def __init__(self, config: ChatConfig, recipe: Recipe, data: ChatData) -> None:
        self.config, self.recipe, self.seed = config, recipe, recipe.train.seed
        self.codec, self.template, self.cache, self.windowed = data
        keys, named_splits = np.asarray(self.cache.keys), np.asarray(self.cache.named_splits)
        self.splits = Splits(split_by_key(keys, named_splits, config.split), np.arange(len(keys)), self.noun)
        self._rows: dict[str, np.ndarray] = {}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. Raises UserError without data to train or evaluate on."""
        for split in dict.fromkeys(("train", "validation", self.final_split)):
            self.rows_of(split)
        return override(model, {"vocab_size": self.codec.vocab_size})

    def rows_of(self, split: str) -> np.ndarray:
        """The samples in a split that fit, int64 [N]; a first token is only an input."""
        if split not in self._rows:
            samples = self.splits.rows(split)
            rows, num_dropped = self.cache.within_limit(
                samples, self.config.context + 1, self.config.drop_long, self.noun
            )
            if num_dropped:
                _LOG.warning(f"{split}: skipped {num_dropped:,} of {len(samples):,} {self.noun} that are too long")
            self._rows[split] = rows
        return self._rows[split]

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def contents(self) -> Contents:
        texts, replies = self.cache.digests()
        return {self.noun: (texts,), "replies": (replies,)}

    def save(self, directory: Path) -> None:
        """Save the codec and the template with the end tokens that chat needs."""
        self.codec.save(directory)
        usage = read_usage(directory)
        eos_ids = tuple(dict.fromkeys((*usage.ends, *self.stop_sequences.ids)))
        replace(usage, template=self.template.text, ends=eos_ids).save(directory)

    @cached_property
    def stop_sequences(self) -> StopSequences:
        """The stop sequences of a reply."""
        return self.template.stop_sequences(self.codec)

    def prompt_ids(self, row: int) -> list[int]:
        """A conversation's ids up to its last reply."""
        ids, loss_mask = self.cache.chat(row)
        return ids[: _last_reply(loss_mask)].tolist()

    def describe_row(self, row: int) -> str:
        """`prompt` as readable text: without special tokens, and without the empty lines between them."""
        return _EMPTY_LINES.sub("\n", self.codec.decode(self.prompt_ids(row))).strip()

    def reply(self, row: int, part: int = 0) -> str:
        """A conversation's last reply."""
        ids, loss_mask = self.cache.chat(row, part)
        start = _last_reply(loss_mask)
        return self.codec.decode(ids[start:][loss_mask[start:] == 1].tolist()).strip()


def _last_reply(loss_mask: np.ndarray) -> int:
    """The start of the last reply."""
    return int(np.flatnonzero(np.diff(loss_mask, prepend=0) == 1)[-1])


def replies(model: nn.Module, chats: Conversations, rows: Sequence[int]) -> Iterator[str]:
    """The model's greedy reply for each conversation's last one."""
    return (completion.text.strip() for completion in completions(model, chats, rows))


def completions(
    model: nn.Module, chats: Conversations, rows: Sequence[int], length: int | None = None
) -> Iterable[Completion]:
    """`replies` of at most `length` tokens, with their finish reasons; without it, of as many as are displayed."""
    session = Session(cast(Transformer, model), chats.codec)
    limits = Limits(length or _MAX_REPLY_TOKENS, chats.stop_sequences.strings, chats.stop_sequences.ids)
    return session.generate([chats.prompt_ids(row) for row in rows], Sampling(temperature=0.0), limits)


@register("instruct")
@dataclass(frozen=True)
class InstructConfig(ChatConfig):
    """Predict only the assistant's messages in conversations. Each row packs several conversations, which do not attend
    to each other.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = (CONVERSATIONS.name,)

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        self.check_model(recipe.model)
        recipe.train.rows(self.context)  # a ConfigError if a batch is smaller than a row
        return Task(Chats(self, recipe, self.read(CONVERSATIONS, recipe.files(data), workspace)), Replies())


class Chats(Conversations):
    """Conversations, several per row."""

    def of(self, split: str) -> RowSubset:
        return ChatRows(self, self.rows_of(split))


class ChatPacking:
    """Pack uncut conversations into rows of up to `context` tokens (best fit), each of one of the `groups` of samples.
    Group n has `counts[n]` rows.

    The first token of a conversation is not predicted, so n tokens take n - 1 positions. Conversations are assigned to
    rows once, by length only.
    """

    def __init__(self, cache: ChatCache, groups: Sequence[np.ndarray], context: int) -> None:
        self.cache, self.counts = cache, [0] * len(groups)
        steps = cache.lengths[:, 0] - 1
        samples, row_sizes = [], [np.zeros(1, np.int64)]
        for number, group in enumerate(groups):
            rows = best_fit_rows(steps[group], context)
            samples.append(group[np.argsort(rows, kind="stable")])
            row_sizes.append(np.bincount(rows))
            self.counts[number] = len(row_sizes[-1])
        self._samples, self._row_ends = np.concatenate(samples), np.cumsum(np.concatenate(row_sizes))
        self._sizes = steps[self._samples]

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """The rows with these indices, int64 [B], as wide as the longest; `labels` only for the assistant's tokens."""
        first = self._row_ends[rows]
        chunks, owner = expand_ranges(first, self._row_ends[rows + 1] - first)
        sizes = self._sizes[chunks]
        shape = len(rows), int(np.bincount(owner, sizes).max())
        ids, loss_mask, starts = self.cache.tokens(self._samples[chunks])
        windows = gather_windows(ids, owner, starts, sizes, shape)
        is_reply = gather_windows(loss_mask, owner, starts, sizes, shape).labels == 1
        return windows._replace(labels=np.where(is_reply, windows.labels, IGNORE_INDEX))


@dataclass(frozen=True)
class ChatRows(RowSubset):
    """Complete conversations packed into rows, which batches index."""

    examples: Chats

    @cached_property
    def packed(self) -> ChatPacking:
        samples = self.examples.windowed
        groups = [self.rows] if samples is None else [self.rows[group] for group in samples.by_shard(self.rows)]
        return ChatPacking(self.examples.cache, groups, self.examples.config.context)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and as labels the next tokens if they are the assistant's, otherwise
        -100.
        """
        inputs, labels, positions = map(torch.from_numpy, self.packed.windows(indices))
        return Batch((inputs, Layout(positions)), labels, int((labels != IGNORE_INDEX).sum()), inputs.numel())

    def training_order(self) -> TrainingOrder:
        examples, train = self.examples, self.examples.recipe.train
        size = train.rows(examples.config.context)
        if examples.windowed is None:
            return FixedSizeBatches(len(self.packed), size, examples.seed)
        from headway.learn.shard_batches import PlacedBatches, placed_rows  # rarely needed

        rows_at = placed_rows(examples.windowed.shards, self.packed.counts, train.accumulate, examples.seed)
        return PlacedBatches(rows_at, len(self.packed), size, train.accumulate)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self.packed), max(1, EVAL_BATCH_TOKENS // self.examples.config.context))


class Replies(Likelihood[Chats]):
    """Next-token prediction of the assistant's messages."""

    def evaluate(self, model: nn.Module, examples: Chats, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats) and perplexity on the assistant's tokens in a split, or in its first `limit` conversations."""
        samples = examples.of(split).limited_to(limit)
        return {**language_scores(*self.nats(model, samples)), "samples": len(samples)}

    def samples(self, model: nn.Module, examples: Chats, count: int) -> list[dict[str, str]]:
        """Held-out conversations up to their last reply, with the model's reply and the real one."""
        rows = examples.spread_rows(count).tolist()
        return [
            {"prompt": examples.describe_row(row), "output": output, "reference": examples.reply(row)}
            for row, output in zip(rows, replies(model, examples, rows))
        ]
