"""What tasks over conversations share: symbols, splits, and what is saved and shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from headway.checkpoints.usage import read_usage
from headway.codecs import TokenizerCodec
from headway.codecs.chat import Chat, ChatTemplate, Ends
from headway.config import override
from headway.data.dialogues import Message
from headway.data.files import File
from headway.data.marked import MarkedCache
from headway.domains.chat.config import ChatConfig
from headway.errors import UserError
from headway.generate import Limits, Sampling, Session
from headway.models import ModelConfig, Transformer, VocabularyHead
from headway.train import Recipe, sharding

_LOG = logging.getLogger(__name__)
_EMPTY_LINES = re.compile(r"\n\s*\n")
_REPLY = 200  # tokens of a reply that is shown


class ChatTask:
    """`what` are the samples, in messages."""

    what = "conversations"

    def __init__(
        self,
        config: ChatConfig,
        recipe: Recipe,
        sources: Sequence[File],
        codec: TokenizerCodec,
        template: ChatTemplate,
        cache: MarkedCache,
    ) -> None:
        self.config = config
        self.sources = sources
        self.codec = codec
        self.template = template
        self.cache = cache
        self.seed = recipe.train.seed
        self._splits: dict[str, np.ndarray] = {}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols. Raises UserError where there is nothing to train on or to judge by."""
        for split in dict.fromkeys(("train", "validation", self.final_split)):
            self.split(split)
        return override(model, {"symbols": self.codec.size})

    def split(self, name: str) -> np.ndarray:
        """The samples of a split that fit, int64 [N]; a first token is read and not foretold."""
        if name not in self._splits:
            samples = self.cache.split(name, self.config.split)
            kept, lost = self.cache.fitting(samples, self.config.context + 1, self.config.drop_long, self.what)
            if lost:
                _LOG.warning(f"{name}: {lost:,} of {len(samples):,} {self.what} are too long and left out")
            self._splits[name] = kept
        return self._splits[name]

    @property
    def final_split(self) -> str:
        """The split on which a finished model is judged: test, or validation where there is no test."""
        try:
            self.cache.split("test", self.config.split)
        except UserError:
            return "validation"
        return "test"

    def count(self, split: str) -> int:
        return len(self.split(split))

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

    def replies(self, model: nn.Module, samples: Sequence[int]) -> list[str]:
        """What the model says in place of each conversation's last reply."""
        session = Session(cast(Transformer, model), self.codec)
        limits = Limits(_REPLY, self.ends.texts, self.ends.ids)
        found = session.generate([self.prompt(i) for i in samples], Sampling(temperature=0.0), limits)
        return [completion.text.strip() for completion in found]

    def prompt(self, sample: int) -> list[int]:
        """A conversation's ids up to its last reply."""
        ids, marks = self.cache.part(sample)
        last = int(np.flatnonzero(np.diff(marks, prepend=0) == 1)[-1])
        return ids[:last].tolist()

    def prompt_text(self, sample: int) -> str:
        """`prompt` as people read it: without marks, and without the empty lines between them."""
        return _EMPTY_LINES.sub("\n", self.codec.decode(self.prompt(sample))).strip()

    def text(self, sample: int, part: int = 0) -> str:
        """A conversation's last reply."""
        ids, marks = self.cache.part(sample, part)
        last = int(np.flatnonzero(np.diff(marks, prepend=0) == 1)[-1])
        return self.codec.decode(ids[last:][marks[last:] == 1].tolist()).strip()

    def spread(self, count: int) -> list[int]:
        """Samples of the final split, spread evenly over it."""
        return sharding.spread(self.split(self.final_split), count).tolist()


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


def head_of(model: nn.Module) -> VocabularyHead:
    return cast(VocabularyHead, model.get_submodule("heads.vocabulary"))
