"""`--set model.mixer=lstm` in the recipes of four domains: two steps of each, and what came of them is used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import headway as hw
from headway.mixers import Bidirectional
from headway.mixers.lstm import LSTM

WORDS = ("the", "a", "old", "red", "cat", "dog", "bird", "saw", "heard", "then", "house", "tree", "ran", "sang")
TINY = {
    "model.mixer": "lstm",
    "model.width": 32,
    "model.depth": 1,
    "train.steps": 2,
    "train.batch_tokens": 256,
    "train.precision": "fp32",
}


def sentences(count: int) -> list[str]:
    chance = random.Random(1)
    return [" ".join(chance.choices(WORDS, k=chance.randint(5, 9))) for _ in range(count)]


def write(folder: Path, name: str) -> list[Path]:
    """Data that a recipe takes."""
    lines = sentences(120)
    if name == "translation":
        both = {"en": lines, "de": [line[::-1] for line in lines]}
        for language, texts in both.items():
            (folder / f"pairs.{language}").write_text("\n".join(texts) + "\n")
        return [folder / "pairs.en", folder / "pairs.de"]
    if name == "classification":
        rows = [{"text": line, "label": "cat" if "cat" in line else "none"} for line in lines]
    else:
        rows = [{"text": line} for line in lines]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / "data.jsonl"]


CASES: dict[str, dict[str, Any]] = {
    "text": {"task.codec": "char", "task.size": None, "task.context": 32},
    "translation": {"task.size": 300},
    "masked": {"task.size": 270},
    "classification": {"task.size": 270},
}


@pytest.mark.parametrize("name", CASES)
def test_an_lstm_trains_in_every_domain(name: str, tmp_path: Path) -> None:
    settings = {**TINY, **CASES[name], "task.split": {"validation": 0.2, "test": 0.0}}
    run = hw.train(name, data=write(tmp_path, name), set=settings, run=tmp_path / "run", progress=False, samples=1)
    assert run.summary["scores"]
    model = hw.load(tmp_path / "run")
    kinds = [type(module) for module in model.module.modules()]
    assert kinds.count(LSTM) == {"text": 1, "translation": 3}.get(name, 2)
    assert (Bidirectional in kinds) == (name != "text")
    if name == "text":
        assert model.generate("the", max_new_tokens=40, temperature=0.0)  # beyond the 32 that it is trained on
    if name == "translation":
        assert model.translate(["the cat", "a bird sang"], beam=3)
