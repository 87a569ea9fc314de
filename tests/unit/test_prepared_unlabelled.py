"""Unlabelled images and sounds in shards: the splits and losses of the folder, and pre-training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sound_files
from prepared_data import check_equal, contents
from vision_data import Image, colours, opened, tiny

import headway as hw
from headway.app.cli.main import main
from headway.app.pretraining import train_first_stage
from headway.config import override
from headway.data.prepared import preparation, prepared_samples, sample_shards
from headway.data.prepared.shard_reader import PreparedData
from headway.domains import recipe as find_recipe
from headway.domains import scale_of
from headway.domains.audio.masked_sounds import MaskedSounds
from headway.domains.audio.unlabelled_sounds import read_unlabelled as read_unlabelled_sounds
from headway.domains.vision.masked_images import MaskedImages
from headway.domains.vision.unlabelled_images import read_images, read_unlabelled
from headway.errors import UserError
from headway.learn import Recipe, Shard
from headway.learn.examples import RngKey
from headway.learn.plan.budget import Clock
from headway.learn.recipe import open_task
from headway.learn.run import RunDirectory

SIZE = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.batch_size": 8, "train.precision": "fp32"}
IMAGES = {**SIZE, "model.embed.size": [16, 16], "model.embed.patch": [4, 4]}


@pytest.fixture(autouse=True)
def small_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_shards, "_MIN_BLOCK", 8192)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 8192)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path, count: int = 60) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(count):
        pixels = rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def prepare(folder: Path, out: Path, *options: str) -> Path:
    assert main(["data", "prepare", str(folder), "--unlabelled", "--out", str(out), *options]) == 0
    return out


def image_options(side: int = 16) -> list[str]:
    return ["--kind", "images", "--channels", "3", "--pixels", str(side), str(side)]


def masked(name: str, **settings: Any) -> Recipe:
    return override(find_recipe(name), {**(IMAGES if name == "masked-images" else SIZE), **settings})


def test_unlabelled_images_have_the_splits_and_losses_of_the_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "more")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    out = prepare(folder, tmp_path / "out", *image_options())
    for part in ("1/2", "2/2"):
        prepare(folder, tmp_path / "parts", *image_options(), "--part", part)
    joined = prepare(folder, tmp_path / "two", *image_options(), "--join", str(tmp_path / "parts"))
    assert contents(joined) == contents(out)
    recipe = masked("masked-images")
    check_equal(open_task(recipe, tmp_path / "a", folder), open_task(recipe, tmp_path / "b", out), recipe)
    larger = open_task(masked("masked-images", **{"model.embed.size": [32, 32]}), tmp_path / "c", out)
    assert cast(Any, larger.adapt(recipe.model)).embed.size == (16, 16)
    scale = scale_of("masked-images")
    assert scale is not None
    assert scale.data_settings(recipe, [out], 1.0).settings["model.embed.size"] == [16, 16]


def test_unlabelled_sounds_have_the_splits_and_losses_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    for number in range(30):
        sound_files.write(folder / f"{number}.wav", sound_files.tone(180 + 7 * number, 0.2 + 0.01 * number, number))
    out = prepare(folder, tmp_path / "out", "--kind", "sounds")
    recipe = masked("masked-sounds", **{"task.seconds": 0.2})
    check_equal(open_task(recipe, tmp_path / "a", folder), open_task(recipe, tmp_path / "b", out), recipe)
    scale = scale_of("masked-sounds")
    assert scale is not None
    settings = [scale.data_settings(find_recipe("masked-sounds"), [path], 1.0) for path in (folder, out)]
    assert settings[0] == settings[1]


def test_idx_files_have_the_splits_and_losses_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "more", 5)
    digits = np.random.default_rng(0).integers(0, 255, (40, 18, 18)).astype(np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in digits.shape)
    (folder / "train-images-idx3-ubyte").write_bytes(header + digits.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(b"not read")
    out = prepare(folder, tmp_path / "out", *image_options())
    assert len(list(out.glob("train-*"))) > 2
    assert f"headway train masked-images --data {out} --minutes M" in capsys.readouterr().out
    recipe = masked("masked-images")
    check_equal(open_task(recipe, tmp_path / "a", folder), open_task(recipe, tmp_path / "b", out), recipe)
    alone = prepare(folder / "train-images-idx3-ubyte", tmp_path / "alone", "--kind", "images")
    assert PreparedData(alone).index.details["shape"] == [20, 20, 1]


def test_held_out_images_are_left_out_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets").mkdir()
    labelled, folder = colours(tmp_path / "pets"), pictures(tmp_path / "more")
    for number in range(5):
        (folder / f"red{number}.png").write_bytes((labelled / "red" / "3.png").read_bytes())
    out = prepare(folder, tmp_path / "out", *image_options())
    both = tmp_path / "labelled"
    assert main(["data", "prepare", str(labelled), "--out", str(both), *image_options()]) == 0
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    for number, (data, paths) in enumerate(((labelled, [out]), (both, [out]), (both, [folder]))):
        (tmp_path / f"{number}").mkdir()
        task = tiny().task.open(tiny(), [data], tmp_path / f"{number}")
        read = read_unlabelled(tiny(), task, paths)
        assert read.unlabelled == 60
        train = len(opened(data, tmp_path / f"{number}").splits.rows("train"))
        assert read.labelled == train
        table = tmp_path / f"{number}.csv"
        table.write_text("path,image\n" + "".join(f"{row['path']},{row['image']}\n" for row in read.rows))
        images = read_images([table])
        assert len(images) == 60 + train
        recipe = masked("masked-images")
        stage = open_task(recipe, tmp_path / "stage", table).examples
        assert isinstance(stage, MaskedImages)
        order = stage.of("train").training_order()
        count = len(stage.splits.rows("train"))
        drawn = [n for (_, rows), _ in zip(order.endless(Shard(), 0), range(count // 8)) for n in rows.tolist()]
        assert len(set(drawn)) > 0.8 * count
        assert stage.take(np.arange(60 + train), RngKey(0, np.arange(60 + train))).inputs[0].shape[1:] == (3, 16, 16)
    (folder / "bad.png").write_bytes(b"no image")  # reported or skipped by the stage
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(folder / "black.png")
    read = read_unlabelled(tiny(), tiny().task.open(tiny(), [both], tmp_path / "1"), [folder])
    assert read.unlabelled == 62
    (folder / "bad.png").unlink()
    other = prepare(folder, tmp_path / "other", *image_options(24))
    with pytest.raises(UserError, match="contains images of 16 x 16 pixels with 3 channels, but the model takes 24"):
        read_unlabelled(tiny(), tiny().task.open(tiny(), [both], tmp_path / "1"), [other])
    table.write_text(f"path,image\n{out / 'index.json'},99\n")
    with pytest.raises(UserError, match="has no sample '99'; use an index from 0 to 64"):
        read_images([table])
    with pytest.raises(UserError, match="contains images without labels; pass it with --pretrain, or train"):
        tiny().task.open(tiny(), [out], tmp_path / "1")


def test_pretraining_reads_packed_files_and_refuses_other_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pets").mkdir()
    labelled, folder, packed = colours(tmp_path / "pets"), pictures(tmp_path / "more", 12), tmp_path / "packed"
    assert main(["data", "prepare", str(folder), "--kind", "files", "--out", str(packed)]) == 0
    sound_files.write(tmp_path / "tones" / "0.wav", sound_files.tone(200, 0.25))
    sounds = prepare(tmp_path / "tones", tmp_path / "sounds", "--kind", "sounds")
    trained: list[list[dict[str, Any]]] = []

    def record(stage: str, rows: Any, *_: Any, **options: Any) -> None:
        trained.append(list(rows))

    def first_stage(path: Path) -> None:
        options = {"progress": False, "resume": False}
        with RunDirectory(tmp_path / "run").locked():
            train_first_stage(record, path, "vision", labelled, {}, 3, 10, tmp_path / "run", Clock(), options)

    first_stage(packed)
    assert sum(Path(row["path"]).parent.name == "more" for row in trained[0]) == 12
    with pytest.raises(UserError, match="contains prepared sounds, but this recipe reads prepared images or files"):
        first_stage(sounds)
    table = tmp_path / "rows.csv"
    table.write_text(f"path,image\n{sounds / 'index.json'},0\n")
    with pytest.raises(UserError, match="sounds contains prepared sounds, not images; pass prepared images, or"):
        read_images([table])
    capsys.readouterr()
    assert main(["data", "prepare", str(sounds), "--unlabelled", "--kind", "sounds", "--out", str(tmp_path / "o")]) == 2
    assert "sounds contains prepared data; use them as they are, or pass the original" in capsys.readouterr().err


def test_held_out_sounds_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled, folder = sound_files.classes(tmp_path / "tones", 12), tmp_path / "more"
    for number in range(20):
        sound_files.write(folder / f"{number}.wav", sound_files.tone(180 + 7 * number, 0.25, number))
    (folder / "copy.wav").write_bytes((labelled / "low" / "0.wav").read_bytes())
    out, both = prepare(folder, tmp_path / "out", "--kind", "sounds"), tmp_path / "both"
    assert main(["data", "prepare", str(labelled), "--kind", "sounds", "--out", str(both)]) == 0
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    recipe = override(find_recipe("audio"), {**SIZE, "task.split.validation": 0.2})
    for number, (data, path) in enumerate(((labelled, out), (both, out), (both, folder))):
        read = read_unlabelled_sounds(recipe, open_task(recipe, tmp_path / f"{number}", data), [path])
        assert read.unlabelled == 20
        table = tmp_path / f"{number}.csv"
        table.write_text("path,sound\n" + "".join(f"{row['path']},{row['sound']}\n" for row in read.rows))
        stage = open_task(masked("masked-sounds", **{"task.seconds": 0.2}), tmp_path / "stage", table).examples
        assert isinstance(stage, MaskedSounds)
        assert len(stage.sounds) == 20 + read.labelled
        rows = next(iter(stage.of("train").training_order().endless(Shard(), 0)))[1]
        assert len(stage.take(rows, RngKey(0, np.arange(len(rows)))).inputs[0]) == 2 * len(rows)


def test_vision_is_pretrained_on_prepared_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.app.api.available", lambda: False)  # reports take longer than both trainings
    (tmp_path / "pets").mkdir()
    labelled, both = colours(tmp_path / "pets"), tmp_path / "labelled"
    out = prepare(pictures(tmp_path / "more", 20), tmp_path / "out", *image_options())
    assert main(["data", "prepare", str(labelled), "--out", str(both), *image_options()]) == 0

    def brief(stage: str, rows: Any, set: dict[str, Any], minutes: float, run: Path, **arguments: Any) -> Any:
        return hw.train(stage, rows, set={**set, **IMAGES, "train.steps": 2}, run=run, samples=0, **arguments)

    with RunDirectory(tmp_path / "run").locked():
        options = {"progress": False, "resume": False}
        settings = {"model.width": 16}
        pretrained = train_first_stage(brief, out, "vision", both, settings, 3, 10, tmp_path / "run", Clock(), options)
    settings = {**pretrained.settings, "train.steps": 2, "train.batch_size": 8, "train.precision": "fp32"}
    run = hw.train(
        "vision", both, set=settings, start=pretrained.start, run=tmp_path / "run", progress=False, samples=0
    )
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    assert cast(Any, run.recipe.model).embed.size == (16, 16)
