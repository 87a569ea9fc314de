"""The models of 2014 in the recipes of the transformer: two steps of each, then they translate and report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import headway as hw
from headway.app.cli.main import main

LETTERS = "abcdeorst"
SIZES = {
    "seq2seq-lstm-2014": ["model.width=16", "model.depth=2", "optim=sgd", "schedule=halving", "train.clip=5"],
    "seq2seq-gru-2014": ["model.width=8", "model.cells=16"],
    "seq2seq-gru-2014-full": ["model.cells=16"],
    "seq2seq-gru-rnnenc": ["model.width=8", "model.cells=16"],
    "seq2seq-gru-rnnsearch": ["model.width=8", "model.cells=16"],
}
BRIEF = [
    "train.steps=2",
    "train.batch_tokens=128",
    "train.evaluate_every=2",
    "train.precision=fp32",
    "task.beam=2",
    "train.evaluate_limit=2",
]


def dictionary(folder: Path) -> list[Path]:
    """Words whose phonemes are their letters, as a pronouncing dictionary."""
    chance = random.Random(1)
    words = {"".join(chance.choices(LETTERS, k=chance.randint(2, 6))) for _ in range(40)}
    (folder / "some.dict").write_text("".join(f"{word} {' '.join(word.upper())}\n" for word in sorted(words)))
    return [folder / "some.dict"]


def sentences(folder: Path) -> list[Path]:
    chance = random.Random(1)
    lines = [" ".join(chance.choices(("red", "cats", "sat", "there"), k=3)) for _ in range(60)]
    for language, texts in {"en": lines, "de": [line[::-1] for line in lines]}.items():
        (folder / f"pairs.{language}").write_text("\n".join(texts) + "\n")
    return [folder / "pairs.en", folder / "pairs.de"]


@pytest.mark.parametrize("recipe", ["pronounce", "multi30k-en-de"])
@pytest.mark.parametrize("name", SIZES)
def test_presets_of_2014_train_translate_and_report_by_the_transformers_command(
    name: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    data = dictionary(tmp_path) if recipe == "pronounce" else sentences(tmp_path)
    task = ["task.reverse_source=true", 'task.split={"validation": 0.1, "test": 0.1}']
    task += ["task.size=280"] if recipe == "multi30k-en-de" else []
    run = str(tmp_path / "run")
    settings = [f"model={name}", *SIZES[name], *BRIEF, *task]
    assert main(["train", recipe, "--data", *map(str, data), "--set", *settings, "--run", run, "--device", "cpu"]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert ("Alignment" in page) == (name == "seq2seq-gru-rnnsearch")
    status = json.loads((tmp_path / "run/run.json").read_text())
    assert status["samples"]
    assert status["scores"]["split"] == "test"
    model = hw.load(run, device="cpu")
    assert len(model.translate(["cats", ""], beam=2)) == 2
    found = model.attention("cats", target="C")
    assert any(tuple(part.shape[1:]) == (len(found.symbols), len(found.source)) for part in found.maps.values()) == (
        name == "seq2seq-gru-rnnsearch"
    )
