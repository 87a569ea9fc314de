"""A domain in another package, and the settings of a recipe's task as options of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.app.cli import main as cli
from processes import Program

RECIPES = '''
"""Heights of the tide as text: a toy that stands for a domain in another package."""

from dataclasses import dataclass, replace

from headway.config import override
from headway.config_kinds import register
from headway.domains import recipe
from headway.domains.text.task import LanguageConfig
from headway.learn import TrainConfig


@register("tide")
@dataclass(frozen=True)
class TideConfig(LanguageConfig):
    harbour: str = "Brest"


def tides():
    task = TideConfig(codec="byte", size=None, context=16)
    small = override(recipe("text"), {"model.width": 16, "model.depth": 1, "model.heads": 2})
    return replace(small, name="tides", domain="headway_tides", task=task, train=TrainConfig(steps=2, batch_tokens=64))


RECIPES = (tides,)
'''
PREDICTORS = """
def generate(model, prompt, **options):
    return f"high water at {model.recipe.task.harbour} after {prompt}"
"""
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[4])
import headway as hw
from headway import domains

assert hw.recipes and "headway_tides" not in sys.modules
assert domains.recipe("text").name == "text" and "headway_tides" not in sys.modules
if sys.argv[1] == "train":
    run = hw.train("tides", data=sys.argv[2], set={"task.harbour": "Leith"}, run=sys.argv[3])
    assert run.summary["steps"] == 2, run.summary
else:
    model = hw.load(sys.argv[3])
    listed = [row["name"] for row in hw.recipes()]
    print(json.dumps([model.recipe.task.kind, model.recipe.task.harbour, len(domains.verbs()["generate"]), *listed]))
assert "headway_tides" in sys.modules
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of packages with headway-tides."""
    site = tmp_path / "site"
    package, metadata = site / "headway_tides", site / "headway_tides-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    names = 'RECIPES = ("tides",)\nTASKS = {"tide": "recipes"}\nVERBS = {"generate": "is_causal"}\n'
    (package / "__init__.py").write_text(names)
    (package / "recipes.py").write_text(RECIPES)
    (package / "predictors.py").write_text(PREDICTORS)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: headway-tides\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[headway.domains]\ntides = headway_tides\ntide = headway_tides\n")
    return site


def test_a_domain_in_another_package_is_imported_when_it_is_named(tmp_path: Path, elsewhere: Path) -> None:
    text, folder = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("the tide comes in and the tide goes out\n" * 40)

    def run(what: str) -> str:
        program = Program(tmp_path, PROGRAM, what, str(text), str(folder), str(elsewhere))
        out, err = program.wait()
        assert program.returncode == 0, err
        return out

    run("train")
    assert json.loads((folder / "recipe.json").read_text())["task"]["kind"] == "tide"
    kind, harbour, providers, *listed = json.loads(run("load"))
    assert (kind, harbour, providers) == ("tide", "Leith", 2)
    assert {"tides", "text"} <= set(listed)


def test_settings_of_the_task_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"2024-01-{day:02},{day % 7}\n" for day in range(1, 31))
    (tmp_path / "a.csv").write_text(f"when,price,x\n{rows.replace(chr(10), ',1' + chr(10))}")
    arguments = ["plan", "forecast", "--data", str(tmp_path / "a.csv"), "--value", "price", "--time", "when"]
    tiny = ["--set", "model.width=16", "model.depth=1", "model.heads=2"]  # one size to time instead of a choice
    assert (
        cli.main([*arguments, "--season", "7", "--horizon=2", "--context", "6", "--fill", "--json", *tiny]) == cli.DONE
    )
    captured = capsys.readouterr()
    assert "price" not in captured.err, captured
    assert cli.main([*arguments, "--seasn", "7"]) == cli.USER_ERROR
    assert "did you mean '--season'?" in capsys.readouterr().err
    assert cli.main([*arguments, "--horizon", "0"]) == cli.USER_ERROR
    assert "task.horizon is 0" in capsys.readouterr().err
    assert cli.main([*arguments, "--value", "cost"]) == cli.USER_ERROR
    assert "'cost'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "forecast", "--help"])
    assert "--season VALUE" in capsys.readouterr().out
