"""Instruction tuning: what the assistant says, given all that was said before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from headway.codecs import TokenizerCodec
from headway.codecs.chat import ChatTemplate
from headway.data.dialogues import ASSISTANT, Messages, read_chats
from headway.data.files import File
from headway.data.marked import Marked, Sample, WholeRows, open_marked
from headway.domains.chat.batches import ChatBatch, ChatRows
from headway.domains.chat.config import InstructConfig
from headway.domains.chat.task import ChatTask, head_of, read
from headway.metrics import language_scores
from headway.models import Loss
from headway.train import Recipe, Shard
from headway.train.task import WHOLE

_EVALUATED_AT_ONCE = 8192  # tokens


class Instruct(ChatTask):
    """The task over conversations; `rows` is the number of rows in a training batch."""

    goal: str = "loss"
    goal_better: Literal["min", "max"] = "min"

    def __init__(
        self,
        config: InstructConfig,
        recipe: Recipe,
        sources: Sequence[File],
        codec: TokenizerCodec,
        template: ChatTemplate,
        rows: int,
    ) -> None:
        def samples(file: File) -> Iterator[Sample]:
            for line, chat in read_chats(file):
                yield Sample(_key(chat), line, [Marked(*read(template, codec, chat, f"{file}, line {line}"))])

        cache = open_marked(sources, 1, codec, samples, template.text)
        super().__init__(config, recipe, sources, codec, template, cache)
        self.rows = rows

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[ChatBatch]:
        if split == "train":
            return self._training_rows.endless(self.rows, self.seed, shard, start)
        return self._whole(split).once(max(1, _EVALUATED_AT_ONCE // self.config.context), shard)

    @cached_property
    def _training_rows(self) -> ChatRows:
        return self._whole("train")

    def _whole(self, split: str, limit: int | None = None) -> ChatRows:
        return ChatRows(WholeRows(self.cache, self.split(split)[:limit], self.config.context))

    def loss(self, model: nn.Module, batch: ChatBatch) -> dict[str, Loss]:
        encoded = model(batch.inputs, batch.layout)
        loss = head_of(model).loss(encoded.x, batch.labels)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss (nats) and perplexity of what the assistant says in a split, or in the first `limit` chats of it."""
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for batch in self._whole(split, limit).once(max(1, _EVALUATED_AT_ONCE // self.config.context), WHOLE):
            loss = self.loss(model, batch.to(device))["loss"]
            nats, count = nats + float(loss.total), count + loss.count
        return {**language_scores(nats, count), "samples": len(self.split(split)[:limit])}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Conversations that were held out, each up to its last reply; the model's reply (greedy); the real one."""
        chosen = self.spread(count)
        outputs = self.replies(model, chosen)
        return [
            {"prompt": self.prompt_text(i), "output": output, "reference": self.text(i)}
            for i, output in zip(chosen, outputs)
        ]


def _key(chat: Messages) -> str:
    """What decides a conversation's split: all that comes before the assistant first speaks."""
    first = next(i for i, message in enumerate(chat) if message["role"] == ASSISTANT)
    return "\n".join(f"{message['role']}: {message['content']}" for message in chat[:first])
