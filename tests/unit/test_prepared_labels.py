"""Labelled texts in shards: the splits, batches and losses of the table, started from the index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from prepared_data import PLAIN, check_equal_runs, contents, draw, stopped

from headway.app.cli.main import main
from headway.config import override
from headway.data.prepared import preparation, prepared_samples
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import MappedShards
from headway.domains import recipe
from headway.domains.understanding.labelled_text_shards import LabelledTextReader, PreparedTextDataset
from headway.domains.understanding.task import TextDataset
from headway.errors import ConfigError, UserError
from headway.learn import Shard, Task, token_shards
from headway.learn.recipe import open_task
from headway.learn.shard_batches import PlacedLengthBatches
from headway.learn.token_shards import RowKind

LABELS = ("calm", "rough", "storm")
SMALL = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.batch_tokens": 128, "train.steps": 4}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sorted tables, one of them for tests, with 240 texts and text pairs of three classes, in blocks of 4 KB and
    shards of 2 KB."""
    monkeypatch.setattr(token_shards, "_MIN_BLOCK", 4096)
    monkeypatch.setattr(token_shards, "_ROWS_AT_ONCE", 7)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 2048)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for name, count in (("train", 210), ("test", 30)):
        rows = sorted((LABELS[seed % 3], draw(seed, 6 + seed % 9), draw(seed + 999, 5)) for seed in range(count))
        rows = [(label, f'"{text}, {seed}"', f'"{other}"') for seed, (label, text, other) in enumerate(rows)]
        lines = [",".join(row) for row in [("label", "text", "text2"), *rows]]
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def prepare(
    paths: Path,
    out: Path,
    config: PrepareConfig = PLAIN,
    kind: str = "labelled-texts",
    tokenizer: str | None = None,
    columns: dict[str, str] | None = None,
) -> Path:
    reader = LabelledTextReader(kind, [paths], columns or {}, "bpe", 300)
    rows = RowKind(reader, tokenizer, config.seed, config.validation is not None)
    Preparation(rows, config, out, lambda _: None).run()
    return out


def opened(data: Path, workspace: Path, name: str = "classification", settings: Mapping[str, Any] = {}) -> Task:
    workspace.mkdir(exist_ok=True)
    return open_task(override(recipe(name), {**SMALL, **settings}), workspace, data)


def same_batches(local: Task, prepared: Task) -> None:
    for split, rows in cast(TextDataset, local.examples).splits.indices.items():
        assert (cast(TextDataset, prepared.examples).splits.indices[split] == rows).all()
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(6)):
            assert (expected.inputs.tokens.ids == batch.inputs.tokens.ids).all()
            assert (expected.inputs.layout.positions == batch.inputs.layout.positions).all()
            assert (expected.targets == batch.targets).all()


@pytest.mark.parametrize("name", ["classification", "pairs"])
def test_texts_have_the_splits_and_batches_of_the_table(table: Path, tmp_path: Path, name: str) -> None:
    kind = {"classification": "labelled-texts", "pairs": "labelled-pairs"}[name]
    out = prepare(table, tmp_path / "out", kind=kind)
    index = json.loads((out / "index.json").read_text())
    assert (len(index["splits"]["train"]) > 2, index["counts"]["samples"]) == (True, 240)
    assert index["details"]["sample"]["rows"] == 210
    local, prepared = tmp_path / "local", tmp_path / "prepared"
    local.mkdir()
    (local / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes())
    settings = {"model.context": 24, "task.truncate": True}
    tasks = opened(table, local, name, settings), opened(out, prepared, name, settings)
    same_batches(*tasks)
    assert tasks[0].examples.labels == tasks[1].examples.labels  # type: ignore[attr-defined]
    expected, preview = (task.examples.preview(9) for task in tasks)
    assert [line.lower() for line in expected] == preview
    errors = []
    for data, workspace in ((table, local), (out, prepared)):
        with pytest.raises(UserError, match=r"csv, line \d+ has \d+ tokens, but the model reads at most 9") as error:
            opened(data, workspace, name, {"model.context": 9})
        errors.append(str(error.value).rpartition("/")[2])
    assert errors[0] == errors[1]


