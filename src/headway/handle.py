"""A loaded model: its directory, recipe, codec and generation backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from headway import given
from headway.codecs import Codec
from headway.errors import UserError, logger
from headway.formats.familiar import Familiar, read_familiar
from headway.formats.open import Opened
from headway.formats.usage import Usage
from headway.generate import Session, check_draft
from headway.learn import Recipe
from headway.nn.models import Cache, Generative, kinds

_LOG = logger(__name__)

Backend = Literal["auto", "torch", "cpu"]


class Handle:
    """The model that every predictor receives; `headway.app.model.Model` documents its attributes."""

    def __init__(
        self,
        opened: Opened,
        directory: Path,
        recipe: Recipe | None = None,
        backend: Backend = "auto",
        cache: Cache | None = None,
        draft: Handle | None = None,
    ) -> None:
        """UserError for a draft model with another vocabulary."""
        self.directory = directory
        self.module: Any = opened.model
        self.usage: Usage = opened.usage
        self.recipe = recipe
        self.backend = backend
        self.cache: Cache | None = cache
        self._codec = opened.codec
        self.beyond: list[str] = []
        self.draft = draft
        self._generator = _Generator(self.module, backend, cache)
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
        """The kinds of inputs; empty for a model of states, for example."""
        return kinds.reads(self.module)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    @property
    def generator(self) -> Generative:
        """The generation backend: the compiled engine or the torch module. Raises UserError if `backend` or `cache`
        requires the engine and the engine cannot run the model.
        """
        return self._generator.now()

    def open_session(self) -> Session:
        """A session that generates many sequences at once with the backend and the draft model."""
        return Session(self.generator, self._codec, draft=None if self.draft is None else self.draft.generator)

    def meet(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        """Warn once, in the log and in `unexpected`, about texts that are out of the training distribution."""
        if not self.beyond:
            self._warn(self._familiar.beyond(texts, rows))

    @property
    def watches(self) -> bool:
        """Whether statistics of the training images or sounds are known and no warning was given yet."""
        return self._familiar.alike is not None and not self.beyond

    def see(self, names: Sequence[str], looks: np.ndarray, kind: str = "image") -> None:
        """`check_texts` for images or sounds, by their statistics (`headway.formats.familiar`), [N, F]."""
        if not self.beyond:
            self._warn(self._familiar.strange(names, looks, kind))

    def see_some(self, items: Sequence[Any], looks: Mapping[int, np.ndarray], kind: str) -> None:
        """`check_statistics` for some of the items, by their indices."""
        if looks:
            names = [given.named(items[place], place, kind) for place in looks]
            self.see(names, np.stack(list(looks.values())), kind)

    def _warn(self, beyond: list[str]) -> None:
        self.beyond = beyond
        for line in beyond:
            _LOG.warning(line)

    @cached_property
    def _familiar(self) -> Familiar:
        return read_familiar(self.directory)


class _Generator:
    """The generation backend, chosen when a model is loaded: the engine if `backend` and `cache` allow it. The engine
    is compiled at its first use, because importing its compiler takes longer than loading a small model.
    """

    def __init__(self, module: Any, backend: Backend, cache: Cache | None) -> None:
        self.module, self.backend = module, backend
        self.cache: Cache | None = cache

    def now(self) -> Generative:
        """The chosen backend. Raises as `ModelHandle.generator` does."""
        return self.module if self.backend == "torch" else self._compiled

    @cached_property
    def _compiled(self) -> Generative:
        from headway.engine import CannotLowerError, Engine

        try:
            return Engine(self.module, cache=self.cache)
        except CannotLowerError as error:
            plain = self.cache in (None, "fp32")
            if self.backend == "cpu" or not plain:
                remedy = "use --backend torch" if plain else "use --cache fp32 and --backend torch"
                raise UserError(f"the CPU engine has no instruction for {error}; {remedy}") from None
            return self.module
