"""The language task on real text: batches, splits, loss, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from headway.app.cli.main import main
from headway.config import override
from headway.data import SplitConfig
from headway.domains.text.recipes import modern_decoder, shakespeare, text
from headway.domains.text.task import Documents, LanguageConfig
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Shard, TrainConfig
from headway.learn.examples import Batch
from headway.learn.task import Task
from headway.nn.models import build


@pytest.fixture
def play(data_dir: Path, tmp_path: Path) -> Path:
    """The first 20,000 characters of Shakespeare's plays."""
    path = tmp_path / "play.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text()[:20_000])
    return path


def small(recipe: Recipe, **task: object) -> Recipe:
    model = modern_decoder(width=32, depth=2, heads=2, window=32, vocab_size=1)
    config = replace(recipe.task, **{"context": 32, **task})
    return replace(recipe, model=model, task=config, train=TrainConfig(batch_tokens=256))


def open_task(recipe: Recipe, *paths: Path) -> Task:
    task = recipe.task.open(recipe, list(paths), paths[0].parent / "run")
    assert isinstance(task, Task)
    return task


def texts_of(task: Task) -> Documents:
    assert isinstance(task.examples, Documents)
    return task.examples


def rows(batch: Batch) -> list[list[int]]:
    inputs, layout = batch.inputs
    return inputs.tolist() + batch.targets.tolist() + layout.positions.tolist()


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_batches_are_a_pure_function_of_seed_and_index(play: Path, packing: str) -> None:
    task = open_task(small(shakespeare(), packing=packing), play)
    first = [rows(batch) for batch in islice(task.batches("train"), 200)]
    assert [rows(batch) for batch in islice(task.batches("train", start=150), 50)] == first[150:]
    sharded = [islice(task.batches("train", Shard(rank, 2)), 100) for rank in range(2)]
    assert [rows(batch) for two in zip(*sharded) for batch in two] == first
    texts_of(task).seed += 1
    assert rows(next(task.batches("train"))) != first[0]


def test_labels_follow_inputs_and_rows_are_full(play: Path) -> None:
    task = open_task(small(shakespeare()), play)
    batch = next(task.batches("train"))
    inputs, layout = batch.inputs
    assert inputs.shape == (8, 32)
    assert torch.equal(inputs[:, 1:], batch.targets[:, :-1])
    assert batch.tokens == batch.computed == 256
    assert layout.dense
    assert texts_of(task).codec.decode(inputs[0].tolist()) in play.read_text()


def test_the_last_tenth_is_held_out_once(play: Path) -> None:
    task = open_task(small(shakespeare()), play)
    held_out = play.read_text()[18_000:]
    kept = [batch.targets[batch.targets >= 0] for batch in task.batches("validation")]
    codec = texts_of(task).codec
    assert codec.decode(torch.cat(kept).tolist()) == held_out[1:]
    seen = {codec.decode(row) for batch in islice(task.batches("train"), 100) for row in batch.inputs[0].tolist()}
    assert all(row in play.read_text()[:18_000] for row in seen)


def test_documents_are_on_one_side_and_kept_apart(data_dir: Path, tmp_path: Path) -> None:
    speeches = (data_dir / "lm/tinyshakespeare.txt").read_text()[:60_000].split("\n\n")
    path = tmp_path / "speeches.jsonl"
    path.write_text("".join(json.dumps({"text": speech}) + "\n" for speech in speeches))
    task = open_task(small(text(), codec="byte", size=None, split=SplitConfig(0.2, 0.0)), path)
    texts = texts_of(task)
    spans = [texts.spans(split) for split in ("train", "validation")]
    sides = [{texts.codec.decode(texts.cache.ids[s : s + n].tolist()) for s, n in zip(*side)} for side in spans]
    assert sides[0] | sides[1] == set(speeches)
    assert not sides[0] & sides[1]
    batch = next(task.batches("train"))
    inputs, layout = batch.inputs
    ends = inputs == texts.codec.eos_id
    assert (batch.targets[ends & (layout.positions > 0)] < 0).all()  # nothing is foretold past an end


