"""Runs that begin from a run or a published model: what they take over, what they draw, what they refuse."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import cut_back, play_file, publish, train, weights

import headway as hw
from headway.codecs import load_codec, train_codec
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.text.recipes import modern_decoder
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.formats.usage import read_usage
from headway.learn import read_recipe
from headway.learn.fine_tuning import copy_matching_weights, match_tensors, open_start
from headway.nn.models import PooledHeadConfig, TransformerConfig, build, outline


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def play(data_dir: Path, tmp_path: Path) -> Path:
    return play_file(data_dir, tmp_path)


@pytest.fixture(scope="module")
def first(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return train(folder / "first", play_file(data_dir, folder)).directory


@pytest.fixture
def published(play: Path, tmp_path: Path) -> Path:
    return publish(play, tmp_path / "published", "gpt2")


def test_a_run_goes_on_from_the_weights_and_the_tokenizer_of_another(first: Path, play: Path, tmp_path: Path) -> None:
    words = tmp_path / "others.txt"
    words.write_text(play.read_text()[3_000:15_000].replace("e", "a"))  # a codec of its own would have other symbols
    run = train(tmp_path / "second", words, start=first, set={"optim": {"kind": "sgd", "lr": 1e-12}})
    assert load_codec(run.directory).fingerprint() == load_codec(first).fingerprint()
    before, after = weights(first), weights(run.directory)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    recipe = read_recipe(run.directory / "recipe.json")
    assert recipe.start == str(first.absolute())
    assert recipe.model == read_recipe(first / "recipe.json").model


def test_the_recipe_repeats_the_run_and_resume_does_not_need_the_start(first: Path, play: Path, tmp_path: Path) -> None:
    first = shutil.copytree(first, tmp_path / "first")
    one = train(tmp_path / "one", play, start=first)
    again = hw.train(one.directory / "recipe.json", run=tmp_path / "again", progress=False, samples=0)
    moved = cut_back(one.directory, tmp_path / "moved", step=3)
    shutil.rmtree(first)
    resumed = train(moved, play, start=first, resume=True)
    for other in (again, resumed):
        assert (other.directory / native.FILE).read_bytes() == (one.directory / native.FILE).read_bytes()
    with pytest.raises(UserError, match=r"another recipe: start is .*, not .*elsewhere"):
        train(moved, play, start="elsewhere", resume=True)


def test_a_published_model_keeps_its_symbols_and_its_usage(published: Path, play: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", play, start=published)
    model = run.recipe.model
    assert isinstance(model, TransformerConfig)
    assert model.vocab_size == load_codec(published).vocab_size + 7
    assert model.context == 64
    assert read_usage(run.directory).family == "gpt2"


def test_settings_apply_to_the_model_of_the_start(first: Path, play: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", play, start=first, set={"model.dropout": 0.1})
    assert run.recipe.model.stack.blocks[0].dropout == 0.1  # type: ignore[attr-defined]
    assert run.recipe.model.width == 32  # type: ignore[attr-defined]


def test_heads_of_the_task_are_drawn_and_the_pooler_is_found(tmp_path: Path) -> None:
    base = modern_decoder(width=32, depth=2, heads=2, window=16, vocab_size=50)
    bert = build(replace(base, heads={**base.heads, "pooled": PooledHeadConfig(dense=True)}))
    heads = {"classes": PooledHeadConfig(outputs=3, dense=True)}
    config = replace(base, heads=heads)
    found = match_tensors(outline(config), bert, "start")
    assert set(found.fresh) == {"heads.classes.project.weight", "heads.classes.project.bias"}
    assert str(found).endswith("newly initialised: heads.classes.project.weight, heads.classes.project.bias")
    model = build(config, 7)
    copy_matching_weights(model, bert)
    own, theirs = model.state_dict(), bert.state_dict()
    assert torch.equal(own["heads.classes.dense.weight"], theirs["heads.pooled.dense.weight"])
    assert torch.equal(own["stack.blocks.1.mixer.qkv.weight"], theirs["stack.blocks.1.mixer.qkv.weight"])
    assert torch.equal(
        own["heads.classes.project.weight"], build(config, 7).state_dict()["heads.classes.project.weight"]
    )


def test_more_layers_are_drawn_afresh(first: Path) -> None:
    start = open_start(str(first))
    found = match_tensors(outline(override(start.model.config, {"depth": 3})), start.model, "start")
    assert found.fresh
    assert all(name.startswith("stack.blocks.2.") for name in found.fresh)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.width": 64}, r"model.width=64 does not fit the weights of .*published, which have 32; remove it"),
        ({"model.context": 128}, r"model.context=128 does not fit the weights of .*published, which have 64"),
        ({"model.heads": 4}, r"heads=4 does not fit .*published, which has 2; remove this setting"),
        ({"model.mixer": {"kind": "attention", "head_size": 8}}, r"mixer.qkv.weight has shape \(48, 32\), but that of"),
    ],
)
def test_settings_that_the_weights_do_not_fit_are_errors(
    published: Path, play: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", play, start=published, set=settings)
    assert not (tmp_path / "run").exists()  # nothing is left that another run could take for its own


def test_starts_that_cannot_be_are_errors(first: Path, published: Path, play: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        train(tmp_path / "run", play, start="nowhere")
    with pytest.raises(ConfigError, match=r"no weight in start \(TransformerConfig\) matches this model"):
        match_tensors(outline(find_recipe("translation").model), open_start(str(first)).model, "start")
    (published / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer next to its weights; add its tokenizer.json"):
        train(tmp_path / "run", play, start=published)
    train_codec("bpe", iter([play.read_text()]), 400).save(published)
    with pytest.raises(UserError, match=r"the tokenizer has 400 tokens, but the model's embedding has only 264"):
        train(tmp_path / "run", play, start=published)
    assert not (tmp_path / "run").exists()
