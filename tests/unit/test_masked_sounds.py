"""Masked sounds: windows and views of recordings, unlabelled data, and pre-training of audio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import sound_files
import torch

import headway as hw
from headway.app.pretraining import Pretrained, train_first_stage
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains import scale_of
from headway.domains.audio.masked_sounds import MaskedSounds
from headway.domains.audio.unlabelled_sounds import read_files, read_unlabelled
from headway.errors import ConfigError, UserError
from headway.learn import Recipe
from headway.learn.plan.budget import Clock
from headway.learn.pretraining import describe_stages
from headway.learn.recipe import open_task
from headway.learn.run import RunDirectory
from headway.nn.models import build
from headway.nn.models.presets import preset

TINY = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 2, "train.precision": "fp32"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_files.classes(tmp_path_factory.mktemp("labelled"), 12)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 tones, and one that is four windows long."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(120):
        sound = sound_files.tone(180 + 7 * number, 0.2 + 0.001 * number, 500 + number)
        sound_files.write(folder / "deep" / f"{number}.wav", sound)
    sound_files.write(folder / "long.wav", sound_files.tone(300, 1.3, 9))
    return folder


def masked(**settings: Any) -> Recipe:
    return override(find_recipe("masked-sounds"), {**TINY, "train.batch_size": 8, "task.seconds": 0.32, **settings})


def test_windows_and_views_are_determined_by_their_position(unlabelled: Path, tmp_path: Path) -> None:
    task = open_task(masked(), tmp_path, unlabelled)
    sounds = cast(MaskedSounds, task.examples)
    assert (sounds.frames, sounds.grid) == (32, (16, 1))
    assert sounds.splits.all_indices.tolist() == list(range(124))
    long = [row for row in range(124) if sounds.describe_row(row).startswith("long.wav")]
    assert [sounds.describe_row(row) for row in long][1:] == [
        f"long.wav, from {start} s" for start in ("0.33", "0.65", "0.98")
    ]
    assert len({split for split, rows in sounds.splits.indices.items() if set(long) & set(rows.tolist())}) == 1
    batch = next(task.batches("train"))
    again = next(open_task(masked(), tmp_path, unlabelled).batches("train"))
    assert torch.equal(batch.inputs[0], again.inputs[0])
    assert (batch.inputs[0].shape, batch.targets.shape, batch.tokens) == ((16, 32, 80), (16, 16), 8)
    assert not torch.equal(batch.inputs[0][:8], batch.inputs[0][8:])
    model = build(task.adapt(masked().model), 0)
    losses, counts = task.loss(model, batch), task.objective.counts(batch)
    assert {name: loss.count for name, loss in losses.items()} == counts
    assert counts["contrast"] == 8
    (losses["patches"].total + losses["contrast"].total).backward()
    assert cast(Any, model).heads["patches"].mask.grad.abs().sum() > 0
    assert 0.5 < task.evaluate(model)["loss"] < 5
    titles = [picture.title for picture in task.pictures(model)]
    assert titles == ["Hidden frames", "Predicted frames", "Complete"] * 2


def test_what_is_not_a_sound(unlabelled: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no sound")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("path\nnone.wav\n")
    for path, message in (
        ("note.txt", "is not a recording; pass recordings"),
        ("empty", "contains no recordings; pass a folder"),
        ("missing", "does not exist; pass a folder"),
        ("table.csv", "there is no file none.wav"),
    ):
        with pytest.raises(UserError, match=message):
            read_files([tmp_path / path])
    (tmp_path / "table.csv").write_text(f"path\n{unlabelled / 'long.wav'}\n")
    assert read_files([tmp_path / "table.csv", unlabelled / "long.wav"]).files == [unlabelled / "long.wav"] * 2
    with pytest.raises(ConfigError, match=r"task.seconds is 0; choose a window"):
        masked(**{"task.seconds": 0.0})
    with pytest.raises(ConfigError, match="takes audio windows"):
        open_task(override(masked(), {"model": preset("vit-ti16")}), tmp_path, unlabelled)


def test_windows_suit_the_recordings(unlabelled: Path) -> None:
    scale = scale_of("masked-sounds")
    assert scale is not None
    settings = scale.data_settings(find_recipe("masked-sounds"), [unlabelled], 1.0).settings
    assert settings["task.seconds"] == 0.4
    assert settings["model.context"] == 20
    assert settings["task.augment.shift"] == 0.04


def test_audio_is_pretrained(labelled: Path, unlabelled: Path, tmp_path: Path) -> None:
    recipe = override(find_recipe("audio"), {**TINY, "train.batch_size": 8, "task.split.validation": 0.2})
    task = open_task(recipe, tmp_path, labelled)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "copy.wav").write_bytes((labelled / "low" / "0.wav").read_bytes())
    with pytest.raises(UserError, match="all 1 recordings are also in the labelled data"):
        read_unlabelled(recipe, task, [tmp_path / "more"])
    data = read_unlabelled(recipe, task, [unlabelled, tmp_path / "more"])
    assert data.unlabelled == 121
    assert len(data.rows) == 121 + data.labelled
    assert cast(float, data.similar) > 0.6
    assert "spoken digits, training on the labels for all minutes was better" in describe_stages("", data, 10)[1]
    for number in range(110):
        sound_files.write(tmp_path / "noise" / f"{number}.wav", 0.3 * torch.randn(4000).numpy())
    other = read_unlabelled(recipe, task, [tmp_path / "noise"])
    expectation = describe_stages("masked-sounds", other, 10)[1]
    assert expectation.startswith("no gain from pre-training is expected: only 0% of the labelled recordings")

    def brief(stage: str, rows: Any, set: dict[str, Any], minutes: float, run: Path, **arguments: Any) -> Any:
        assert (stage, minutes) == ("masked-sounds", 7)
        assert set == {"task.skip_bad": True, "task.seconds": 0.3, "model.width": 16}
        return hw.train(stage, rows, set={**set, **TINY, "train.batch_size": 8}, run=run, **arguments)

    def first_stage(train: Callable[..., Any]) -> Pretrained:
        options = {"progress": False, "resume": False}
        arguments = unlabelled, "audio", labelled, {"model.width": 16}, 3, 10, tmp_path / "run", Clock(), options
        return train_first_stage(train, *arguments)

    with RunDirectory(tmp_path / "run").locked():
        pretrained = first_stage(brief)
    assert "Hidden frames" in (pretrained.start / "report.html").read_text()
    settings = {**pretrained.settings, "train.steps": 2, "train.batch_size": 8, "train.precision": "fp32"}
    run = hw.train("audio", labelled, set=settings, start=pretrained.start, run=tmp_path / "run", progress=False)
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    assert run.recipe.model.context == 15
    assert hw.load(run.directory).classify([str(labelled / "low" / "0.wav")])
