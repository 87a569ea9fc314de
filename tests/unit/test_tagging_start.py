"""Tagging that starts from an encoder: the layers that know of words, the linear head, and the plan for the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import headway as hw
from headway.app.recipes import configure_recipe
from headway.domains import scale_of
from headway.domains.understanding import tagging
from headway.formats.native import load_model, save_model
from headway.learn import Trainer
from headway.learn.fine_tuning import open_new_task, open_start
from headway.learn.plan import plans
from headway.learn.plan.budget import Clock, Speed, Throughput
from headway.learn.plan.plans import plan_run

MODEL = {"model.width": 32, "model.depth": 3, "model.heads": 2, "model.dropout": 0.0}
SPLIT = {"task.split": {"validation": 0.3, "test": 0.2}, "task.size": 600}


@pytest.fixture(scope="module")
def nouns(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of which some words are tagged wherever they are."""
    import gzip

    kinds = {
        "man": "B-WHO",
        "woman": "B-WHO",
        "boy": "B-WHO",
        "people": "B-WHO",
        "street": "B-WHERE",
        "water": "B-WHERE",
    }
    with gzip.open(data_dir / "translation/multi30k-val.en.gz", "rt", encoding="utf-8") as file:
        lines = [line.lower().rstrip(".\n").split() for line in file][:400]
    path = tmp_path_factory.mktemp("nouns") / "nouns.conll"
    path.write_text("\n".join("".join(f"{word} {kinds.get(word, 'O')}\n" for word in line) for line in lines))
    return path


@pytest.fixture(scope="module")
def start(nouns: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without a head, whose last layer outputs hardly more than the mean of its input."""
    place = tmp_path_factory.mktemp("start") / "run"
    settings = {**MODEL, **SPLIT, "train.steps": 1, "train.batch_tokens": 64}
    hw.train("tagging", data=nouns, set=settings, run=place, progress=False, samples=0)
    model: Any = load_model(place)
    mixer = model.stack.blocks[-1].mixer
    with torch.no_grad():
        mixer.qkv.weight.zero_()
        mixer.qkv.weight[64:].copy_(torch.eye(32))
        mixer.out.weight.copy_(1e4 * torch.eye(32))
    model.heads = torch.nn.ModuleDict()
    save_model(model, replace(model.config, heads={}), place)
    (place / "digests.json").unlink(missing_ok=True)
    return place


Chosen = Callable[..., Any]


@pytest.fixture
def chosen(nouns: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """The recipe for a minute of tagging from `start` with some settings, at a pace that no machine decides."""
    monkeypatch.setattr(plans, "measure_throughput", lambda *_: Throughput(2000.0, 0.001, 0.8, 100.0))

    def choose(lora: int | None = None, minutes: float = 1.0, **settings: Any) -> Any:
        user = {**SPLIT, **{name.replace("__", "."): value for name, value in settings.items()}}
        recipe = configure_recipe("tagging", nouns, user, None, start, lora)
        scale = scale_of("tagging")
        found = plan_run(recipe, scale, user, minutes, Clock(), torch.device("cpu"), tmp_path / "run")
        found.task.close()
        return recipe, found.recipe

    return choose


def test_layers_that_know_nothing_of_words_are_left_out(chosen: Chosen) -> None:
    before, recipe = chosen()
    assert len(before.model.stack.blocks) == 3
    assert len(recipe.model.stack.blocks) == 2
    assert recipe.reasons[0].startswith("the first 2 of 3 layers")
    assert recipe.train.frozen == ["embed"] or tuple(recipe.train.frozen) == ("embed",)
    assert recipe.optim.lr == 0.5 * before.optim.lr
    assert recipe.train.batch_tokens <= 256  # of at most 16 sentences of some 12 words


def test_what_the_user_sets_and_what_there_is_no_time_for_stays(chosen: Chosen) -> None:
    _, recipe = chosen(model__dropout=0.1, optim__lr=1e-3, train__frozen=[], train__batch_tokens=512)
    assert len(recipe.model.stack.blocks) == 3
    assert (recipe.optim.lr, list(recipe.train.frozen), recipe.train.batch_tokens) == (1e-3, [], 512)
    _, hurried = chosen(minutes=0.05)
    assert len(hurried.model.stack.blocks) == 3
    before, adapter = chosen(lora=4)
    assert (adapter.optim.lr, list(adapter.train.frozen)) == (before.optim.lr, [])
    assert len(adapter.model.stack.blocks) == 3


def test_the_head_starts_as_a_regression_on_the_words_vectors(nouns: Path, start: Path, tmp_path: Path) -> None:
    settings = {**SPLIT, "model.depth": 2, "train.steps": 1, "train.batch_tokens": 64, "optim.lr": 1e-9}
    first = {}
    for limit in (4096, 0):
        run = tmp_path / str(limit)
        own = {**settings, "train.linear_probe": limit}
        hw.train("tagging", data=nouns, set=own, start=start, run=run, progress=False, samples=0)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        first[limit] = next(line for line in lines if line.get("split") == "validation")
    assert (first[4096]["step"], first[0]["step"]) == (0, 1)
    assert first[4096]["f1"] > 0.9
    assert first[0]["f1"] < 0.5
    hw.train(tmp_path / "4096/recipe.json", run=tmp_path / "again", progress=False, samples=0)
    model = "model.safetensors"
    assert (tmp_path / "again" / model).read_bytes() == (tmp_path / "4096" / model).read_bytes()


def test_a_plan_leaves_time_to_fit_the_head(nouns: Path, start: Path, tmp_path: Path) -> None:
    settings = {**SPLIT, "train.linear_probe": 50}
    recipe = configure_recipe("tagging", nouns, settings, None, start)
    task = open_new_task(recipe, tmp_path / "none")
    trainer = Trainer(recipe, task, tmp_path / "run", minutes=1.0, progress=False)
    speed = Speed(step=0.1, evaluation=3.0)
    assert trainer._head_fit_seconds(speed) == 0.0
    trainer.fresh = ("heads.tags.project.weight",)
    held_out = task.count("validation")
    assert held_out > 50
    assert trainer._head_fit_seconds(speed) == pytest.approx(3.0 + 3.0 * 100 / held_out)


def test_layers_are_chosen_by_as_many_words_as_there_is_room_for(
    nouns: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_new_task(configure_recipe("tagging", nouns, SPLIT, None, start), tmp_path)
    model: Any = open_start(str(start)).model
    samples: Any = task.examples.of("train").limited_to(100)
    vectors = tagging._word_vectors(model, samples, range(3))
    assert [layer.shape for layer in vectors.layers] == 3 * [(len(vectors.tags), 32)]
    assert {task.objective.depth(model, task.examples, 100) for _ in range(2)} == {2}
    monkeypatch.setattr(tagging, "_MAX_VALUES", vectors.layers[0].numel())
    few = tagging._word_vectors(model, samples, range(3))
    assert 0.2 < len(few.tags) / len(vectors.tags) < 0.5
