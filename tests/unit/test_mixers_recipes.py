"""`--set model.mixer=NAME` in the recipes of four domains: two steps of each, and what came of an LSTM's is used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import headway as hw
from headway.config import to_dict
from headway.config_kinds import kinds
from headway.errors import ConfigError
from headway.nn.mixers import Bidirectional, MixerConfig
from headway.nn.mixers.gated import LSTM

WORDS = ("the", "a", "old", "red", "cat", "dog", "bird", "saw", "heard", "then", "house", "tree", "ran", "sang")
TINY = {
    "model.mixer": "lstm",
    "model.width": 32,
    "model.depth": 1,
    "train.steps": 2,
    "train.batch_tokens": 256,
    "train.precision": "fp32",
}


def sentences(count: int, longest: int) -> list[str]:
    chance = random.Random(1)
    return [" ".join(chance.choices(WORDS, k=chance.randint(longest // 2, longest))) for _ in range(count)]


def write(folder: Path, name: str) -> list[Path]:
    """Data that a recipe takes."""
    lines = sentences(120, longest=3 if name == "translation" else 9)  # an untrained model translates to the limit
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


# The LSTM has the test above; these two have their place in an encoder and in a decoder only.
OTHERS = sorted(kinds(MixerConfig).keys() - {"lstm", "bidirectional", "conditional_gru"})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", OTHERS)
def test_every_mixer_trains_in_every_domain(kind: str, name: str, tmp_path: Path) -> None:
    settings = {**TINY, **CASES[name], "model.mixer": kind, "task.split": {"validation": 0.1, "test": 0.0}}
    if name == "translation":
        settings |= {"task.beam": 1, "train.evaluate_limit": 2}
    run = hw.train(name, data=write(tmp_path, name), set=settings, run=tmp_path / "run", progress=False, samples=0)
    assert f'"kind": "{kind}"' in json.dumps(to_dict(run.recipe.model))
    assert run.summary["scores"]


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ({"model.mixer": "lsmt"}, "text", "model.mixer.kind is 'lsmt'; did you mean 'lstm'"),
        ({"model.mixer": "bidirectional"}, "text", "sees later tokens"),
        ({"model.mixer": "conditional_gru"}, "text", "reads the output of an encoder, and this model has no encoder"),
        ({"model.mixer": "conditional_gru"}, "classification", "needs the output of an encoder"),
        ({"model.mixer.forget_gate": False}, "text", "model.mixer can only be set as a whole; write it as JSON"),
    ],
)
def test_a_mixer_that_cannot_be_is_refused(setting: dict[str, Any], name: str, message: str, tmp_path: Path) -> None:
    settings = {**TINY, **CASES[name], **setting, "task.split": {"validation": 0.2, "test": 0.0}}
    if "model.mixer" not in setting:
        del settings["model.mixer"]
    with pytest.raises(ConfigError, match=message):
        hw.train(name, data=write(tmp_path, name), set=settings, run=tmp_path / "run", progress=False)
