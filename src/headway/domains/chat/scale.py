"""How a model that answers is fitted to a user's conversations and to the time, where it starts from nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from headway.data.dialogues import dialogue_sources, read_chats
from headway.domains.chat.instruct import Chats
from headway.errors import UserError
from headway.learn import Recipe, Task
from headway.learn.scale import Scale, Settings, Settled, Shapes, below

_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_VOCABULARIES = ((3e5, 512), (1.5e6, 1024), (8e6, 2048), (4e7, 4096), (math.inf, 8192))  # characters, symbols
_CHARACTERS = 2  # that a token has at least, in the mean of a conversation
_MARKS = 8  # tokens around a message
_CONTEXTS = (128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class InstructScale(Scale):
    """Rows that hold the longest conversation, and vocabularies that grow with the text. A target is what the
    assistant says.
    """

    least: int = _CONTEXTS[-1]  # a row is the least of a batch
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        count = size = longest = 0
        for file in dialogue_sources(paths):
            for chat in read_chats(file):
                length = sum(len(message["content"]) for message in chat.messages)
                count, size = count + 1, size + length
                longest = max(longest, length // _CHARACTERS + _MARKS * len(chat.messages))
        symbols = below(_VOCABULARIES, size)
        context = next((number for number in _CONTEXTS if longest <= number), _CONTEXTS[-1])
        reason = f"a vocabulary of {symbols:,} and rows of {context:,} tokens for {count:,} conversations"
        rows = {"task.context": context, "model.context": context}
        return Settled({"task.size": symbols, "model.symbols": symbols, **rows, **self.held_out(count)}, reason)

    def amount(self, task: Task) -> int:
        chats = cast(Chats, cast(Task, task).examples)
        said = np.add.reduceat(chats.cache.marks, chats.cache.offsets[:-1], dtype=np.int64)
        return int(said[chats.numbers("train")].sum())

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": 0.0 if epochs < 4 else 0.1 if epochs < 12 else 0.2 if epochs < 40 else 0.3}


@dataclass(frozen=True)
class PreferenceScale(Scale):
    """Choices say which of two answers is better, not how to answer: none is learnt from them alone."""

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        raise UserError(
            "a model that has learnt nothing has no answers to choose from; begin from one that answers with --from: a "
            "run of the recipe instruct, or a published model"
        )


SCALES = {"instruct": InstructScale(), "preference": PreferenceScale()}