def test_a_training_from_the_index_has_the_weights_of_the_table(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, local, prepared = tmp_path / "out", tmp_path / "local", tmp_path / "prepared"
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    assert main(["train", "classification", "--data", str(table), "--run", str(local), *settings]) == 0
    command = ["data", "prepare", str(table), "--kind", "labelled-texts", "--tokenizer", str(local)]
    assert main([*command, "--out", str(out)]) == 0
    assert "use it: headway train classification --data" in capsys.readouterr().out
    shutil.rmtree(table)
    reads, read = [], MappedShards.read
    monkeypatch.setattr(MappedShards, "read", lambda self, *span: (reads.append(span), read(self, *span))[1])
    task = opened(out, tmp_path / "task")
    assert not reads  # a start reads no sample
    next(task.batches("train"))
    assert 0 < len(reads) < 20
    assert main(["train", "classification", "--data", str(out), "--run", str(prepared), *settings]) == 0
    check_equal_runs(local, prepared)
    capsys.readouterr()
    assert main(["evaluate", str(local), "--data", str(out), "--split", "test", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= scores["accuracy"] <= 1


def test_stopped_and_divided_preparations_have_the_same_bytes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(prepare(table, tmp_path / "one"))
    for owner, name, count in (
        (LabelledTextReader, "rows", 0),
        (LabelledTextReader, "encode", 5),
        (RowKind, "write_part", 3),
        (RowKind, "write_shard", 2),
        (RowKind, "write_table", 0),
    ):
        with stopped(monkeypatch, owner, name, count):
            prepare(table, tmp_path / "stopped")
        assert not (tmp_path / "stopped" / "index.json").exists()
    assert contents(prepare(table, tmp_path / "stopped")) == expected

    def preparation_of(out: Path, joined: Path | None = None) -> Preparation:
        reader = LabelledTextReader("labelled-texts", [table], {}, "bpe", 300)
        return Preparation(RowKind(reader, None), PLAIN, out, lambda _: None, joined)

    for part in (1, 2):
        preparation_of(tmp_path / "parts").write_part(part, 2)
    preparation_of(tmp_path / "joined", tmp_path / "parts").run()
    assert contents(tmp_path / "joined") == expected


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Two processes import the package, which takes most of the time."""
    path = tmp_path / "texts.jsonl"
    rows = ({"text": f"{number} " + draw(number % 40, 60), "label": str(number % 3)} for number in range(2000))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    command = ["data", "prepare", str(path), "--kind", "labelled-texts", "--codec", "byte", "--size", "258", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--processes", "2"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_large_data_are_shuffled_in_windows(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    out = prepare(table, tmp_path / "out")
    task = opened(out, tmp_path / "run", settings={"train.accumulate": 2})
    examples = cast(PreparedTextDataset, task.examples)
    order, count = examples.of("train").training_order(), len(examples.splits.rows("train"))
    assert isinstance(order, PlacedLengthBatches)
    epoch = round(order.epoch)
    batches = [indices for (_, indices), _ in zip(order.endless(Shard(), 0), range(epoch))]
    sampled = np.concatenate(batches)
    assert len(set(sampled.tolist())) > 0.8 * count
    assert max(len(batch) for batch in batches) > 3
    again = next(order.endless(Shard(), 8))
    assert again[1].tolist() == batches[8].tolist()
    # Two processes read different batches of a step, from different shards.
    (_, first), (_, second) = (next(order.endless(Shard(rank, 2, 2), 0)) for rank in range(2))
    assert (first.tolist(), second.tolist()) == (batches[0].tolist(), batches[1].tolist())
    rows = examples.splits.rows("train")
    shards = [set(examples.samples.shards_of(rows[indices]).tolist()) for indices in (first, second)]
    assert list(map(len, shards)) == [1, 1]
    assert not shards[0] & shards[1]
    # Rows of a sorted table are in random order, so a shard has all classes.
    assert len(set(examples.targets[rows[examples.samples.shards_of(rows) == 0]].tolist())) == 3
    # An epoch that starts again has other batches.
    later = [indices for (_, indices), _ in zip(order.endless(Shard(), 2 * epoch), range(epoch))]
    assert {tuple(sorted(batch)) for batch in map(np.ndarray.tolist, later)} != {
        tuple(sorted(batch)) for batch in map(np.ndarray.tolist, batches)
    }


def test_splits_and_duplicates_may_be_decided_when_texts_are_prepared(table: Path, tmp_path: Path) -> None:
    (table / "more.csv").write_text("label,text,text2\n" + 'calm,"twice",x\ncalm,"twice",x\nstorm,"twice",x\n')
    out = prepare(table, tmp_path / "out", PrepareConfig(unique=True, validation=0.3))
    index = json.loads((out / "index.json").read_text())
    assert (index["counts"]["samples"], index["counts"]["removed"]) == (241, 2)  # and a row of both files
    samples = PreparedSamples.open([out], "labelled-texts")
    counts = np.bincount(samples.named_splits, minlength=4).tolist()
    assert (counts[0], counts[3]) == (0, 30)
    assert counts[2] > 30
    twice = [row for row, name in enumerate(samples.names) if name.startswith("more.csv")]
    assert [samples.labels[row] for row in twice] == ["calm", "storm"]
    assert len({int(samples.named_splits[row]) for row in twice}) == 1  # equal texts are in one split
    examples = cast(TextDataset, opened(out, tmp_path / "run").examples)
    assert len(examples.splits.rows("validation")) == counts[2]


def test_labels_may_be_numbers_or_lists(tmp_path: Path) -> None:
    for name, labels, kind in (("numbers", ("0.5", "1.25", "3"), "number"), ("lists", ("a;b", "a", "b;c"), "labels")):
        path = tmp_path / f"{name}.csv"
        rows = [f"{draw(seed, 5)!r},{labels[seed % 3]}".replace("\\n", " ") for seed in range(60)]
        path.write_text("text,label\n" + "\n".join(rows) + "\n")
        task = opened(prepare(path, tmp_path / name), tmp_path / f"run-{name}")
        assert task.examples.target.kind == kind  # type: ignore[attr-defined]
        assert cast(TextDataset, task.examples).splits.rows("test").size


def test_other_settings_and_damage_are_reported(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = prepare(table, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"was prepared from the columns text=text, label=label, but .*label=text2"):
        opened(out, tmp_path / "run", settings={"task.label": "text2"})
    renamed = prepare(table, tmp_path / "renamed", columns={"label": "text2"})
    with pytest.raises(UserError, match=r"test.csv, line \d+: label '.*' does not occur in the training data"):
        opened(renamed, tmp_path / "run", settings={"task.label": "text2", "task.target": "class"})
    (tmp_path / "other").mkdir()
    other = prepare(table, tmp_path / "smaller", PrepareConfig(seed=1))
    content = (other / "tokenizer.json").read_text().replace("[SEP]", "[END]")
    (tmp_path / "other" / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="was prepared with another tokenizer than that of this model; prepare the"):
        opened(out, tmp_path / "other")
    with pytest.raises(UserError, match="labelled-texts, but this recipe reads prepared labelled-pairs"):
        opened(out, tmp_path / "run", "pairs")
    with pytest.raises(UserError, match="contains prepared labelled-texts, which cannot be mixed"):
        PreparedSamples.open([out, other], "labelled-texts")
    with pytest.raises(UserError, match=r"--columns has 'path', which labelled-texts do not have; use text, label"):
        LabelledTextReader("labelled-texts", [table], {"path": "x"})
    with pytest.raises(UserError, match=r"no column 'stars'.*; name the columns, such as --columns text=NAME label"):
        prepare(table, tmp_path / "none", columns={"label": "stars"})
    prepare(table, tmp_path / "none")  # the corrected command may have the same output
    with pytest.raises(UserError, match="nothing does not exist"):
        prepare(table, tmp_path / "some", tokenizer=str(tmp_path / "nothing"))
    assert contents(prepare(table, tmp_path / "some")) == contents(out)
    with pytest.raises(UserError, match=r"take 1\.1 of the data"):
        PrepareConfig(validation=0.9, test=0.2)
    options = [
        "--kind",
        "labelled-texts",
        "--size",
        "300",
        "--columns",
        "label=text2",
        "--out",
        str(tmp_path / "printed"),
    ]
    assert main(["data", "prepare", str(table / "train.csv"), *options]) == 0
    assert f"--data {tmp_path / 'printed'} --set task.label=text2\n" in capsys.readouterr().out
    assert main(["train", "pairs", "--data", str(out), "--minutes", "0.1", "--run", str(tmp_path / "pairs")]) == 2
    assert "choose a recipe for labelled-texts" in capsys.readouterr().err
    shard = out / "train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    examples = cast(TextDataset, opened(out, tmp_path / "damaged").examples)
    with pytest.raises(UserError, match=r"train-00000.safetensors has changed since it was prepared"):
        examples.take(np.arange(240))
    index = json.loads((other / "index.json").read_text())
    index["details"]["vocab_size"] = -1
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"is damaged \('-1' is not a count\)"):
        opened(other, tmp_path / "run")
