"""Instruction tuning: what the assistant says, given all that was said before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headway.codecs import TokenizerCodec
from headway.codecs.chat import ChatTemplate
from headway.config import register
from headway.data import IGNORED
from headway.data.dialogues import ASSISTANT, dialogue_sources, read_chats
from headway.data.files import File
from headway.data.marked import Marked, MarkedCache, MarkedSample, WholeRows, open_marked
from headway.domains.chat.task import JUDGED_AT_ONCE, ChatConfig, Conversations, key_of, read, replies
from headway.layout import Layout
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, ByCount, Chance, Selected
from headway.learn.objectives.vocabulary import Likelihood
from headway.metrics import language_scores


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
