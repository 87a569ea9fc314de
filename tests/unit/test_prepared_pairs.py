"""Translations in shards: the splits, batches, scores and weights of the files, started from the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from prepared_data import PLAIN, check_equal_runs, contents, draw, stopped

from headway.app.cli.main import main
from headway.app.recipes import configure_recipe
from headway.codecs import load_codecs
from headway.config import override
from headway.data.prepared import preparation, prepared_samples
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.shard_reader import MappedShards
from headway.domains import recipe
from headway.domains.translation.pair_shards import PairReader, PreparedPairs
from headway.domains.translation.pronunciation import PronounceConfig
from headway.domains.translation.task import ParallelText
from headway.domains.translation.translation import TranslationConfig
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Shard, Task, token_shards
from headway.learn.recipe import open_task
from headway.learn.shard_batches import PlacedLengthBatches
from headway.learn.token_shards import RowKind
from headway.nn.models import build

SMALL = {
    "model.encoder.width": 16,
    "model.decoder.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch_tokens": 128,
    "train.steps": 3,
    "task.beam": 1,
    "task.max_ratio": 0.1,
    "task.goal": "loss",
}


SEPARATE = {"task.shared": False, "model.tie": "head"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 pairs of lines, among them an empty and a long one and a source with two targets, in blocks of 4 KB."""
    monkeypatch.setattr(token_shards, "_MIN_BLOCK", 4096)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 4096)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    lines = [draw(seed, 4 + seed % 7).replace("\n", " ") for seed in range(200)]
    lines[7], lines[9] = lines[8], draw(9, 90).replace("\n", " ")
    rows = [{"source": line, "target": line.upper() if line != lines[8] else f"{n} É"} for n, line in enumerate(lines)]
    rows[20]["target"] = ""
    (tmp_path / "data" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "data"


def prepare(path: Path, out: Path, config: PrepareConfig = PLAIN, prefix: str = "", vocabularies: int = 1) -> Path:
    reader = PairReader(TranslationConfig(size=300, prefix=prefix), [path], "bpe", 300, vocabularies)
    Preparation(RowKind(reader, None), config, out, lambda _: None).run()
    return out


def opened(data: Path, workspace: Path, settings: Mapping[str, Any] = {}, name: str = "translation") -> Task:
    workspace.mkdir(exist_ok=True)
    return open_task(small(name, settings), workspace, data)


def small(name: str, settings: Mapping[str, Any]) -> Recipe:
    chosen = {**SMALL, **settings}
    if name == "pronounce":  # which has no other goal
        del chosen["task.goal"]
    return override(recipe(name), chosen)


def both(files: Path, out: Path, folder: Path, settings: Mapping[str, Any], name: str = "translation") -> list[Task]:
    """The tasks on the files and on the prepared pairs, with the same tokenizers."""
    for workspace in ("local/source", "prepared"):
        (folder / workspace).mkdir(parents=True)
    (folder / "local" / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes())
    if (out / "source.json").exists():
        (folder / "local" / "source" / "tokenizer.json").write_bytes((out / "source.json").read_bytes())
    return [opened(data, folder / run, settings, name) for run, data in (("local", files), ("prepared", out))]


def check_pairs(local: Task, prepared: Task) -> None:
    """The same splits, batches and references."""
    for split, rows in cast(ParallelText, local.examples).splits.indices.items():
        assert (cast(ParallelText, prepared.examples).splits.indices[split] == rows).all()
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(6)):
            assert (expected.inputs[0] == batch.inputs[0]).all()
            assert (expected.inputs[2] == batch.inputs[2]).all()
            assert (expected.targets == batch.targets).all()
            assert (expected.tokens, expected.computed) == (batch.tokens, batch.computed)
    for split in ("validation", "test", "all"):
        for limit in (None, 5):
            sources = [cast(ParallelText, task.examples).sources(split, limit) for task in (local, prepared)]
            assert sources[0] == sources[1]


