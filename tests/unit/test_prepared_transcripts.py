"""Transcripts and their recordings in shards: the splits and losses of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from prepared_data import check_equal, contents
from sound_files import prompts, tone, write

from headway.app.cli.main import main
from headway.config import override
from headway.data.prepared import preparation, prepared_samples, sample_shards
from headway.domains import recipe as find_recipe
from headway.domains.audio.recipes import SCALES
from headway.domains.audio.transcription import TranscribedSpeech
from headway.errors import ConfigError, UserError
from headway.learn import Shard
from headway.learn.recipe import open_task

SETTINGS = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch_size": 2,
    "train.precision": "fp32",
    "task.split.validation": 0.2,
    "task.split.test": 0.2,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 recordings with transcripts, three of which have the same words."""
    monkeypatch.setattr(sample_shards, "_MIN_BLOCK", 8192)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 1 << 15)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    folder, lines = prompts(tmp_path / "prompts"), []
    for number in range(20):
        write(folder / "sounds" / f"more{number}.wav", tone(190 + 30 * number, 0.3, number))
        words = "<|0.00|> same.<|0.20|>" if number < 3 else f"word {number}"
        lines.append(f"sounds/more{number}.wav\t{words}\n")
    table = folder / "prompts.tsv"
    table.write_text(table.read_text() + "".join(lines))
    return folder


def prepare(folder: Path, out: Path, *options: str) -> int:
    return main(["data", "prepare", str(folder), "--kind", "transcripts", "--out", str(out), *options])


def opened(data: Path, workspace: Path, **settings: Any) -> TranscribedSpeech:
    examples = open_task(override(find_recipe("transcription"), {**SETTINGS, **settings}), workspace, data).examples
    assert isinstance(examples, TranscribedSpeech)
    return examples


def test_transcripts_have_the_splits_and_losses_of_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert prepare(folder, out) == 0
    assert len(list(out.glob("train-*"))) > 3
    for part in ("1/2", "2/2"):
        assert prepare(folder, tmp_path / "parts", "--part", part) == 0
    assert prepare(folder, tmp_path / "joined", "--join", str(tmp_path / "parts")) == 0
    assert contents(tmp_path / "joined") == contents(out)
    recipe = override(find_recipe("transcription"), SETTINGS)
    local, prepared = (open_task(recipe, tmp_path / path.name, path) for path in (folder, out))
    speech, prepared_speech = (cast(TranscribedSpeech, task.examples) for task in (local, prepared))
    for split, rows in speech.splits.indices.items():
        assert (prepared_speech.splits.indices[split] == rows).all()
    check_equal(local, prepared, recipe)
    scale = SCALES["transcription"].data_settings
    few = "are too little to learn transcription from scratch"
    for path in (folder, out):
        with pytest.raises(UserError, match=few) as error:
            scale(recipe, [path], 1.0)
        few = str(error.value)
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    windowed = opened(out, tmp_path / "windowed")
    order, count = windowed.of("train").training_order(), len(windowed.splits.rows("train"))
    drawn = {row for (_, rows), _ in zip(order.endless(Shard(), 0), range(count // 2)) for row in rows.tolist()}
    assert len(drawn) > 0.8 * count


def test_what_does_not_fit_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prepare(folder, out, "--validation", "0.1") == 2
    assert "transcripts are split by their words when you train; remove" in capsys.readouterr().err
    (tmp_path / "unnamed.csv").write_text("file,text\na.wav,one\n")
    assert prepare(tmp_path / "unnamed.csv", out) == 2
    assert capsys.readouterr().err.endswith("; name the columns path and text\n")
    assert prepare(folder, out) == 0
    with pytest.raises(ConfigError, match=r"task.text was decided when .*out was prepared; remove the setting"):
        opened(out, tmp_path / "a", **{"task.text": "said"})
    with pytest.raises(UserError, match="contains prepared transcripts, but this recipe reads prepared sounds or"):
        open_task(find_recipe("audio"), tmp_path / "b", out)
    write(folder / "sounds" / "extra.wav", tone(200))
    (folder / "sounds" / "3.wav").write_bytes(b"no sound")
    assert prepare(folder, tmp_path / "other") == 2
    problem = capsys.readouterr().err
    assert "extra.wav has no transcript; add one" in problem
    assert problem.endswith("or leave such samples out with --skip-bad\n")
    assert prepare(folder, tmp_path / "other", "--skip-bad") == 0
    assert len(opened(tmp_path / "other", tmp_path / "c").rows) == 29
