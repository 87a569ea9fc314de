"""What tasks over conversations share: their settings, how they become symbols, splits, and what is saved and shown;
and instruction tuning: what the assistant says, given all that was said before.
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
_REPLY = 200  # tokens of a reply that is shown


@dataclass(frozen=True)
class ChatConfig(TaskConfig):
    """Tasks over conversations.

    A model that is started from brings its tokenizer and its chat template; without one, `codec` and `size` (the most
    symbols) say how text becomes symbols. No conversation has more than `context` tokens: a longer one is an error or,
    with `drop_long`, left out, and how many is said. `split` says what is held out where no file is named for it.
    """

    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 4096  # most symbols
    context: int = 512  # most tokens of a conversation
    drop_long: bool = False  # leave longer ones out, and count them
    split: SplitConfig = SplitConfig()  # what is held out

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"task.context {self.context} holds no conversation; give 2 or more")

    def check_model(self, model: ModelConfig) -> None:
        """Raises ConfigError for a model that does not write, or that cannot see a conversation whole."""
        if not isinstance(model, TransformerConfig) or not model.stack.causal or "vocabulary" not in model.heads:
            raise ConfigError(
                "conversations need a model that continues text; choose a decoder such as gpt2 or a llama"
            )
        if model.context is not None and self.context > model.context:
            raise ConfigError(
                f"task.context {self.context} exceeds the model's context of {model.context}; lower task.context"
            )

    def codec_and_template(self, chats: Iterable[Messages], workspace: Path) -> tuple[TokenizerCodec, ChatTemplate]:
        """Those in the workspace (the run's, or its start's), or a codec of what is said and the default template."""
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
    """Conversations as ids, and which of these the assistant says. `what` they are, in messages."""

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
        """`model` with the codec's symbols. Raises UserError where there is nothing to train on or to judge by."""
        for split in dict.fromkeys(("train", "validation", self.final_split)):
            self.numbers(split)
        return override(model, {"symbols": self.codec.size})

    def numbers(self, split: str) -> np.ndarray:
        """The samples of a split that fit, int64 [N]; a first token is read and not foretold."""
        if split not in self._fitting:
            samples = self.splits.rows(split)
            kept, lost = self.cache.fitting(samples, self.config.context + 1, self.config.drop_long, self.what)
            if lost:
                _LOG.warning(f"{split}: {lost:,} of {len(samples):,} {self.what} are too long and left out")
            self._fitting[split] = kept
        return self._fitting[split]

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        return rows[:limit]

    def contents(self) -> Contents:
        texts, replies = (column_digest(self.cache.directory, *names) for names in (("ids", "offsets"), ("marks",)))
        return {self.what: ([texts],), "replies": ([replies],)}

    def save(self, directory: Path) -> None:
        """The codec, and with the template what a chat needs to know."""
        self.codec.save(directory)
        usage = read_usage(directory)
        ends = tuple(dict.fromkeys((*usage.ends, *self.ends.ids)))
        replace(usage, template=self.template.text, ends=ends).save(directory)

    @cached_property
    def ends(self) -> Ends:
        """What ends a reply."""
        return self.template.ends(self.codec)

    def prompt(self, row: int) -> list[int]:
        """A conversation's ids up to its last reply."""
        ids, marks = self.cache.part(row)
        return ids[: _last_reply(marks)].tolist()

    def shown(self, row: int) -> str:
        """`prompt` as people read it: without marks, and without the empty lines between them."""
        return _EMPTY_LINES.sub("\n", self.codec.decode(self.prompt(row))).strip()

    def reply(self, row: int, part: int = 0) -> str:
        """A conversation's last reply."""
        ids, marks = self.cache.part(row, part)
        last = _last_reply(marks)
        return self.codec.decode(ids[last:][marks[last:] == 1].tolist()).strip()


def _last_reply(marks: np.ndarray) -> int:
    """Where it begins."""
    return int(np.flatnonzero(np.diff(marks, prepend=0) == 1)[-1])


def replies(model: nn.Module, chats: Conversations, rows: Sequence[int]) -> Iterator[str]:
    """What the model says (greedy) in place of each conversation's last reply."""
    return (completion.text.strip() for completion in completions(model, chats, rows))


def completions(
    model: nn.Module, chats: Conversations, rows: Sequence[int], length: int = _REPLY
) -> Iterable[Completion]:
    """`replies` of at most `length` tokens, with the reason why each ended."""
    session = Session(cast(Transformer, model), chats.codec)
    limits = Limits(min(length, _REPLY), chats.ends.texts, chats.ends.ids)
    return session.generate([chats.prompt(row) for row in rows], Sampling(temperature=0.0), limits)


def read(template: ChatTemplate, codec: TokenizerCodec, messages: Sequence[Message], place: str) -> Chat:
    """A conversation as ids. UserError, with its place, for one that the template refuses or marks nothing of."""
    try:
        found = template.encode(codec, messages)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if not any(stop > 1 for _, stop in found.spans):  # a first token is read and not foretold
        raise UserError(
            f"{place}: {template.source} writes nothing of it that the assistant says; correct the template's "
            "{% generation %} blocks, or the roles of the messages"
        )
    return found


def key_of(messages: Iterable[Message]) -> str:
    """What decides a split: messages as a text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


@register("instruct")
@dataclass(frozen=True)
class InstructConfig(ChatConfig):
    """Predict what the assistant says in conversations, and nothing else of them. Rows hold several, kept apart."""

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
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
    """Conversations, several side by side in a row; `size` rows in a batch of training."""

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
    """Some conversations, whole ones side by side: batches have such rows by number."""

    examples: Chats

    @cached_property
    def packed(self) -> WholeRows:
        return WholeRows(self.examples.cache, self.rows, self.examples.config.context)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and the symbols that follow where the assistant says them, -100
        elsewhere.
        """
        inputs, labels, positions = map(torch.from_numpy, self.packed.windows(numbers))
        return Batch((inputs, Layout(positions)), labels, int((labels != IGNORED).sum()), inputs.numel())

    def training(self) -> ByCount:
        return ByCount(len(self.packed), self.examples.size, self.examples.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self.packed), max(1, JUDGED_AT_ONCE // self.examples.config.context))


class Replies(Likelihood[Chats]):
    """What the assistant says."""

    def judge(self, model: nn.Module, examples: Chats, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats) and perplexity of what the assistant says in a split, or in the first `limit` chats of it."""
        samples = examples.of(split).some(limit)
        return {**language_scores(*self.nats(model, samples)), "samples": len(samples)}

    def samples(self, model: nn.Module, examples: Chats, count: int) -> list[dict[str, str]]:
        """Conversations that were held out, each up to its last reply; the model's reply; the real one."""
        rows = examples.spread(count).tolist()
        return [
            {"prompt": examples.shown(row), "output": output, "reference": examples.reply(row)}
            for row, output in zip(rows, replies(model, examples, rows))
        ]