@pytest.mark.parametrize(
    ("name", "settings", "prefix"),
    [
        ("translation", {"task.max_length": 30}, ""),
        ("summarization", {"task.prefix": "sum up: ", "task.max_length": 12, "task.truncate": True}, "sum up: "),
        ("translation", {"task.grouped": True, "task.reverse_source": True, "task.split.validation": 0.3}, ""),
        ("translation", {**SEPARATE, "task.max_length": 30}, ""),
    ],
)
def test_pairs_have_the_splits_and_batches_of_the_files(
    files: Path, tmp_path: Path, name: str, settings: dict[str, Any], prefix: str
) -> None:
    out = prepare(files, tmp_path / "out", prefix=prefix, vocabularies=2 if "task.shared" in settings else 1)
    assert (out / "source.json").exists() == ("task.shared" in settings)
    assert len(json.loads((out / "index.json").read_text())["splits"]["train"]) > 3
    settings = {"train.batch_tokens": 200, **settings}
    local, prepared = both(files, out, tmp_path / "runs", settings, name)
    check_pairs(local, prepared)
    assert local.examples.preview(4) == prepared.examples.preview(4)
    limited = prepared.examples.of("validation").limited_to(3)
    expected = local.examples.of("validation").limited_to(3)
    assert (limited.take(np.arange(3)).targets == expected.take(np.arange(3)).targets).all()


@pytest.mark.parametrize("given", [{}, SEPARATE])
def test_a_training_from_the_index_has_the_weights_of_the_files(
    given: dict[str, Any],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out, local, prepared = tmp_path / "out", tmp_path / "local", tmp_path / "prepared"
    chosen = {name: str(value).lower() for name, value in {**SMALL, **given}.items()}
    settings = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    settings += ["--set", "task.max_length=30", "--set", "task.size=300"]
    assert main(["train", "translation", "--data", str(files), "--run", str(local), *settings]) == 0
    command = ["data", "prepare", str(files), "--kind", "translations", "--tokenizer", str(local)]
    assert main([*command, "--out", str(out)]) == 0
    (files / "pairs.jsonl").unlink()
    reads, read = [], MappedShards.read
    monkeypatch.setattr(MappedShards, "read", lambda self, *span: (reads.append(span), read(self, *span))[1])
    task = opened(out, tmp_path / "task", {"task.max_length": 30, **given})
    assert not reads  # a start reads no sample
    next(task.batches("train"))
    assert 0 < len(reads) < 40
    assert main(["train", "translation", "--data", str(out), "--run", str(prepared), *settings]) == 0
    check_equal_runs(local, prepared)
    assert json.loads((local / "run.json").read_text())["scores"]["bleu"] >= 0
    assert "use it: headway train translation --data" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["one tokenizer", "two tokenizers", "words"])
