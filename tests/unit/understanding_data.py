"""Real texts in small files, and recipes and tasks of fine-tuning over them that take no time."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.config import override
from headway.data import SplitConfig
from headway.domains.understanding.recipes import encoder
from headway.learn import Recipe

SPLIT = SplitConfig(validation=0.2, test=0.2)


def write_questions(data_dir: Path, place: Path, each: int = 30) -> Path:
    """Of six of the intents of banking77, so many questions each."""
    with (data_dir / "textcls/banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["category"] for row in rows})[:6]
    path = place / "questions.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for name in names:
            out.writerows([row["text"], name] for row in [r for r in rows if r["category"] == name][:each])
    return path


def write_sentences(data_dir: Path, place: Path) -> Path:
    """English sentences of Tatoeba and their translations."""
    with zipfile.ZipFile(data_dir / "translation/tatoeba-deu-eng.zip") as archive:
        name = next(name for name in archive.namelist() if "deu" in name)
        lines = archive.read(name).decode().splitlines()[2000:2400]
    path = place / "sentences.tsv"
    path.write_text("text\ttext2\n" + "".join("\t".join(line.split("\t")[:2]) + "\n" for line in lines))
    return path


def small(recipe: Recipe, **settings: Any) -> Recipe:
    model = encoder(width=32, depth=1, heads=2, dropout=0.0)
    sizes = {"train.batch_size": 16} if recipe.name == "embedding" else {"train.batch_tokens": 256}
    return override(replace(recipe, model=model), {"task.size": 400, **sizes, **settings})


def opened(recipe: Recipe, path: Path, workspace: Path | None = None) -> Any:
    task = replace(recipe.task, split=SPLIT)
    return task.open(replace(recipe, task=task), [path], workspace or path.parent / "none")