def test_an_untrained_model_knows_nothing(data_dir: Path, tmp_path: Path) -> None:
    recipe = small(shakespeare())
    task = recipe.task.open(recipe, [data_dir / "lm/tinyshakespeare.txt"], tmp_path)
    model = build(task.adapt(recipe.model)).eval()
    scores = task.evaluate(model, limit=200)
    assert scores["loss"] == pytest.approx(math.log(65), abs=0.05)
    assert scores["perplexity"] == pytest.approx(67, rel=0.01)
    assert scores["bits_per_byte"] == pytest.approx(math.log2(67), rel=0.01)


def test_overfits_one_batch(play: Path) -> None:
    recipe = small(shakespeare())
    task = open_task(recipe, play)
    model = build(task.adapt(recipe.model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = task.loss(model, batch)["loss"]
        (loss.total / loss.count).backward()
        optimizer.step()
    assert loss.total.item() / loss.count < 0.1


def test_the_codec_of_a_run_is_kept(play: Path, tmp_path: Path) -> None:
    recipe = small(text(), size=400)
    task = open_task(recipe, play)
    task.save(tmp_path / "run")
    again = open_task(recipe, play)
    assert texts_of(again).codec.encode("First Citizen") == texts_of(task).codec.encode("First Citizen")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.context": None}, "neither task.context nor model.context"),
        ({"model.context": 16}, "task.context=32 exceeds model.context=16"),
        ({"train.batch_tokens": 31}, "train.batch_tokens=31 is less than a row of 32"),
        ({"train.batch_tokens": None}, "neither train.batch_tokens nor train.batch_size"),
    ],
)
def test_misfit_settings_are_errors_before_any_work(play: Path, settings: dict, message: str) -> None:
    recipe = override(small(shakespeare()), settings)
    with pytest.raises(ConfigError, match=message):
        recipe.task.open(recipe, [play], play.parent)


def test_batch_size_counts_rows(play: Path) -> None:
    recipe = override(small(shakespeare()), {"train.batch_size": 3})
    assert next(open_task(recipe, play).batches("train")).inputs[0].shape == (3, 32)


def test_data_that_do_not_fit_are_errors(play: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    recipe = small(shakespeare(), split=SplitConfig(0.3, 0.0))
    with pytest.raises(UserError, match="longest document"):
        open_task(recipe, short).adapt(recipe.model)
    recipe = small(shakespeare(), split=SplitConfig(0.0, 0.0))
    task = open_task(recipe, play)
    with pytest.raises(UserError, match="validation split"):
        task.adapt(recipe.model)
    assert texts_of(open_task(small(text(), size=8000), play)).codec.vocab_size < 8000  # the most: the data fill less
    with pytest.raises(UserError, match="no file or folder"):
        open_task(small(text()), tmp_path / "none.txt")


def test_recipe_opens_known_data(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    recipe = shakespeare()
    task = recipe.task.open(recipe, None, tmp_path)
    assert isinstance(recipe.task, LanguageConfig)
    assert next(task.batches("train")).inputs[0].shape == (16, 64)


def test_all_is_every_document(play: Path) -> None:
    task = open_task(small(shakespeare()), play)
    kept = torch.cat([batch.targets[batch.targets >= 0] for batch in task.batches("all")])
    assert texts_of(task).codec.decode(kept.tolist()) == play.read_text()
    assert task.final_split == "validation"  # the recipe holds out no test split, as nanoGPT does not


def test_samples_go_on_from_held_out_text(play: Path) -> None:
    recipe = small(shakespeare())
    task = open_task(recipe, play)
    samples = task.samples(build(task.adapt(recipe.model)), 3)
    assert len(samples) == 3
    assert all(sample["prompt"] in play.read_text()[18_000:] and sample["output"] for sample in samples)
    assert samples == task.samples(build(task.adapt(recipe.model)), 3)


def test_too_little_text_is_told_before_any_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.txt").write_text("hello world\n")
    words = ["train", "text", "--data", str(tmp_path / "tiny.txt"), "--run", str(tmp_path / "run")]
    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "the validation split of 1 documents is empty; " in told[0]
    assert not (tmp_path / "run").exists()
