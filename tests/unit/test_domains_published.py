"""Pre-training as it was published: a preset's architecture and a published tokenizer, from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import headway as hw
from headway.codecs import load_codec
from headway.errors import UserError
from headway.nn.mixers import AttentionConfig
from headway.nn.models import TransformerConfig
from headway.nn.parts.positions import LearnedConfig


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def play(data_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text()[:20_000])
    return path


SMALL = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 2, "train.batch_tokens": 64}


def test_a_gpt2_from_scratch_with_its_own_tokenizer(play: Path, data_dir: Path, tmp_path: Path) -> None:
    ranks = data_dir / "conformance/r50k_base.tiktoken"
    settings = {"model": "gpt2", **SMALL, "task.tokenizer": str(ranks), "task.context": 32}
    run = hw.train("text", play, settings, run=tmp_path / "run", samples=0, progress=False)
    config = run.recipe.model
    assert isinstance(config, TransformerConfig)
    assert (config.width, config.context, config.vocab_size) == (16, 1024, 50257)
    assert config.embed.positions == LearnedConfig()  # type: ignore[attr-defined]
    assert config.stack.blocks[0].mixer == AttentionConfig(2)
    assert load_codec(run.directory).encode("First Citizen") == load_codec(ranks).encode("First Citizen")
    again = hw.train("text", play, settings, run=tmp_path / "run", resume=True, progress=False)  # says the same
    assert again.summary["steps"] == 2
    model = hw.load(run.directory)
    assert isinstance(model.generate("First Citizen", max_new_tokens=3), str)


def test_a_model_by_a_recipe_file(play: Path, tmp_path: Path) -> None:
    sizes = {"model": "gpt2", **SMALL, "task.size": 300, "task.context": 32}
    first = hw.train("text", play, sizes, run=tmp_path / "a", samples=0)
    settings = {"model": str(first.directory / "recipe.json"), "task.size": 300, "task.context": 32, "train.steps": 1}
    second = hw.train(
        "text", play, {**settings, "train.batch_tokens": 64}, run=tmp_path / "b", samples=0, progress=False
    )
    assert second.recipe.model == first.recipe.model
    plain = json.loads((first.directory / "recipe.json").read_text())
    plain["train"]["steps"] = 1
    (tmp_path / "own.json").write_text(json.dumps(plain))
    third = hw.train(tmp_path / "own.json", play, run=tmp_path / "c", samples=0, progress=False)
    assert third.recipe.model == first.recipe.model


def test_what_names_no_model_suggests_the_nearest(play: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gpt-2' is not a recipe, preset, run or model; did you mean 'gpt2'"):
        hw.train("text", play, {"model": "gpt-2"}, run=tmp_path / "run")
    with pytest.raises(UserError, match="nowhere"):
        hw.train("text", play, {"task.tokenizer": "nowhere"}, run=tmp_path / "run")


def test_a_bert_from_scratch_with_pairs(play: Path, tmp_path: Path) -> None:
    settings = {"model": "bert-base", **SMALL, "task.size": 300, "task.context": 32, "task.next": True}
    run = hw.train("masked", play, settings, run=tmp_path / "run", progress=False)
    assert isinstance(run.recipe.model, TransformerConfig)
    assert list(run.recipe.model.heads) == ["vocabulary", "next"]
    assert {"loss", "perplexity", "accuracy", "next_loss", "next_accuracy"} <= run.summary["scores"].keys()
    assert set(run.summary["samples"][0]) == {"masked", "filled", "text"}
