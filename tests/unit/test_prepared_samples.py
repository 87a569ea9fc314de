"""Images and sounds in shards: the splits and bits of the folder, started from a table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from prepared_data import PLAIN, contents
from sound_files import classes, tone, write
from vision_data import colours, opened, tiny

from headway.app.cli.main import main
from headway.config import override
from headway.data.labelled_files import read_labelled_files
from headway.data.prepared import preparation, prepared_samples, sample_shards
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.sample_shards import EncodedSample, SampleKind
from headway.domains.audio.classification import SoundDataset
from headway.domains.audio.recipes import SCALES, audio
from headway.domains.audio.sound_files import AUDIO_EXTENSIONS
from headway.domains.audio.sound_shards import SoundEncoder
from headway.domains.vision.image_shards import ImageEncoder
from headway.domains.vision.recipes import data_settings
from headway.errors import ConfigError, UserError
from headway.learn import Shard


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 images of three colours, in parts of about 10 and shards of 2 KB."""
    monkeypatch.setattr(sample_shards, "_MIN_BLOCK", 8192)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 8192)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pets").mkdir()
    return colours(tmp_path / "pets")


def prepare(
    folder: Path, out: Path, config: PrepareConfig = PLAIN, channels: int | None = None, skip: bool = False
) -> Path:
    encoder = ImageEncoder((16, 16), channels)
    has_splits = config.validation is not None
    Preparation(
        SampleKind(encoder, encoder.read([folder]), config.seed, skip, has_splits), config, out, lambda _: None
    ).run()
    return out


def test_images_have_the_splits_and_bits_of_the_folder(folder: Path, tmp_path: Path) -> None:
    out = prepare(folder, tmp_path / "out")
    index = json.loads((out / "index.json").read_text())
    assert len(index["splits"]["train"]) > 3
    assert contents(prepare(folder, tmp_path / "again")) == contents(out)
    local, prepared = opened(folder, tmp_path / "a"), opened(out, tmp_path / "b")
    for split, rows in local.splits.indices.items():
        assert (prepared.splits.indices[split] == rows).all()
    assert prepared.contents()["images"] == local.contents()["images"]
    assert prepared.processor == local.processor
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(8)):
            assert (expected.inputs[0] == batch.inputs[0]).all()
            assert (expected.targets == batch.targets).all()
    assert prepared.preview(2)[0].endswith("→ blue")


def test_stopped_and_divided_preparations_have_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, encode = contents(prepare(folder, tmp_path / "one")), ImageEncoder.encode
    for count in (0, 15, 15):
        paths: list[Path] = []

        def stop(
            self: ImageEncoder, path: Path, _: int | None, paths: list[Path] = paths, count: int = count
        ) -> EncodedSample:
            paths.append(path)
            if len(paths) > count:
                raise KeyboardInterrupt
            return encode(self, path)

        monkeypatch.setattr(ImageEncoder, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tmp_path / "stopped")
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    assert contents(prepare(folder, tmp_path / "stopped")) == expected

    def preparation_of(out: Path, joined: Path | None = None) -> Preparation:
        encoder = ImageEncoder((16, 16))
        return Preparation(SampleKind(encoder, encoder.read([folder]), 0), PLAIN, out, lambda _: None, joined)

    for part in (1, 2):
        preparation_of(tmp_path / "parts").write_part(part, 2)
    preparation_of(tmp_path / "joined", tmp_path / "parts").run()
    assert contents(tmp_path / "joined") == expected


