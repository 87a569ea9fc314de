"""Shared parts of conversation tasks (settings, tokens, splits, samples), and instruction tuning, which trains on the
assistant's replies given the conversation before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from headway.codecs import Kind, TokenizerCodec, load_codec, train_codec
from headway.codecs.chat_template import ROLES, Chat, ChatTemplate, StopSequences, default_template
from headway.codecs.tokenizer import END_OF_TEXT, FILE
from headway.config import override
from headway.config_kinds import register
from headway.data import IGNORE_INDEX, SplitConfig, Splits
from headway.data.array_store import column_digest
from headway.data.dialogues import ASSISTANT, Message, Messages, find_chat_files, read_chats
from headway.data.input_files import File
from headway.data.splits import split_by_key
from headway.data.token_store import ChatCache, ChatPacking, ChatSample, TokenizedChat, open_chats
from headway.errors import ConfigError, UserError, logger
from headway.formats.usage import read_usage
from headway.generate import Completion, Limits, Sampling, Session
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, FixedSizeBatches, IndexedExamples, RngKey, RowSubset
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

    def codec_and_template(self, chats: Iterable[Messages], workspace: Path) -> tuple[TokenizerCodec, ChatTemplate]:
        """The codec and chat template of the run or its start model, from the workspace; otherwise a codec trained on
        the messages and the default template.
        """
        if (workspace / FILE).exists():
            codec = load_codec(workspace)
        else:
            contents = (message["content"] for chat in chats for message in chat)
            codec = train_codec(self.codec, contents, self.size, special=(*ROLES, END_OF_TEXT), fewer=True)
        template_text = read_usage(workspace).template
        if template_text is None:
            return codec, default_template(codec.special_tokens)
        return codec, ChatTemplate(template_text, codec.special_tokens, "the model's chat template")


class Conversations(IndexedExamples):
    """Conversations as ids, with masks of the assistant's tokens."""

    noun = "conversations"

    def __init__(
        self, config: ChatConfig, recipe: Recipe, codec: TokenizerCodec, template: ChatTemplate, cache: ChatCache
    ) -> None:
        self.config, self.codec, self.template, self.cache = config, codec, template, cache
        self.recipe, self.seed = recipe, recipe.train.seed
        splits = split_by_key(np.asarray(cache.keys), np.asarray(cache.named_splits), config.split)
        self.splits = Splits(splits, np.arange(len(cache)), self.noun)
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
        texts, replies = (column_digest(self.cache.directory, *names) for names in (("ids", "offsets"), ("marks",)))
        return {self.noun: ([texts],), "replies": ([replies],)}

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
    model: nn.Module, chats: Conversations, rows: Sequence[int], length: int = _MAX_REPLY_TOKENS
) -> Iterable[Completion]:
    """`replies` of at most `length` tokens, with their finish reasons."""
    session = Session(cast(Transformer, model), chats.codec)
    limits = Limits(min(length, _MAX_REPLY_TOKENS), chats.stop_sequences.strings, chats.stop_sequences.ids)
    return session.generate([chats.prompt_ids(row) for row in rows], Sampling(temperature=0.0), limits)


def encode_chat(template: ChatTemplate, codec: TokenizerCodec, messages: Sequence[Message], location: str) -> Chat:
    """A conversation as ids. UserError with its location if the template rejects it or does not mark any assistant
    tokens.
    """
    try:
        chat = template.encode(codec, messages)
    except UserError as error:
        raise UserError(f"{location}: {error}") from None
    if not any(stop > 1 for _, stop in chat.spans):  # a first token is only an input
        raise UserError(
            f"{location}: {template.source} does not mark any of it as the assistant's; correct the template's "
            "{% generation %} blocks, or the roles of the messages"
        )
    return chat


def split_key(messages: Iterable[Message]) -> str:
    """The key that determines the split: the messages as text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


@register("instruct")
@dataclass(frozen=True)
class InstructConfig(ChatConfig):
    """Predict only the assistant's messages in conversations. Each row packs several conversations, which do not attend
    to each other.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        self.check_model(recipe.model)
        recipe.train.rows(self.context)  # a ConfigError if a batch is smaller than a row
        sources = find_chat_files(recipe.files(data))
        chats = (chat.messages for file in sources for chat in read_chats(file))
        codec, template = self.codec_and_template(chats, workspace)

        def samples(file: File) -> Iterator[ChatSample]:
            for line, chat in read_chats(file):
                prompt = takewhile(lambda message: message["role"] != ASSISTANT, chat)
                yield ChatSample(
                    split_key(prompt),
                    line,
                    [TokenizedChat(*encode_chat(template, codec, chat, f"{file}, line {line}"))],
                )

        cache = open_chats(sources, 1, codec, samples, template.text)
        return Task(Chats(self, recipe, codec, template, cache), Replies())


class Chats(Conversations):
    """Conversations, several per row."""

    def of(self, split: str) -> RowSubset:
        return ChatRows(self, self.rows_of(split))


@dataclass(frozen=True)
class ChatRows(RowSubset):
    """Complete conversations packed into rows, which batches index."""

    examples: Chats

    @cached_property
    def packed(self) -> ChatPacking:
        return ChatPacking(self.examples.cache, self.rows, self.examples.config.context)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and as labels the next tokens if they are the assistant's, otherwise
        -100.
        """
        inputs, labels, positions = map(torch.from_numpy, self.packed.windows(indices))
        return Batch((inputs, Layout(positions)), labels, int((labels != IGNORE_INDEX).sum()), inputs.numel())

    def training_order(self) -> FixedSizeBatches:
        examples = self.examples
        return FixedSizeBatches(len(self.packed), examples.recipe.train.rows(examples.config.context), examples.seed)

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
