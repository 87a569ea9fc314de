"""The built-in recipes: their names, their numbers, and that each is plain data."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from headway import domains
from headway.config import from_dict, override, to_dict
from headway.config_kinds import kinds
from headway.data import known_set
from headway.domains import recipe, recipe_domains, recipes, tasks
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, TaskConfig
from headway.nn.models import describe
from processes import Program

NAMES = ["shakespeare", "text", "pronounce", "translation", "multi30k-en-de", "tatoeba", "transformer-base-wmt"]


def test_the_promised_recipes_are_there() -> None:
    found = recipes()
    assert set(NAMES) <= found.keys()
    assert all(name == one.name and one.description and one.expected for name, one in found.items())


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_plain_data(name: str) -> None:
    one = recipe(name)
    assert from_dict(Recipe, to_dict(one)) == one
    assert all(known_set(data) for data in one.data)
    heads = {} if name in ("ppo", "emoji-clip", "pronounce-lstm") else {"model.heads": 2}  # no self-attention
    wider = override(one, {"model.width": 96, "model.depth": 1, **heads, "model.dropout": 0.0})
    assert describe(wider.model)["parameters"] > 0


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'shakespeare'"):
        recipe("shakespear")


def test_the_model_for_shakespeare_has_the_size_of_nanogpts() -> None:
    assert describe(recipe("shakespeare").model)["parameters"] == pytest.approx(0.8e6, rel=0.01)


def test_the_numbers_of_2017() -> None:
    one = recipe("transformer-base-wmt")
    assert describe(one.model)["parameters"] == 63_082_496
    assert one.optim.lr * one.schedule.factor(3999, one.train.steps) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert one.optim.lr * one.schedule.factor(99_999, one.train.steps) == pytest.approx(512**-0.5 * 100_000**-0.5)


def test_a_domain_says_what_it_holds_before_it_is_imported() -> None:
    assert recipe_domains() == {one.name: one.domain for one in recipes().values()}
    for kind, module in tasks().items():
        import_module(module)
        assert kinds(TaskConfig)[kind].__module__ == module
    assert {kind for kind, one in kinds(TaskConfig).items() if one.__module__.startswith("headway.")} == set(tasks())


def test_a_recipe_imports_its_own_domain_alone(tmp_path: Path) -> None:
    asked = (
        "import sys; from headway.app.recipes import load_recipe; load_recipe('text'); load_recipe('vision'); "
        "print(*sys.modules)"
    )
    found, err = Program(tmp_path, asked).wait()
    inner = {
        name.split(".")[2] for name in found.split() if name.startswith("headway.domains.") and name.count(".") > 2
    }
    assert inner == {"text", "vision"}, err


def test_a_domain_that_cannot_be_imported_breaks_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "headway.domains.chess.recipes", None)
    domains._makers.cache_clear()
    try:
        assert {"text", "vision"} <= recipes().keys()
        assert "chess" not in recipes()
        with pytest.raises(ImportError):
            recipe("chess")
    finally:
        domains._makers.cache_clear()


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("train.batch_tokens", 1 << 24),
        ("train.batch_size", 1 << 20),
        ("train.accumulate", 10_000),
        ("model.depth", 10_000),
        ("task.beam", 1024),
    ],
)
def test_sizes_that_fill_the_memory_are_refused(name: str, most: int) -> None:
    found = recipe("translation")
    if name != "model.depth":  # which takes a while to build
        override(found, {name: most})
    for value in (most + 1, 10**12, 2**62):
        with pytest.raises(ConfigError, match=f"beam is|{name} is"):
            override(found, {name: value})