def test_the_model_takes_the_size_of_the_prepared_images(folder: Path, tmp_path: Path) -> None:
    out = prepare(folder, tmp_path / "out", channels=1)
    examples = opened(out, tmp_path / "a", **{"model.embed.size": [32, 32]})
    assert examples.embed.size == (16, 16)
    assert examples.embed.channels == 1
    settings = data_settings(tiny(), [out], 1.0).settings
    assert (settings["model.embed.size"], settings["model.embed.channels"]) == ([16, 16], 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="contains images of 16 x 16 pixels with 1 channels, but the model takes"):
        opened(out, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"task.group='camera' is a column, which prepared data do not have"):
        opened(out, tmp_path / "c", **{"task.group": "camera"})
    grouped = opened(out, tmp_path / "c", **{"task.group": r"(\d)\."})
    assert grouped.splits.groups["train"]
    table = folder.parent / "pets.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in sorted(folder.rglob("*.*"))))
    of_table = opened(prepare(table, tmp_path / "of-table", channels=1), tmp_path / "d", **{"task.group": r"(\d)\."})
    assert of_table.splits.groups == opened(table, tmp_path / "e", **{"task.group": r"(\d)\."}).splits.groups


def test_large_data_are_shuffled_in_windows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    out = prepare(folder, tmp_path / "out")
    settings = {"train.batch_size": 2, "train.accumulate": 2}
    examples = opened(out, tmp_path / "a", **settings)
    assert examples.prepared is not None
    rows = examples.splits.rows("train")
    order = examples.of("train").training_order()
    epoch = round(len(rows) / 2)
    drawn = [index for (_, indices), _ in zip(order.endless(Shard(), 0), range(epoch)) for index in indices.tolist()]
    assert len(set(drawn)) > 0.8 * len(rows)
    again = next(order.endless(Shard(), 7))
    assert again[1].tolist() == drawn[14:16]
    # Two processes read different batches of a step, from different shards.
    assert next(order.endless(Shard(1, 2, 2), 0))[1].tolist() == drawn[2:4]
    classes = [examples.targets[rows[index]] for index in drawn[:12]]
    assert len(set(classes)) == 3  # neighbours in shards are of several classes
    assert examples.processor == opened(folder, tmp_path / "b", **settings).processor  # over all training images
    shards = examples.prepared.shards_of(examples.in_few_shards(rows, 12))
    assert set(shards.tolist()) == set(range(max(shards) + 1))
    assert 12 <= len(shards) < len(rows)
    assert np.count_nonzero(shards < max(shards)) < 12


def test_splits_may_be_decided_when_images_are_prepared(folder: Path, tmp_path: Path) -> None:
    out = prepare(folder, tmp_path / "out", PrepareConfig(validation=0.3, test=0.2))
    samples = PreparedSamples.open([out], "images")
    counts = np.bincount(samples.named_splits, minlength=4).tolist()
    assert counts[0] == 0
    assert min(counts[1:]) > 5
    shards = samples.shards_of(np.flatnonzero(samples.named_splits == 2)).tolist()
    assert {samples.shards.shards[shard].name.partition("-")[0] for shard in shards} == {"validation"}
    examples = opened(out, tmp_path / "a")
    assert len(examples.splits.rows("validation")) == counts[2]


