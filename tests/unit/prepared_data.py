"""Small texts that tests prepare."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headway.data.prepared import preparation, text_blocks
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.shard_reader import PreparedData, ShardReader
from headway.data.prepared.text_blocks import text_files
from headway.domains.text.text_shards import TextKind
from headway.learn import Recipe, Task
from headway.nn.models import build

WORDS = "the of a storm ship sea sails under white moon and harbour light far away".split()  # noqa: SIM905


PLAIN = PrepareConfig()


def draw(seed: int, words: int) -> str:
    chooser = random.Random(seed)
    return "".join(chooser.choice(WORDS) + chooser.choice([" ", " ", " ", "\n"]) for _ in range(words))


def draw_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 150 documents in lines and five files, in blocks of 4 KB and shards of 2 KB."""
    folder.mkdir()
    rows = [json.dumps({"text": draw(seed, 40)}) for seed in range(150)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    for number in range(5):
        (folder / f"{number}.txt").write_text(draw(1000 + number, 2000 if number == 2 else 200))
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 4096)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 2048)
    return folder


def prepare(folder: Path | str, out: Path | str, config: PrepareConfig = PLAIN, size: int = 300) -> Path:
    Preparation(TextKind(text_files([Path(folder)]), "bpe", size), config, out, lambda _: None).run()
    return Path(out)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, count: int) -> Iterator[None]:
    """Stop the preparation in the context, as Ctrl-C does, when it calls a method after `count` other calls."""
    original, calls = getattr(owner, name), iter(range(count))

    def stop(self: Any, *arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def check_equal(local: Task, prepared: Task, recipe: Recipe) -> None:
    """The same contents, batches and losses."""
    assert local.examples.contents() == prepared.examples.contents()
    check_equal_batches(local, prepared, recipe)


def check_equal_batches(local: Task, prepared: Task, recipe: Recipe) -> None:
    """The same batches and losses."""
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(4)):
            assert torch.equal(expected.inputs[0], batch.inputs[0])
            assert torch.equal(expected.targets, batch.targets)
    model = build(local.adapt(recipe.model), 0)
    assert local.evaluate(model) == prepared.evaluate(model)


def check_equal_runs(local: Path, prepared: Path) -> None:
    """The same losses, scores and weights."""
    losses, scores = [], []
    for run in (local, prepared):
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
        scores.append(json.loads((run / "run.json").read_text())["scores"])
    assert losses[0] == losses[1] != []
    assert scores[0] == scores[1]
    assert (local / "model.safetensors").read_bytes() == (prepared / "model.safetensors").read_bytes()


def documents(folder: Path, split: str) -> list[list[int]]:
    reader = ShardReader(PreparedData(folder), split, 2)
    arrays = [reader.arrays(number) for number in range(len(reader.shards))]
    return [ids.tolist() for a in arrays for ids in np.split(a["ids"], a["offsets"][1:-1])]
