"""Images with captions in shards: the splits and losses of the tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from image_text_data import TINY, Image
from prepared_data import contents

from headway.app.cli.main import main
from headway.config import override
from headway.data.prepared import preparation, prepared_samples, sample_shards
from headway.domains import recipe as find_recipe
from headway.domains.image_text.caption_shards import CaptionEncoder
from headway.domains.image_text.recipes import SCALES, captioner
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Shard, Task
from headway.learn.recipe import open_task
from headway.nn.models import build

SHARES = {"task.split.validation": 0.2, "task.split.test": 0.2}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 images of 20 x 24 pixels, each with a caption in the first half of the table and one in the second."""
    monkeypatch.setattr(sample_shards, "_MIN_BLOCK", 8192)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 4096)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "photos").mkdir()
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{number}.png")
        rows.append({"path": f"{number}.png", "caption": f"picture {number}", "language": "en"})
    rows += [{**row, "caption": f"\u00e9 {row['caption']}", "language": "xx"} for row in rows]
    table = tmp_path / "photos" / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def prepare(table: Path, out: Path, kind: str, *options: str, side: int = 16) -> int:
    size = ["--pixels", str(side), str(side)]
    return main(["data", "prepare", str(table), "--kind", kind, "--out", str(out), *size, *options])


def recipe_of(kind: str, **settings: Any) -> Recipe:
    if kind == "image-text":
        return override(find_recipe(kind), {**TINY, **SHARES, **settings})
    size = {"train.batch_size": 4, "train.precision": "fp32", "task.beam": 1, "task.max_length": 30}
    return override(
        replace(find_recipe(kind), model=captioner(16, (1, 1), 2, 16, 8, 24)), {**size, **SHARES, **settings}
    )


@pytest.mark.parametrize("kind", ["caption", "image-text"])
def test_captions_have_the_splits_and_losses_of_the_table(
    kind: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, recipe = tmp_path / "out", recipe_of(kind)
    assert prepare(table, out, kind) == 0
    assert len(list(out.glob("train-*"))) > 3
    for part in ("1/2", "2/2"):
        assert prepare(table, tmp_path / "parts", kind, "--part", part) == 0
    assert prepare(table, tmp_path / "joined", kind, "--join", str(tmp_path / "parts")) == 0
    assert contents(tmp_path / "joined") == contents(out)
    local, prepared = (open_task(recipe, tmp_path / path.name, path) for path in (table, out))
    for name, columns in local.examples.contents().items():
        for expected, column in zip(columns, prepared.examples.contents()[name]):
            assert np.array_equal(np.array(expected), np.array(column))
    indices = [cast(Any, task.examples).splits.indices for task in (local, prepared)]
    for split, rows in indices[0].items():
        assert (indices[1][split] == rows).all()
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(3)):
            assert torch.equal(expected.inputs[0], batch.inputs[0])
            assert expected.tokens == batch.tokens
    model = build(local.adapt(recipe.model), 0)
    assert local.evaluate(model) == prepared.evaluate(model)
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    windowed = cast(Any, open_task(recipe, tmp_path / "windowed", out).examples)
    order, count = windowed.of("train").training_order(), len(windowed.splits.rows("train"))
    drawn = {row for (_, rows), _ in zip(order.endless(Shard(), 0), range(count // 4)) for row in rows.tolist()}
    assert len(drawn) > 0.7 * count


@pytest.mark.parametrize("kind", ["caption", "image-text"])
def test_the_model_takes_the_size_of_the_prepared_images(kind: str, table: Path, tmp_path: Path) -> None:
    out, part = tmp_path / "out", "left" if kind == "image-text" else "tower"
    assert prepare(table, out, kind, side=24) == 0
    recipe = recipe_of(kind)
    task = open_task(recipe, tmp_path / "a", out)
    assert getattr(task.adapt(recipe.model), part).embed.size == (24, 24)
    settings = SCALES[kind].data_settings(recipe, [out], 1.0).settings
    assert settings[f"model.{part}.embed.size"] == [24, 24]
    (tmp_path / "run").mkdir()
    open_task(recipe, tmp_path / "run", table).examples.save(tmp_path / "run")
    with pytest.raises(UserError, match="contains images of 24 x 24 pixels with 3 channels, but the model takes 16"):
        open_task(recipe, tmp_path / "run", out)
    column = "task.image" if kind == "image-text" else "task.path"
    with pytest.raises(ConfigError, match=r"the columns were decided when .*out was prepared; remove their settings"):
        open_task(recipe_of(kind, **{column: "file"}), tmp_path / "b", out)
    other = "caption" if kind == "image-text" else "image-text"
    with pytest.raises(
        UserError,
        match=rf"prepared images with captions \({kind}\), but this recipe reads .*\({other}\) or files",
    ):
        open_task(recipe_of(other), tmp_path / "c", out)


def test_packed_tables_are_read(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["data", "prepare", str(table.parent), "--kind", "files", "--out", str(out)]) == 0
    (tmp_path / "unnamed.csv").write_text("file,text\na.png,one\n")
    with pytest.raises(UserError, match=r"; name the columns path and caption$"):
        CaptionEncoder("caption").read([tmp_path / "unnamed.csv"])
    task = open_task(recipe_of("caption"), tmp_path / "a", out)
    assert isinstance(task, Task)
    assert len(cast(Any, task.examples).captions) == 60