def test_stopped_and_divided_preparations_have_the_same_bytes(
    kind: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preparation_of(out: Path, joined: Path | None = None) -> Preparation:
        reader = PairReader(TranslationConfig(size=300), [files], "bpe", 300, 2 if kind == "two tokenizers" else 1)
        if kind == "words":
            reader = PairReader(PronounceConfig(), [files], "word", None)
        return Preparation(RowKind(reader, None), PLAIN, out, lambda _: None, joined)

    preparation_of(tmp_path / "one").run()
    expected = contents(tmp_path / "one")
    for count in (0, 2):
        with stopped(monkeypatch, RowKind, "write_part", count):
            preparation_of(tmp_path / "stopped").run()
    preparation_of(tmp_path / "stopped").run()
    assert contents(tmp_path / "stopped") == expected
    for part in (1, 2):
        preparation_of(tmp_path / "parts").write_part(part, 2)
    preparation_of(tmp_path / "joined", tmp_path / "parts").run()
    assert contents(tmp_path / "joined") == expected


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Two processes import the package, which takes most of the time."""
    rows = ({"source": draw(seed, 150), "target": draw(seed + 400, 50)} for seed in range(400))  # two blocks
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    command = ["data", "prepare", str(tmp_path / "pairs.jsonl"), "--kind", "translations", "--separate"]
    command += ["--codec", "byte", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--processes", "2"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_large_data_are_shuffled_in_windows(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    out = prepare(files, tmp_path / "out")
    pairs = opened(out, tmp_path / "run", {"task.max_length": 30}).examples.of("train")
    assert isinstance(pairs, PreparedPairs)
    order = pairs.training_order()
    assert isinstance(order, PlacedLengthBatches)
    batches = [indices for (_, indices), _ in zip(order.endless(Shard(), 0), range(round(order.epoch)))]
    assert len(set(np.concatenate(batches).tolist())) > 0.8 * len(pairs)
    for indices in batches:
        assert max(pairs.source.lengths[indices] + 1) * len(indices) <= 128
        assert len(set(pairs.tokens.samples.shards_of(pairs.rows[indices]).tolist())) == 1


def test_other_settings_and_damage_are_reported(files: Path, tmp_path: Path) -> None:
    out = prepare(files, tmp_path / "out")
    for settings, message in (
        ({"task.reverse": True}, "task.reverse does not apply to .*; prepare the files in the other order"),
        (
            {"task.prefix": "x "},
            "task.prefix is 'x ', but .* was prepared with ''; set it to this",
        ),
        (
            {"task.shared": False, "model.tie": "none"},
            "has one vocabulary for both languages, but task.shared is false",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            opened(out, tmp_path / "run", settings)
    for settings in ({"task.size": 200}, {"task.codec": "char"}):
        with pytest.raises(
            ConfigError, match=r"task\.(size|codec) was decided when .* was prepared; remove the setting"
        ):
            configure_recipe("translation", out, settings, None)
    configure_recipe("translation", out, {"task.size": 300, "task.codec": "bpe"}, None)  # as the data were prepared
    with pytest.raises(UserError, match="contains prepared translations, but this recipe reads prepared pron"):
        recipe("pronounce").files([out])
    with pytest.raises(UserError, match=r"pairs are too long: pair \d+ has \d+ source"):
        opened(out, tmp_path / "run", {"task.max_length": None, "train.batch_tokens": 8}).examples.of("train")
    (files / "pairs.jsonl").write_text('{"source": "a"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl, line 1"):
        prepare(files, tmp_path / "bad")
    assert not (tmp_path / "bad" / "index.json").exists()


def test_the_command_to_train_has_the_prefix(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kind", "translations", "--prefix", "sum up: ", "--size", "300", "--out", str(tmp_path / "out")]
    assert main(["data", "prepare", str(files), *options]) == 0
    assert f"--data {tmp_path / 'out'} --set 'task.prefix=sum up: '\n" in capsys.readouterr().out


def test_each_language_may_have_a_vocabulary(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kind", "translations", "--size", "300", "--out"]
    command = ["data", "prepare", str(files), *options, str(tmp_path / "out"), "--separate"]
    assert main([*command, "--tokenizer", str(tmp_path)]) == 2
    assert "--separate trains a tokenizer per language, but --tokenizer names theirs" in capsys.readouterr().err
    assert main(command) == 0
    assert "--set task.shared=false model.tie=head\n" in capsys.readouterr().out
    codecs = load_codecs(tmp_path / "out")
    assert len({codec.fingerprint() for codec in codecs}) == 2
    with pytest.raises(ConfigError, match=r"has a vocabulary per language, but task.shared is true; set it to false"):
        opened(tmp_path / "out", tmp_path / "run")
    opened(tmp_path / "out", tmp_path / "run", {**SEPARATE, "task.max_length": 30})
    codecs[-1].save(tmp_path / "run")  # a model with one vocabulary
    with pytest.raises(UserError, match="was prepared with another tokenizer than that of this model"):
        opened(tmp_path / "out", tmp_path / "run", SEPARATE)


def test_words_have_the_splits_batches_and_references_of_the_dictionary(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files.parent / "words.dict"
    spelled = [draw(seed, 1).strip() + draw(seed + 500, 1).strip() for seed in range(99)]
    lines = [f"{word} AH0 {' '.join('BDK'[: len(word) % 3])}" for word in spelled]
    words.write_text("\n".join([*sorted(set(lines)), "read R EH1 D", "read(2) R IY1 D"]) + "\n")
    out = tmp_path / "words"
    assert main(["data", "prepare", str(words), "--kind", "pronunciations", "--out", str(out)]) == 0
    assert f"use it: headway train pronounce --data {out}\n" in capsys.readouterr().out
    assert main(["data", "prepare", str(words), "--kind", "pronunciations", "--size", "99", "--out", str(out)]) == 2
    assert "--size does not apply to --kind pronunciations; use" in capsys.readouterr().err
    settings = {"task.split.validation": 0.3}
    local, prepared = both(words, out, tmp_path / "runs", settings, "pronounce")
    check_pairs(local, prepared)
    sources = cast(ParallelText, prepared.examples).sources("all")
    assert sources.references[sources.inputs.index("read")] == ["R EH D", "R IY D"]
    model = build(local.adapt(small("pronounce", settings).model), 0)
    assert local.evaluate(model) == prepared.evaluate(model)