def test_duplicates_and_bad_files(folder: Path, tmp_path: Path) -> None:
    (folder / "red" / "copy.png").write_bytes((folder / "red" / "0.png").read_bytes())
    (folder / "red" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad.png is not a supported image.*; or leave such files out with --skip"):
        prepare(folder, tmp_path / "out")
    out = prepare(folder, tmp_path / "unique", PrepareConfig(unique=True), skip=True)
    index = json.loads((out / "index.json").read_text())
    assert (index["counts"]["samples"], index["counts"]["duplicates"], index["details"]["left_out"]) == (60, 1, 1)
    assert "pets/red/copy.png" not in list(PreparedSamples.open([out], "images").names)


def test_damage_is_reported(folder: Path, tmp_path: Path) -> None:
    out = prepare(folder, tmp_path / "out")
    samples = PreparedSamples.open([out], "images")
    shard = out / "train-00000.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000.safetensors is missing; restore it from a copy, or prepare"):
        list(samples.contents(np.arange(len(samples))))
    shard.write_bytes(content[:-1] + b"\1")
    with pytest.raises(UserError, match=r"train-00000.safetensors has changed since it was prepared; restore it"):
        list(samples.contents(np.arange(len(samples))))
    table = out / "samples.safetensors"
    table.write_bytes(table.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"samples.safetensors has changed since the data were prepared; restore it"):
        PreparedSamples.open([out], "images")
    table.unlink()
    with pytest.raises(UserError, match=r"samples.safetensors is missing; restore it from a copy, or prepare"):
        PreparedSamples.open([out], "images")
    other = prepare(folder, tmp_path / "other")
    table = other / "samples.safetensors"
    content = bytearray(table.read_bytes())
    names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little") + names["positions"]["data_offsets"][0]
    content[start : start + 8] = content[start + 8 : start + 16]
    table.write_bytes(content)
    index = json.loads((other / "index.json").read_text())
    index["codec"]["samples.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"is inconsistent \(its positions are not a permutation\); prepare the data"):
        PreparedSamples.open([other], "images")
    intact = prepare(folder, tmp_path / "intact")
    index = json.loads((intact / "index.json").read_text())
    for shape, message in (([8, 8, 3], "has images of another shape than its index"), ([16, -16], "states no shape")):
        index["details"]["shape"] = shape
        (intact / "index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=message):
            opened(intact, tmp_path / "run")
    with pytest.raises(UserError, match="contains prepared images, which cannot be mixed; prepare all"):
        PreparedSamples.open([out, other], "images")


def test_sounds_have_the_splits_and_bits_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 1 << 16)
    folder = classes(tmp_path / "tones")  # at 8 kHz, so resampled to floats
    for number in range(4):
        whole = np.round(tone(300 + 50 * number, 0.25, number, 16_000) * 32767).astype(np.int16)
        write(folder / "low" / f"pcm{number}.wav", whole, 16_000)
    out, labelled = tmp_path / "out", read_labelled_files([folder], AUDIO_EXTENSIONS, "sound")
    Preparation(SampleKind(SoundEncoder(), labelled, 0), PLAIN, out, lambda _: None).run()
    settings = {"train.steps": 4, "train.batch_size": 4, "model.width": 16, "model.depth": 1, "model.heads": 2}
    recipe = override(audio(), settings)
    local, prepared = (recipe.task.open(recipe, [path], tmp_path / "run").examples for path in (folder, out))
    assert isinstance(local, SoundDataset)
    assert isinstance(prepared, SoundDataset)
    for split, rows in local.splits.indices.items():
        assert (prepared.splits.indices[split] == rows).all()
    assert prepared.sounds.keys == local.sounds.keys
    assert (prepared.sounds.lengths == local.sounds.lengths).all()
    for number in range(len(local.sounds)):
        assert (prepared.sounds[number] == local.sounds[number]).all()
    stored = json.loads((out / "index.json").read_text())["counts"]["units"]
    assert stored == sum(local.sounds.lengths) * 4 - 4 * 4000 * 2  # 16 bits where they are enough
    for expected, batch, _ in zip(local.batches("train"), prepared.batches("train"), range(4)):
        assert (expected.inputs[0] == batch.inputs[0]).all()
    settings = SCALES["audio"].data_settings(recipe, [out], 1.0)
    assert settings == SCALES["audio"].data_settings(recipe, [folder], 1.0)
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    assert len(next(iter(prepared.of("train").training_order().endless(Shard(), 0)))[1]) == 4


def test_the_command_prepares_images_that_a_recipe_trains_on(folder: Path, tmp_path: Path, brief_samples: None) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    assert main(["data", "prepare", str(folder), "--kind", "images", "--pixels", "16", "16", "--out", str(out)]) == 0
    sizes = ["model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=8", "train.steps=3"]
    settings = [part for setting in sizes for part in ("--set", setting)]
    assert main(["train", "vision", "--data", str(out), "--run", str(run), *settings]) == 0
    assert json.loads((run / "recipe.json").read_text())["model"]["embed"]["size"] == [16, 16]
    assert main(["evaluate", str(run), "--data", str(out)]) == 0
