"""A run that someone else made: what its recipe names is not fetched unless the user asks for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import cut_back, play_file, train

import headway as hw
from headway.app.cli.main import USER_ERROR, main
from headway.config import override
from headway.errors import ConfigError, UserError
from headway.nn.models import outline
from headway.nn.models.presets import preset

NAME = "hf:someone/texts"


class AskedError(Exception):
    """The hub was asked."""


@pytest.fixture(scope="module")
def received(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after two steps, whose recipe says that its data come from the hub."""
    folder = tmp_path_factory.mktemp("received")
    train(folder / "run", play_file(data_dir, folder), set={"train.evaluate_every": 2})
    run = cut_back(folder / "run", folder / "copy", 2)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "data": [NAME]}))
    return run


@pytest.fixture(autouse=True)
def _hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str, *_: Any) -> None:
        raise AskedError(name)

    hub = SimpleNamespace(load_dataset_builder=ask, exceptions=SimpleNamespace(DatasetsError=OSError))
    monkeypatch.setitem(sys.modules, "datasets", hub)


def test_data_that_a_recipe_names_are_fetched_only_where_the_user_asks(
    received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = rf"names the remote data {NAME}, which is downloaded only if you request it; pass --data {NAME} "
    model = hw.load(received)
    for ask in (
        model.evaluate,
        lambda: hw.train(received / "recipe.json", run=tmp_path / "a"),
        lambda: hw.plan(received / "recipe.json", minutes=1),
    ):
        with pytest.raises(UserError, match=refused):
            ask()
    assert main(["compare", str(received / "recipe.json"), "--set", "model.depth=1,2", "--tokens", "99"]) == USER_ERROR
    assert NAME in capsys.readouterr().err
    assert main(["show", str(received)]) == 0
    assert not (tmp_path / "a").exists()
    for asked in (
        lambda: model.evaluate(NAME),
        lambda: hw.train(received / "recipe.json", data=NAME, run=tmp_path / "a"),
        lambda: hw.train("shakespeare", run=received, resume=True),
    ):
        with pytest.raises(AskedError, match="someone/texts"):
            asked()
    monkeypatch.setenv("HEADWAY_HUB", "1")
    with pytest.raises(AskedError, match="someone/texts"):
        model.evaluate()


def test_a_model_whose_size_no_computer_can_count_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the model's sizes are too large \(.*; correct them"):
        outline(override(preset("llama-135m"), {"symbols": 10**18}))
