"""A loaded model: its directory, recipe, codec and generation backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from headway.codecs import Codec
from headway.errors import UserError, logger
from headway.formats.open import OpenedModel
from headway.formats.out_of_distribution import TrainingStatistics, read_training_statistics
from headway.formats.usage import Usage
from headway.generate import Session, check_draft, with_graphs
from headway.learn import Recipe
from headway.nn.models import CacheDtype, Generative, kinds

_LOG = logger(__name__)

Backend = Literal["auto", "torch", "cpu"]


class ModelHandle:
    """The model that every predictor receives; `headway.app.model.Model` documents its attributes."""

    def __init__(
        self,
        opened: OpenedModel,
        directory: Path,
        recipe: Recipe | None = None,
        backend: Backend = "auto",
        cache: CacheDtype | None = None,
        draft: ModelHandle | None = None,
    ) -> None:
        """UserError for a draft model with a different vocabulary."""
        self.directory = directory
        self.module: Any = opened.model
        self.usage: Usage = opened.usage
        self.recipe = recipe
        self.backend = backend
        self.cache: CacheDtype | None = cache
        self._codec = opened.codec
        self.unexpected: list[str] = []
        self.draft = draft
        self.vector_statistics: Any = None  # of `read_lens`, which computes them once
        self._generator = _LazyGenerator(self.module, backend, cache)
        if draft is not None:
            check_draft(self.directory, self.module, self._codec, draft.directory, draft.module, draft._codec)

    @property
    def codec(self) -> Codec:
        """The tokenizer: text to ids and back. Raises UserError for a model without one, which accepts ids only."""
        if self._codec is None:
            raise UserError(f"{self.directory} has no tokenizer and accepts ids only; add its tokenizer.json")
        return self._codec

    @property
    def context(self) -> int | None:
        """The maximum number of tokens of an input; None if there is no limit."""
        return self.module.config.context

    @property
    def reads(self) -> list[Literal["texts", "images", "sounds"]]:
        """The kinds of input; empty for a model that takes states, for example."""
        return kinds.input_kinds(self.module)

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.module.parameters()).device

    @property
    def generator(self) -> Generative:
        """The generation backend: the compiled engine or the torch module. Raises UserError if `backend` or `cache`
        requires the engine and the engine cannot run the model.
        """
        return self._generator.get()

    def open_session(self) -> Session:
        """A session that generates many sequences at once with the backend and the draft model."""
        return Session(self.generator, self._codec, draft=None if self.draft is None else self.draft.generator)

    def check_texts(self, strings: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        """Warn once, in the log and in `unexpected`, about texts outside the training distribution."""
        if not self.unexpected:
            self._warn(self.input_statistics.unexpected_texts(strings, rows))

    @property
    def has_input_statistics(self) -> bool:
        """Whether statistics of the training images or audio are known and no warning was given yet."""
        return self.input_statistics.alike is not None and not self.unexpected

    def check_item_statistics(self, items: Sequence[Any], statistics: Mapping[int, np.ndarray], kind: str) -> None:
        """`check_texts` for images or audio, by the statistics of some items (`headway.formats.out_of_distribution`),
        [F] each, by their indices.
        """
        if statistics and not self.unexpected:
            indexed = [(index, items[index]) for index in statistics]
            names = [str(item) if isinstance(item, (str, Path)) else f"{kind} {n + 1}" for n, item in indexed]
            self._warn(self.input_statistics.unexpected_samples(names, np.stack(list(statistics.values())), kind))

    def _warn(self, warnings: list[str]) -> None:
        self.unexpected = warnings
        for line in warnings:
            _LOG.warning(line)

    @cached_property
    def input_statistics(self) -> TrainingStatistics:
        """Statistics of the training inputs, by which unexpected ones are noticed."""
        return read_training_statistics(self.directory)


class _LazyGenerator:
    """The generation backend, chosen when a model is loaded: the engine if `backend` and `cache` allow it. The engine
    is compiled at its first use, because importing its compiler takes longer than loading a small model.
    """

    def __init__(self, module: Any, backend: Backend, cache: CacheDtype | None) -> None:
        self.module, self.backend = module, backend
        self.cache: CacheDtype | None = cache

    def get(self) -> Generative:
        """The chosen backend. Raises as `ModelHandle.generator` does."""
        return self._on_torch if self.backend == "torch" else self._compiled

    @cached_property
    def _on_torch(self) -> Generative:
        return with_graphs(self.module)

    @cached_property
    def _compiled(self) -> Generative:
        from headway.engine import CannotLowerError, Engine

        try:
            return Engine(self.module, cache=self.cache)
        except CannotLowerError as error:
            fp32_cache = self.cache in (None, "fp32")
            if self.backend == "cpu" or not fp32_cache:
                remedy = "use --backend torch" if fp32_cache else "use --cache fp32 and --backend torch"
                raise UserError(f"the CPU engine has no instruction for {error}; {remedy}") from None
            return self._on_torch
