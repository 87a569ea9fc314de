"""Shared parts of tasks over conversations (settings, tokens, splits, samples), and instruction tuning: the assistant's
replies, given the conversation before them.
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
from headway.codecs.chat import ROLES, Chat, ChatTemplate, Ends, default_template
from headway.codecs.tokenizer import END_OF_TEXT, FILE
from headway.config import override, register
from headway.data import IGNORED, SplitConfig, Splits
from headway.data.dialogues import ASSISTANT, Message, Messages, dialogue_sources, read_chats
from headway.data.files import File
from headway.data.marked import Marked, MarkedCache, MarkedSample, WholeRows, open_marked
from headway.data.splits import divided
from headway.data.store import column_digest
from headway.errors import ConfigError, UserError, logger
from headway.formats.usage import read_usage
from headway.generate import Completion, Limits, Sampling, Session
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, ByCount, Chance, Contents, Numbered, Selected
from headway.learn.objectives.written import Likelihood
from headway.metrics import language_scores
from headway.nn.models import ModelConfig, Transformer, TransformerConfig

JUDGED_AT_ONCE = 8192  # tokens
_LOG = logger(__name__)
_EMPTY_LINES = re.compile(r"\n\s*\n")
_REPLY = 200  # maximum tokens of a displayed reply


@dataclass(frozen=True)
class ChatConfig(TaskConfig):
    """Tasks over conversations.

    A start model brings its tokenizer and its chat template; without one, `codec` and `size` (maximum vocabulary) set
    the tokenizer. A conversation has at most `context` tokens: a longer one is an error or, with `drop_long`, left out
    and counted. `split` sets the held-out shares if no file is named for them.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 4096  # maximum vocabulary size
    context: int = 512  # maximum tokens per conversation
    drop_long: bool = False  # whether to leave out longer ones, and count them
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"task.context {self.context} is too short for a conversation; choose 2 or more")

    def check_model(self, model: ModelConfig) -> None:
        """Raises ConfigError for a model that does not generate text, or whose context is too short for a
        conversation.
        """
        if not isinstance(model, TransformerConfig) or not model.stack.causal or "vocabulary" not in model.heads:
            raise ConfigError(
                "conversations need a model that generates text; choose a decoder such as gpt2 or a llama"
            )
        if model.context is not None and self.context > model.context:
            raise ConfigError(
                f"task.context {self.context} exceeds the model's context of {model.context}; lower task.context"
            )

    def codec_and_template(self, chats: Iterable[Messages], workspace: Path) -> tuple[TokenizerCodec, ChatTemplate]:
        """The run's or its start's, from the workspace; otherwise a codec trained on the messages and the default
        template.
        """
        if (workspace / FILE).exists():
            codec = load_codec(workspace)
        else:
            texts = (message["content"] for chat in chats for message in chat)
            codec = train_codec(self.codec, texts, self.size, special=(*ROLES, END_OF_TEXT), fewer=True)
        said = read_usage(workspace).template
        if said is None:
            return codec, default_template(codec.marks)
        return codec, ChatTemplate(said, codec.marks, "the model's chat template")


class Conversations(Numbered):
    """Conversations as ids, with masks of the assistant's tokens. `what` is their name in messages."""

    what = "conversations"

    def __init__(
        self, config: ChatConfig, recipe: Recipe, codec: TokenizerCodec, template: ChatTemplate, cache: MarkedCache
    ) -> None:
        self.config, self.codec, self.template, self.cache = config, codec, template, cache
        self.seed = recipe.train.seed
        sides = divided(np.asarray(cache.keys), np.asarray(cache.named), config.split)
        self.splits = Splits(sides, np.arange(len(cache)), self.what)
        self._fitting: dict[str, np.ndarray] = {}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. Raises UserError without data to train or evaluate on."""
        for split in dict.fromkeys(("train", "validation", self.final_split)):
            self.numbers(split)
        return override(model, {"symbols": self.codec.size})

    def numbers(self, split: str) -> np.ndarray:
        """The samples of a split that fit, int64 [N]; a first token is input only."""
        if split not in self._fitting:
            samples = self.splits.rows(split)
            kept, lost = self.cache.fitting(samples, self.config.context + 1, self.config.drop_long, self.what)
            if lost:
                _LOG.warning(f"{split}: left out {lost:,} of {len(samples):,} {self.what}, which are too long")
            self._fitting[split] = kept
        return self._fitting[split]

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def contents(self) -> Contents:
        texts, replies = (column_digest(self.cache.directory, *names) for names in (("ids", "offsets"), ("marks",)))
        return {self.what: ([texts],), "replies": ([replies],)}

    def save(self, directory: Path) -> None:
        """Save the codec, and with the template the end tokens that chat needs."""
        self.codec.save(directory)
        usage = read_usage(directory)
        ends = tuple(dict.fromkeys((*usage.ends, *self.ends.ids)))
        replace(usage, template=self.template.text, ends=ends).save(directory)

    @cached_property
    def ends(self) -> Ends:
        """The stop sequences of a reply."""
        return self.template.ends(self.codec)

    def prompt(self, row: int) -> list[int]:
        """A conversation's ids up to its last reply."""
        ids, marks = self.cache.part(row)
        return ids[: _last_reply(marks)].tolist()

    def shown(self, row: int) -> str:
        """`prompt` as readable text: without special tokens, and without the empty lines between them."""
        return _EMPTY_LINES.sub("\n", self.codec.decode(self.prompt(row))).strip()

    def reply(self, row: int, part: int = 0) -> str:
        """A conversation's last reply."""
        ids, marks = self.cache.part(row, part)
        last = _last_reply(marks)
        return self.codec.decode(ids[last:][marks[last:] == 1].tolist()).strip()


