"""Training that carries states from batch to batch: contiguous streams, the law, resuming, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from torch import nn

from headway.config import override
from headway.data import Spans, Streams
from headway.domains.text import StreamedLanguage
from headway.domains.text.recipes import shakespeare, text
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.models import ModelConfig, build
from headway.train import Recipe, Shard
from headway.train.carried import Carried
from headway.train.distributed import Processes
from headway.train.learner import Learner

CARRIED = {"model.mixer": "lstm", "task.carry_state": True}


@pytest.fixture
def speeches(data_dir: Path, tmp_path: Path) -> Path:
    """Documents of all lengths, some longer than a row."""
    found = (data_dir / "lm/tinyshakespeare.txt").read_text()[:2500].split("\n\n")
    path = tmp_path / "speeches.jsonl"
    path.write_text("".join(json.dumps({"text": speech}) + "\n" for speech in found))
    return path


def small(**settings: Any) -> Recipe:
    given = {"task.codec": "char", "task.context": 7, "train.batch_size": 3, "train.batch_tokens": None}
    recipe = override(replace(text(), model=tiny_runs.small().model), {**given, **CARRIED, "task.size": None})
    return override(recipe, settings)


def open_task(recipe: Recipe, path: Path) -> StreamedLanguage:
    task = recipe.task.open(recipe, [path], path.parent / "run")
    assert isinstance(task, StreamedLanguage)
    return task


def shaken(config: ModelConfig) -> nn.Module:
    """A model in float64 in which every part matters."""
    model = build(config, seed=None).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def test_streams_hold_each_prediction_once_and_rows_go_on() -> None:
    ids, lengths = np.arange(100, 160), np.array([1, 20, 2, 1, 36])
    spans = Spans(np.cumsum(lengths) - lengths, lengths)
    streams = Streams(ids, spans, context=5, rows=3)
    windows = [streams.windows(slice(0, 3), n) for n in range(len(streams))]
    labels, positions = (np.concatenate([w[i] for w in windows], 1) for i in (1, 2))
    firsts = set((spans.starts + 100).tolist())
    assert labels[labels >= 0].tolist() == [i for i in ids.tolist() if i not in firsts]
    assert all(w.inputs.shape[1] in (4, 5) for w in windows)
    kept = labels >= 0
    inside = (positions[:, 1:] > 0) & kept[:, 1:]
    assert (positions[:, 1:][inside] == positions[:, :-1][inside] + 1).all()
    owners = np.searchsorted(spans.starts, labels[kept] - 100, side="right") - 1
    assert (labels[kept] - 101 - spans.starts[owners] == positions[kept]).all()
    assert Streams(ids, spans, 5, 3, limit=7).targets == 7
    with pytest.raises(UserError, match="55 predictions cannot be cut into 56 streams"):
        Streams(ids, spans, 5, 56)


def test_batches_are_a_pure_function_of_their_number(speeches: Path) -> None:
    task = open_task(small(**{"train.accumulate": 2}), speeches)
    first = [(b.inputs.tolist(), b.begins) for b in islice(task.batches("train"), 400)]
    epoch = 2 * len(task._training_lanes.source)
    assert [k for k, (_, begins) in enumerate(first) if begins] == [k for k in range(400) if k % epoch < 2]
    assert [b.inputs.tolist() for b in islice(task.batches("train", start=260), 140)] == [i for i, _ in first[260:]]
    sharded = zip(*(islice(task.batches("train", Shard(rank, 2)), 200) for rank in range(2)))
    assert [b.inputs.tolist() for two in sharded for b in two] == [i for i, _ in first]


@pytest.mark.parametrize("mixer", ["elman", "lstm", "gru", "linear_attention", "delta", "gated_delta", "mlstm"])
def test_losses_without_learning_are_those_of_whole_streams(speeches: Path, mixer: str) -> None:
    """Two epochs of steps of two micro-batches at a rate of 0, against one pass over each stream in one piece."""
    recipe = small(**{"model.mixer": mixer, "train.accumulate": 2, "optim": {"kind": "sgd", "lr": 1e-30}})
    task = open_task(recipe, speeches)
    model = shaken(task.adapt(recipe.model))
    learner = Learner(model, recipe, task, Processes(torch.device("cpu")))
    source = task._training_lanes.source
    whole = Streams(task.cache.ids, task._spans("train"), source.targets, 6).windows(slice(0, 6), 0)
    inputs, labels, positions = map(torch.from_numpy, whole)
    with torch.no_grad():
        x = model(inputs, Layout(positions), task.begin(model, 6)).x
        nats = torch.nn.functional.cross_entropy(model.heads["vocabulary"](x).mT, labels, reduction="none")
    stream, start = task.batches("train"), 0
    for step in range(2 * len(source)):
        if step == len(source):
            start = 0
        batches = [next(stream), next(stream)]
        length = batches[0].inputs.shape[1]
        [(total, count)] = learner.update(step, batches).losses().values()
        assert count == sum(batch.tokens for batch in batches)
        assert total == pytest.approx(float(nats[:, start : start + length].sum()), rel=1e-9)
        start += length
    assert start == labels.shape[1]


def test_evaluation_reads_streams_too(speeches: Path) -> None:
    recipe = small()
    task = open_task(recipe, speeches)
    model = shaken(task.adapt(recipe.model))
    lanes = task._read_once("validation", None)
    assert (lanes.rows, len(lanes.source)) == (3, 9)
    whole = Streams(task.cache.ids, task._spans("validation"), lanes.source.targets, lanes.rows)
    inputs, labels, positions = map(torch.from_numpy, whole.windows(slice(0, lanes.rows), 0))
    with torch.no_grad():
        x = model(inputs, Layout(positions), task.begin(model, lanes.rows)).x
        nats = torch.nn.functional.cross_entropy(model.heads["vocabulary"](x).mT, labels)
    assert task.evaluate(model)["loss"] == pytest.approx(float(nats), rel=1e-9)
    assert sum(batch.tokens for batch in task._read_once("validation", 4).once()) == 28


@pytest.mark.parametrize("carried", [True, False])
def test_what_spans_rows_is_learned_only_with_the_state(tmp_path: Path, carried: bool) -> None:
    """Eleven a's and a b, in rows of five that begin anywhere: what follows a's alone cannot be known from a row."""
    path = tmp_path / "period.txt"
    path.write_text(("aaaaaaaaaaab" * 506)[:6068])
    recipe = small(**{"task.context": 5, "train.batch_size": 12, "model.depth": 1, "task.carry_state": carried})
    recipe = override(recipe, {"optim": {"kind": "adamw", "lr": 0.005}, "train.steps": 300})
    recipe = override(recipe, {"task.split": {"validation": 0.25, "test": 0.0}})
    task = recipe.task.open(recipe, [path], tmp_path / "run")
    learner = Learner(build(task.adapt(recipe.model)), recipe, task, Processes(torch.device("cpu")))
    stream = task.batches("train")
    for step in range(300):
        learner.update(step, [next(stream)])
    with learner.evaluating() as model:
        loss = task.evaluate(model)["loss"]
    # After i a's the b is one of the 12 - i tokens that may come next, all equally likely.
    unknown = sum((n * math.log(n) - (n - 1) * math.log(n - 1)) / 12 for n in (11, 10, 9, 8, 7)) / 5
    assert loss < 0.3 * unknown if carried else loss > 0.95 * unknown
