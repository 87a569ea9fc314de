"""Settings that no training survives are refused before any work, from the command line and in a recipe.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.app.cli import main as cli
from headway.config import from_dict, to_dict
from headway.domains import recipe as find_recipe
from headway.errors import ConfigError
from headway.learn import Recipe

ABSURD = [
    ("optim.lr", "1e300", "optim.lr is 1e+300; use a number from -1e+30 to 1e+30"),
    ("optim.lr", "1e6", "optim.lr is 1000000.0; use a number above 0, at most 1000"),
    ("optim.lr", "NaN", "optim.lr is nan; use a finite number"),
    ("optim.weight_decay", "1e20", "optim.weight_decay is 1e+20; use a number from 0 to 1000"),
    ("optim.betas", "[0.9, 1.5]", "optim.betas is (0.9, 1.5); use decays from 0 to below 1"),
    ("train.clip", "Infinity", "train.clip is inf; use a finite number"),
    ("train.steps", "1000000000000", "train.steps is 1,000,000,000,000; use 1,000,000,000 or less"),
    ("train.accumulate", "10000000", "train.accumulate is 10,000,000; use 10,000 or less"),
    ("schedule.floor", "1e9", "schedule.floor is 1000000000.0; use a fraction of the peak, from 0 to 1"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.stack.blocks.0.mixer.heads", "0", "heads=0 and kv_heads=None: both must be at least 1"),
        ("model.stack.blocks.0.mixer.kv_heads", "-1", "heads=4 and kv_heads=-1: both must be at least 1"),
        ("model.stack.blocks.0.mixer.rotary.fraction", "100000", "rotary.fraction 100000.0; set a theta above 0"),
        ("model.stack.blocks.0.mixer.rotary.theta", "0", "rotary.theta is 0.0 and rotary.fraction 1.0; set a theta"),
        ("model.stack.blocks.0.feed_forward.ratio", "1e25", "the model's sizes "),
    ],
)
def test_sizes_that_fit_no_model_are_one_line(
    key: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "a.txt"
    data.write_text("the cat sat on the mat\n" * 100)
    given = ["--set", "task.codec=char", "task.size=null", f"{key}={value}"]
    assert cli.main(["train", "text", "--data", str(data), "--run", str(tmp_path / "run"), *given]) == cli.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value", "message"), ABSURD)
def test_a_setting_that_no_training_survives_is_one_line(
    key: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "a.txt"
    data.write_text("the cat sat on the mat\n" * 100)
    given = ["--set", "schedule=cosine", "optim=adamw", f"{key}={value}"]
    assert cli.main(["train", "text", "--data", str(data), "--run", str(tmp_path / "run"), *given]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"headway: {message}\n"
    assert not (tmp_path / "run").exists()
    tree = to_dict(find_recipe("text"))
    tree |= {"schedule": {"kind": "cosine"}, "optim": {"kind": "adamw"}}
    part, name = key.split(".")
    tree[part] = {**tree[part], name: json.loads(value)}
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, tree, "Recipe")
    assert str(caught.value).removeprefix("Recipe.") == message