def _last_reply(marks: np.ndarray) -> int:
    """The start of the last reply."""
    return int(np.flatnonzero(np.diff(marks, prepend=0) == 1)[-1])


def replies(model: nn.Module, chats: Conversations, rows: Sequence[int]) -> Iterator[str]:
    """The model's greedy reply for each conversation's last one."""
    return (completion.text.strip() for completion in completions(model, chats, rows))


def completions(
    model: nn.Module, chats: Conversations, rows: Sequence[int], length: int = _REPLY
) -> Iterable[Completion]:
    """`replies` of at most `length` tokens, with their finish reasons."""
    session = Session(cast(Transformer, model), chats.codec)
    limits = Limits(min(length, _REPLY), chats.ends.texts, chats.ends.ids)
    return session.generate([chats.prompt(row) for row in rows], Sampling(temperature=0.0), limits)


def read(template: ChatTemplate, codec: TokenizerCodec, messages: Sequence[Message], place: str) -> Chat:
    """A conversation as ids. UserError, with its location, if the template rejects it or marks no assistant tokens."""
    try:
        found = template.encode(codec, messages)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if not any(stop > 1 for _, stop in found.spans):  # a first token is input only
        raise UserError(
            f"{place}: {template.source} marks none of it as the assistant's; correct the template's "
            "{% generation %} blocks, or the roles of the messages"
        )
    return found


def key_of(messages: Iterable[Message]) -> str:
    """The key that decides the split: the messages as text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


@register("instruct")
@dataclass(frozen=True)
class InstructConfig(ChatConfig):
    """Predict the assistant's messages in conversations, and nothing else. A row packs several, kept apart."""

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        self.check_model(recipe.model)
        rows = recipe.train.rows(self.context)
        sources = dialogue_sources(recipe.files(data))
        chats = (chat.messages for file in sources for chat in read_chats(file))
        codec, template = self.codec_and_template(chats, workspace)

        def samples(file: File) -> Iterator[MarkedSample]:
            for line, chat in read_chats(file):
                asked = takewhile(lambda message: message["role"] != ASSISTANT, chat)
                yield MarkedSample(key_of(asked), line, [Marked(*read(template, codec, chat, f"{file}, line {line}"))])

        cache = open_marked(sources, 1, codec, samples, template.text)
        return Task(Chats(self, recipe, codec, template, cache, rows), Replies())


class Chats(Conversations):
    """Conversations, several per row, with `batch_size` rows per training batch."""

    def __init__(
        self,
        config: InstructConfig,
        recipe: Recipe,
        codec: TokenizerCodec,
        template: ChatTemplate,
        cache: MarkedCache,
        size: int,
    ) -> None:
        super().__init__(config, recipe, codec, template, cache)
        self.size = size

    def of(self, split: str) -> Selected:
        return ChatRows(self, self.numbers(split))


@dataclass(frozen=True)
class ChatRows(Selected):
    """Packed rows of complete conversations: batches index these rows."""

    examples: Chats

    @cached_property
    def packed(self) -> WholeRows:
        return WholeRows(self.examples.cache, self.rows, self.examples.config.context)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and the next tokens where they are the assistant's, -100 elsewhere."""
        inputs, labels, positions = map(torch.from_numpy, self.packed.windows(numbers))
        return Batch((inputs, Layout(positions)), labels, int((labels != IGNORED).sum()), inputs.numel())

    def training(self) -> ByCount:
        return ByCount(len(self.packed), self.examples.size, self.examples.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self.packed), max(1, JUDGED_AT_ONCE // self.examples.config.context))


class Replies(Likelihood[Chats]):
    """Next-token prediction of the assistant's messages."""

    def judge(self, model: nn.Module, examples: Chats, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats) and perplexity of the assistant's tokens in a split, or in its first `limit` conversations."""
        samples = examples.of(split).some(limit)
        return {**language_scores(*self.nats(model, samples)), "samples": len(samples)}

    def samples(self, model: nn.Module, examples: Chats, count: int) -> list[dict[str, str]]:
        """Held-out conversations, each up to its last reply; the model's reply; the real one."""
        rows = examples.spread(count).tolist()
        return [
            {"prompt": examples.shown(row), "output": output, "reference": examples.reply(row)}
            for row, output in zip(rows, replies(model, examples, rows))
        ]
