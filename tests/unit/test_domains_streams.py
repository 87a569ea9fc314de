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
from headway.domains.text.recipes import text
from headway.domains.text.task import CarriedNextToken, StreamedDocuments, StreamedRows
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.learn import Recipe, Shard
from headway.learn.learner import Learner
from headway.learn.parallel.carried_states import CarriedStates
from headway.learn.parallel.processes import Processes
from headway.learn.task import Task
from headway.nn.models import ModelConfig, build
from headway.nn.models.presets import preset

CARRIED = {"model.mixer": "lstm", "task.carry_state": True}


@pytest.fixture
def speeches(data_dir: Path, tmp_path: Path) -> Path:
    """Documents of all lengths, some longer than a row."""
    found = (data_dir / "lm/tinyshakespeare.txt").read_text()[:1200].split("\n\n")
    path = tmp_path / "speeches.jsonl"
    path.write_text("".join(json.dumps({"text": speech}) + "\n" for speech in found))
    return path


def small(**settings: Any) -> Recipe:
    given = {
        "task.codec": "char",
        "task.context": 7,
        "train.batch_size": 3,
        "train.batch_tokens": None,
        "task.split": {"validation": 0.4, "test": 0.0},
    }
    recipe = override(replace(text(), model=tiny_runs.small().model), {**given, **CARRIED, "task.size": None})
    return override(recipe, settings)


def open_task(recipe: Recipe, path: Path) -> tuple[Task, StreamedDocuments, CarriedNextToken]:
    task = recipe.task.open(recipe, [path], path.parent / "run")
    assert isinstance(task, Task)
    assert isinstance(task.examples, StreamedDocuments)
    assert isinstance(task.objective, CarriedNextToken)
    return task, task.examples, task.objective


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
    with pytest.raises(UserError, match="55 predictions are too few for 56 streams"):
        Streams(ids, spans, 5, 56)


def test_batches_are_a_pure_function_of_their_number(speeches: Path) -> None:
    task, texts, _ = open_task(small(**{"train.accumulate": 2}), speeches)
    first = [(b.inputs[0].tolist(), b.starts_epoch) for b in islice(task.batches("train"), 400)]
    epoch = 2 * len(texts.streams.source)
    assert [k for k, (_, begins) in enumerate(first) if begins] == [k for k in range(400) if k % epoch < 2]
    assert [b.inputs[0].tolist() for b in islice(task.batches("train", start=260), 140)] == [i for i, _ in first[260:]]
    sharded = zip(*(islice(task.batches("train", Shard(rank, 2)), 200) for rank in range(2)))
    assert [b.inputs[0].tolist() for two in sharded for b in two] == [i for i, _ in first]


@pytest.mark.parametrize("mixer", ["elman", "lstm", "gru", "linear_attention", "delta", "gated_delta", "mlstm"])
def test_losses_without_learning_are_those_of_whole_streams(speeches: Path, mixer: str) -> None:
    """Steps of two micro-batches at a rate of nothing, into a second epoch, against one pass over whole streams."""
    recipe = small(**{"model.mixer": mixer, "train.accumulate": 2, "optim": {"kind": "sgd", "lr": 1e-30}})
    task, texts, objective = open_task(recipe, speeches)
    model = shaken(task.adapt(recipe.model))
    learner = Learner(model, recipe, task, Processes(torch.device("cpu")))
    source = texts.streams.source
    whole = Streams(texts.cache.ids, texts.spans("train"), source.targets, 6).windows(slice(0, 6), 0)
    inputs, labels, positions = map(torch.from_numpy, whole)
    with torch.no_grad():
        x = model(inputs, Layout(positions), objective.initial_state(model, 6)).x
        nats = torch.nn.functional.cross_entropy(model.heads["vocabulary"](x).mT, labels, reduction="none")
    stream, start = task.batches("train"), 0
    for step in range(len(source) + 3):
        if step == len(source):
            assert start == labels.shape[1]
            start = 0
        batches = [next(stream), next(stream)]
        length = batches[0].targets.shape[1]
        [(total, count)] = learner.update(step, batches).losses().values()
        assert count == sum(batch.tokens for batch in batches)
        assert total == pytest.approx(float(nats[:, start : start + length].sum()), rel=1e-9)
        start += length


def test_evaluation_reads_streams_too(speeches: Path) -> None:
    recipe = small()
    task, texts, objective = open_task(recipe, speeches)
    model = shaken(task.adapt(recipe.model))
    lanes = StreamedRows(texts, "validation").evaluation_streams
    assert lanes.rows == 3
    assert len(lanes.source) > 8
    whole = Streams(texts.cache.ids, texts.spans("validation"), lanes.source.targets, lanes.rows)
    inputs, labels, positions = map(torch.from_numpy, whole.windows(slice(0, lanes.rows), 0))
    with torch.no_grad():
        x = model(inputs, Layout(positions), objective.initial_state(model, lanes.rows)).x
        nats = torch.nn.functional.cross_entropy(model.heads["vocabulary"](x).mT, labels)
    assert task.evaluate(model)["loss"] == pytest.approx(float(nats), rel=1e-9)
    some = StreamedRows(texts, "validation", 4)
    assert sum(some.take(numbers).tokens for numbers in some.evaluation_order().single_pass()) == 28


