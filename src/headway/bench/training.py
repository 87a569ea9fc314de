"""A step of training as the trainer does it, over tokens that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

from headway.bench.run import Job
from headway.codecs import Codec, train_codec
from headway.data import SplitConfig, TokenCache
from headway.domains.text.task import Documents, LanguageConfig, NextToken
from headway.formats.open import open_config, open_model
from headway.learn import AdamWConfig, Recipe, TrainConfig
from headway.learn.distributed import Processes
from headway.learn.learner import Learner
from headway.learn.task import Task

_TOKENS = 1 << 18


def training_step(job: Job) -> Callable[[], object]:
    """The next step of a language model on windows of drawn tokens: a batch, forward, backward, clipping, AdamW."""
    context = job.context or 0
    recipe = training_recipe(job.model, job.rows, context)
    config = cast(LanguageConfig, recipe.task)
    task = Task(Documents(config, _drawn(job), _no_codec(), context, job.rows, job.seed), NextToken())
    learner = Learner(open_model(job.model).model, recipe, task, Processes(torch.device("cpu")), job.form)
    stream, number = task.batches("train"), iter(range(recipe.train.steps))
    return lambda: learner.update(next(number), [next(stream)])


def training_recipe(model: Path, rows: int, context: int) -> Recipe:
    config = open_config(model)
    task = LanguageConfig(context=context, packing="windows", split=SplitConfig(validation=0.1, test=0.0))
    train = TrainConfig(steps=1_000_000, batch_size=rows)
    return Recipe("bench", "text", "drawn tokens", (), config, task, AdamWConfig(lr=1e-3), train=train)


def _drawn(job: Job) -> TokenCache:
    """One document of drawn tokens."""
    ids = np.random.default_rng(job.seed).integers(0, job.symbols, _TOKENS).astype(np.uint32)
    offsets, keys = np.array([0, _TOKENS], np.int64), np.array([0], np.uint64)
    return TokenCache(Path(job.folder), ids, offsets, keys, np.zeros(1, np.uint8), (0, 0), _TOKENS)


def _no_codec() -> Codec:
    """Any codec: neither batches nor losses ask for text."""
    return train_codec("char", ["ab"], None)
