"""Conversations made of real questions, and small tasks over them, for tests of models that answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import headway as hw
from headway.config import override
from headway.data import SplitConfig
from headway.domains.text.recipes import modern_decoder
from headway.learn import Recipe

SYSTEM = {"role": "system", "content": "Say what the customer wants."}


def questions(data_dir: Path, count: int) -> list[tuple[str, str]]:
    """Short questions to a bank and what they are about, in words: of four intents in turn."""
    with (data_dir / "textcls/banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if len(row["text"]) < 80]
    names = sorted({row["category"] for row in rows})[:4]
    kinds = [[row["text"].strip() for row in rows if row["category"] == name] for name in names]
    return [(kinds[i % 4][i // 4], names[i % 4].replace("_", " ")) for i in range(count)]


def say(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chats(data_dir: Path, count: int = 80) -> list[dict[str, Any]]:
    """Every third has a system's message, every fourth a second question."""
    asked = questions(data_dir, count + 1)
    found = []
    for i in range(count):
        messages = [*([SYSTEM] if i % 3 == 0 else []), *say(*asked[i])]
        found.append({"messages": messages + (say(*asked[i + 1]) if i % 4 == 0 else [])})
    return found


def choices(data_dir: Path, count: int = 80) -> list[dict[str, Any]]:
    """The right intent, and that of the next question."""
    asked = questions(data_dir, count + 1)
    return [
        {"prompt": asked[i][0], "chosen": asked[i][1], "rejected": asked[i + 1][1] + " or something else"}
        for i in range(count)
    ]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


SIZES = {"task.size": 300, "task.context": 160, "train.batch_tokens": 640, "train.precision": "fp32"}


def small(recipe: Recipe, **settings: Any) -> Recipe:
    model = modern_decoder(width=32, depth=2, heads=2, window=160, vocab_size=1)
    task = replace(recipe.task, split=SplitConfig(validation=0.2, test=0.2))
    return override(replace(recipe, model=model, task=task), {**SIZES, **settings})


def opened(recipe: Recipe, path: Path, workspace: Path | None = None) -> Any:
    """The task of a recipe, and a new codec where no workspace holds one."""
    return recipe.task.open(recipe, [path], workspace or path.parent / "none")


def train(run: Path, data: Path, recipe: Recipe, samples: int = 0, **given: Any) -> hw.Run:
    """Samples take longer than these few steps."""
    settings = {"train.steps": 6, "train.keep_checkpoints": 9, "optim.lr": 0.001, **given.pop("set", {})}
    return hw.train(recipe, data=data, set=settings, run=run, progress=False, samples=samples, **given)