@pytest.mark.parametrize("carried", [True, False])
def test_what_spans_rows_is_learned_only_with_the_state(tmp_path: Path, carried: bool) -> None:
    """Whether b or c follows an a is said two symbols before, and rows have three that begin anywhere."""
    path = tmp_path / "period.txt"
    path.write_text("abac" * 500)
    recipe = small(**{"task.context": 3, "train.batch_size": 8, "task.carry_state": carried, "model.depth": 1})
    recipe = override(recipe, {"model.width": 16, "optim": {"kind": "adamw", "lr": 0.01}, "train.steps": 120})
    task = recipe.task.open(recipe, [path], tmp_path / "run")
    learner = Learner(build(task.adapt(recipe.model)), recipe, task, Processes(torch.device("cpu")))
    stream = task.batches("train")
    for step in range(120):
        learner.update(step, [next(stream)])
    with learner.evaluating() as model:
        loss = task.evaluate(model)["loss"]
    unknown = math.log(2) / 2 / 3  # of every second row's first symbol
    assert loss < 0.5 * unknown if carried else loss > unknown


RUN = {
    **CARRIED,
    "model.mixer": {"kind": "lstm", "learned_start": True},
    "train.accumulate": 2,
    "train.checkpoint_every": 2,
    "train.evaluate_every": 6,
}


def test_resuming_goes_on_from_the_states_bit_for_bit(data_dir: Path, tmp_path: Path) -> None:
    play = tiny_runs.play_file(data_dir, tmp_path)
    whole = tiny_runs.train(tmp_path / "whole", play, set=RUN)
    stopped = tiny_runs.cut_back(tmp_path / "whole", tmp_path / "stopped", 2)
    tiny_runs.train(stopped, play, set=RUN, resume=True)
    files = [str(path.relative_to(stopped)) for path in stopped.glob("**/*.safetensors")]
    assert len(files) == 2 * 3 + 1
    assert all((stopped / name).read_bytes() == (whole.directory / name).read_bytes() for name in files)
    saved = load_file(stopped / "checkpoints/step-00000002/optimizer.safetensors")
    carried = {name: tensor for name, tensor in saved.items() if name.startswith("carried.")}
    assert len(carried) == 2 * 2 * 4  # micro-batches, blocks, and h and c with what they start from
    assert all(tensor.shape == (8, 32) for tensor in carried.values())
    assert carried["carried.1.0"].any()


def test_each_process_has_its_own_states(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two has the micro-batches 1 and 3, and sends them to the first one, which saves all."""
    recipe = small(**{"train.accumulate": 4})
    task, _, objective = open_task(recipe, tiny_runs.play_file(data_dir, tmp_path))
    model = build(task.adapt(recipe.model))
    processes = Processes(torch.device("cpu"))
    processes.rank, processes.world = 1, 2
    carried = CarriedStates(objective, processes, 4)
    saved = {f"carried.{lane}.{n}": torch.full((3, 32), float(lane)) for lane in range(4) for n in range(8)}
    carried.load_state_dict(model, saved)
    assert [state[0].now[0][0, 0].item() for state in carried.states] == [1, 3]
    monkeypatch.setattr(processes, "broadcast", lambda tensor, source: None)  # as if the other had nothing
    carried.gather()
    told = carried.state_dict()
    assert told.keys() == saved.keys()
    assert all((tensor == int(name[8]) * (int(name[8]) % 2)).all() for name, tensor in told.items())
    del saved["carried.3.7"]
    with pytest.raises(UserError, match=r"the checkpoint has no recurrent state carried\.3\.7"):
        carried.load_state_dict(model, saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.mixer": "attention"},
            r"this model's state grows by \d+ bytes per token, because attention \(even with a window\)",
        ),
        ({"model.context": 32}, "documents exceed model.context 32; set model.context to none"),
        ({"model": preset("bert-base")}, "needs a causal model"),
    ],
)
def test_models_whose_state_cannot_go_on_are_refused(speeches: Path, settings: dict, message: str) -> None:
    recipe = replace(small(), model=settings["model"]) if "model" in settings else small(**settings)
    with pytest.raises(ConfigError, match=message):
        open_task(recipe, speeches)


def test_too_little_text_is_told_before_any_work(speeches: Path) -> None:
    recipe = small(**{"train.batch_size": 10_000})
    with pytest.raises(UserError, match="predictions are too few for 10,000 streams; add more text"):
        open_task(recipe, speeches)[0].adapt(recipe.model)
