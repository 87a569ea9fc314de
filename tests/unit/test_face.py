"""What `import headway` gives: names that are loaded when they are used, and how results show themselves."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import headway as hw
from headway.domains import recipes


def test_every_name_is_there_and_importing_is_light() -> None:
    for name in hw.__all__:
        assert getattr(hw, name) is not None
    code = "import headway, sys; assert 'torch' not in sys.modules; headway.Sampling(0.5, top_k=3)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["compare", "recipes", "train"])
def test_functions_are_not_hidden_by_modules_of_their_names(name: str) -> None:
    module = import_module(f"headway.{name}")
    assert callable(getattr(hw, name))
    assert getattr(hw, name) is not module


def test_recipes_and_presets_are_tables() -> None:
    found = hw.recipes()
    assert [row["name"] for row in found] == list(recipes())
    assert all(row["parameters"] > 0 and row["description"] for row in found)
    assert {"name": "gpt2", "parameters": 124_439_808} in hw.presets()


def test_a_start_has_one_name() -> None:
    with pytest.raises(hw.UserError, match="two names of one thing; leave one out"):
        hw.train("text", "a.txt", start="runs/a", from_="runs/b", progress=False)
    with pytest.raises(hw.UserError, match="nowhere does not exist"):
        hw.train("text", "a.txt", from_="nowhere", progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {"model.mixer": "lstm"}}, "model.mixer is 'lstm'; give a list of the values that are compared"),
        ({"grid": ["lstm"]}, "grid is a list; give a mapping"),
        ({"grid": {"model.depth": [1, 2]}, "seeds": 0}, "seeds is 0; give 1 or more"),
        ({"grid": {"model.depth": [1, 2]}, "resume": True}, "--resume was given without --run"),
        ({"grid": {"model.depth": [1, 2]}, "minutes": "3"}, "minutes is '3'; give a number or None"),
    ],
)
def test_what_cannot_be_compared_is_one_line(given: dict, message: str) -> None:
    with pytest.raises(hw.UserError, match=message):
        hw.compare("text", data="a.txt", **given)
