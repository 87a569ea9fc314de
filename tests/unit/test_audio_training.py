"""Classes of sounds: what is read, what is refused, what is drawn, and what a run learns and shows."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("soundfile")

import whisper_models
from sound_files import classes, digits, tone, write
from tiny_runs import cut_back, weights

import headway as hw
from headway.app.cli import main as cli
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.audio.augmentation import (
    SoundAugmentConfig,
    add_noise,
    augment_spectrogram,
    augmentation_rng,
    change_speed_and_gain,
    delay,
    fit_to_window,
    mask_spectrogram,
)
from headway.domains.audio.classification import SoundDataset, window_frames
from headway.domains.audio.mel import HOP, log_mel, mel_filters, warped_bands
from headway.domains.audio.sequences import read_takes
from headway.domains.audio.sound_files import open_sounds, read_sound
from headway.errors import ConfigError, UserError
from headway.learn import Shard
from headway.learn.examples import RngKey
from headway.learn.recipe import open_task
from headway.nn.models import build

SMALL = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch_size": 4,
    "train.steps": 4,
    "train.precision": "fp32",
    "task.split.validation": 0.25,
    "task.split.test": 0.2,
}


def task_of(data: Path | list[Path], settings: dict[str, Any] | None = None, name: str = "audio") -> SoundDataset:
    recipe = override(find_recipe(name), {**SMALL, **(settings or {})})
    task = open_task(recipe, Path("/nowhere"), data)  # type: ignore[arg-type]
    assert isinstance(task.examples, SoundDataset)
    return task.examples


def seen(sounds: SoundDataset, rows: list[int], places: list[int] | None = None) -> torch.Tensor:
    """What a model hears of rows; of training where places in its stream are given."""
    return sounds.take(np.array(rows), None if places is None else RngKey(0, np.array(places))).inputs[0]


def test_the_cache_holds_what_files_of_every_kind_say(tmp_path: Path) -> None:
    sound = tone(300, rate=96000)
    both = np.stack([sound, -0.5 * sound], 1)
    files = [
        write(tmp_path / "stereo.wav", both, 96000),
        write(tmp_path / "eight_bits.wav", tone(300), subtype="PCM_U8"),
        write(tmp_path / "floats.wav", 1.5 * tone(300), subtype="FLOAT"),
        write(tmp_path / "a.flac", tone(400)),
        write(tmp_path / "a.ogg", tone(400, 0.5), 16000),
        write(tmp_path / "a.mp3", tone(400, 0.5), 16000),
    ]
    for _ in range(2):  # made, then found
        sounds = open_sounds(files)
        for number, file in enumerate(files):
            assert torch.equal(sounds[number], read_sound(file))
    assert sounds.lengths.tolist() == [len(read_sound(file)) for file in files]
    assert len(list((tmp_path / "cache").glob("sounds-*/"))) == 1


def test_what_is_no_sound_is_an_error_or_is_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = classes(tmp_path / "data")
    good = task_of(folder)
    (folder / "low" / "broken.wav").write_bytes(b"RIFF and then nothing of use")
    write(folder / "high" / "empty.wav", np.zeros(0, np.float32))
    with pytest.raises(
        UserError, match=r"(broken|empty)\.wav (is not a readable audio file|has 0 samples).*task\.skip_bad=true"
    ):
        task_of(folder)
    with caplog.at_level(logging.WARNING):
        task = task_of(folder, {"task.skip_bad": True})
    assert "skipped 2 of 18 audio files that cannot be read" in caplog.text
    assert len(task.files) == len(good.files) == 16
    assert not {"broken.wav", "empty.wav"} & {task.describe_row(row) for row in range(16)}
    for row, path in enumerate(task.files):  # what is left out does not move the others
        assert task.labels[task.classes[row]] == path.parent.name
        wanted = window_frames(fit_to_window(read_sound(path), task.frames * HOP), task.frames, 80)
        torch.testing.assert_close(seen(task, [row])[0], wanted)
    with pytest.raises(UserError, match=r"is not a readable audio file|0 samples"):  # also where the cache knows it
        task_of(folder)


def test_classes_without_sounds_are_named(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", each=2)
    (folder / "none").mkdir()
    with pytest.raises(UserError, match="none has no sound"):
        task_of(folder)
    (folder / "none" / "bad.wav").write_bytes(b"no")
    with pytest.raises(UserError, match="no sound in class 'none' is readable"):
        task_of(folder, {"task.skip_bad": True})


def test_the_window_is_that_of_the_longest_sound(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data")
    task = task_of(folder)
    assert task.frames == 24  # 0.24 s
    assert seen(task, [0, 1, 2]).shape == (3, 24, 80)
    model = task.adapt(override(find_recipe("audio"), SMALL).model)
    assert model.context == 12  # type: ignore[attr-defined]
    longest = write(folder / "low" / "long.wav", tone(200, 0.5))
    with pytest.raises(UserError, match=r"long\.wav is 0\.50 s long, but the model's window is 0\.3 s.*task\.crop"):
        task_of(folder, {"task.seconds": 0.3})
    cut = task_of(folder, {"task.seconds": 0.3, "task.crop": True})
    row = cut.files.index(longest)
    middle = read_sound(longest)[1600:6400]
    torch.testing.assert_close(seen(cut, [row])[0], window_frames(fit_to_window(middle, 30 * HOP), 30, 80))


def test_batches_are_a_function_of_seed_and_place(tmp_path: Path) -> None:
    loud = {
        "task.augment": {
            "shift": 0.02,
            "gain": 6.0,
            "speeds": [0.9, 1.0, 1.1],
            "noise": [10.0, 40.0],
            "time_masks": 1,
            "band_masks": 1,
        }
    }
    folder = classes(tmp_path / "data")
    task = task_of(folder, loud)
    stream = task.batches("train")
    batches = [next(stream) for _ in range(6)]
    for start in (1, 4):  # wherever one begins, and whoever reads it
        assert torch.equal(*next(task_of(folder, loud).batches("train", start=start)).inputs, *batches[start].inputs)
    assert torch.equal(*next(task.batches("train", Shard(1, 2), 2)).inputs, *batches[3].inputs)
    one, two = seen(task, [0, 0], [5, 6])
    assert not torch.equal(one, two)
    assert torch.equal(*seen(task, [0, 0]))
    other = task_of(folder, {**loud, "train.seed": 7})
    assert not torch.equal(seen(task, [0, 0], [5, 5]), seen(other, [0, 0], [5, 5]))


def test_what_augmentation_changes() -> None:
    sound, none = torch.from_numpy(tone(300, rate=16000)), SoundAugmentConfig()
    assert torch.equal(
        add_noise(change_speed_and_gain(sound, none, augmentation_rng(0, 1)), len(sound), none, augmentation_rng(0, 1)),
        sound,
    )
    slow = change_speed_and_gain(sound, SoundAugmentConfig(speeds=(0.5,)), augmentation_rng(0, 1))
    assert len(slow) == 2 * len(sound)
    louder = change_speed_and_gain(sound, SoundAugmentConfig(gain=6.0), augmentation_rng(0, 1))
    ratio = float(louder.std() / sound.std())
    assert ratio != 1
    assert 10 ** (-6 / 20) <= ratio <= 10 ** (6 / 20)
    window = F.pad(sound, (len(sound), len(sound)))  # silence around a sound does not count
    noise = add_noise(window, len(sound), SoundAugmentConfig(noise=(20.0, 20.0)), augmentation_rng(0, 1)) - window
    assert float(noise.std() / sound.square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(fit_to_window(sound, len(sound) + 100)[50:-50], sound)
    starts = {
        int((fit_to_window(sound, len(sound) + 400, 0.01, augmentation_rng(0, i)) != 0).nonzero()[0]) for i in range(30)
    }
    assert len(starts) > 5
    assert 40 <= min(starts) <= max(starts) <= 360  # at most 160 samples from the middle
    later = [delay(sound, len(sound) + 9, SoundAugmentConfig(shift=0.2), augmentation_rng(0, i)) for i in range(99)]
    assert {len(x) - len(sound) for x in later} == set(range(10))
    assert all(torch.equal(x[-len(sound) :], sound) and not x[: -len(sound)].any() for x in later)
    frames = torch.randn(50, 80)
    marked = mask_spectrogram(
        frames, SoundAugmentConfig(time_masks=1, time_width=0.1, band_masks=1, band_width=8), augmentation_rng(0, 3)
    )
    hidden = marked != frames
    assert torch.all(marked[hidden] == frames.mean())
    assert hidden.all(1).sum() <= 10
    assert 0 < hidden.all(0).sum() <= 8
    for wrong in (
        {"gain": -1.0}, {"speeds": (3.0,)}, {"noise": (5.0, 1.0)}, {"warp": 0.6}, {"warp": -0.1}, {"equalizer": -3.0}
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SoundAugmentConfig(**wrong)  # type: ignore[arg-type]


def test_another_vocal_tract_moves_formants_and_keeps_the_highest_band() -> None:
    """Jaitly and Hinton 2013, equation 1."""
    centres = mel_filters(80).double() @ (torch.arange(201.0).double() * 40)
    centres /= mel_filters(80).double().sum(1)
    for factor in (0.85, 1.0, 1.1):
        warped = warped_bands(80, factor).double() @ centres
        torch.testing.assert_close(warped[20:50], factor * centres[20:50], rtol=0.02, atol=0)
        assert bool((warped.diff() >= 0).all())
        torch.testing.assert_close(warped_bands(80, factor).sum(1), torch.ones(80))
    assert float(warped_bands(80, 1.0).diagonal().min()) > 0.999
    assert warped_bands(1, 1.1).tolist() == [[1.0]]
    tones = [log_mel(torch.from_numpy(tone(hertz, rate=16000)), 80)[20] for hertz in (1000, 1100)]
    low, high = (int(frame.argmax()) for frame in (tones[0], tones[1]))
    assert abs(int((warped_bands(80, 1 / 1.1) @ tones[0]).argmax()) - high) <= 1 < high - low
    assert len({float(warped_bands(80, factor)[30].argmax()) for factor in (0.9, 1.1)}) == 2


def test_an_equalizer_changes_bands_smoothly_and_keeps_silence() -> None:
    noise = 0.01 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    sound = torch.cat([torch.zeros(4000), torch.from_numpy(tone(300, 1.0, rate=16000)) + noise])
    frames = log_mel(sound, 80)
    config = SoundAugmentConfig(equalizer=6.0)
    other = augment_spectrogram(frames, config, augmentation_rng(0, 1))
    assert torch.equal(other[:20], frames[:20])  # silence
    gains = (other - frames)[40:-5]
    torch.testing.assert_close(gains, gains[:1].expand_as(gains), atol=1e-5, rtol=0)
    assert 0 < float(gains.abs().max()) <= 6 / 40  # a tenth of the logarithm is a decibel, and frames are quarters
    assert float(gains[0].diff(n=2).abs().max()) < 0.02
    assert not torch.equal(augment_spectrogram(frames, config, augmentation_rng(0, 2)), other)
    plain = SoundAugmentConfig(time_masks=1, band_masks=2)
    assert torch.equal(
        augment_spectrogram(frames, plain, augmentation_rng(0, 1)),
        mask_spectrogram(frames, plain, augmentation_rng(0, 1)),
    )


def test_the_sets_own_split_and_one_speaker_held_out(tmp_path: Path) -> None:
    folder = digits(tmp_path / "digits", takes=7)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.writestr("repository/README.md", "no sound")
        for file in folder.iterdir():
            packed.write(file, f"repository/recordings/{file.name}")
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as archive:
        note = tarfile.TarInfo("recordings/notes.txt")
        note.size = 2
        archive.addfile(note, io.BytesIO(b"no"))
        archive.add(folder, "recordings")
    found = [read_takes([tmp_path / name]) for name in ("digits", "set.zip", "set.tar.xz")]
    assert len({tuple(file.name for file in takes.files) for takes in found}) == 1
    assert len(found[0].files) == 140
    settings = {"task.seconds": 0.3, "task.split.test": 0.0}
    task = task_of(folder, settings, "spoken-digits")
    assert {int(task.files[row].stem[-1]) for row in task.splits.indices["test"]} == {0, 1, 2, 3, 4}
    assert {
        int(task.files[row].stem[-1]) for split in ("train", "validation") for row in task.splits.indices[split]
    } == {
        5,
        6,
    }
    out = task_of(folder, {**settings, "task.hold_out": "bert"}, "spoken-digits")
    assert {task.files[row].stem.split("_")[1] for row in out.splits.indices["test"]} == {"bert"}
    assert len(out.splits.indices["test"]) == 70
    assert {task.files[row].stem.split("_")[1] for row in out.splits.indices["train"]} == {"anna"}
    with pytest.raises(UserError, match=r"no speaker 'berd'; did you mean 'bert'"):
        task_of(folder, {"task.hold_out": "berd"}, "spoken-digits")
    with pytest.raises(UserError, match="has no recordings with names like"):
        read_takes([classes(tmp_path / "other", 1)])
    (tmp_path / "cut.zip").write_bytes((tmp_path / "set.zip").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cut\.zip is damaged"):
        read_takes([tmp_path / "cut.zip"])


def test_one_batch_is_learned_by_heart(tmp_path: Path) -> None:
    recipe = override(find_recipe("audio"), {**SMALL, "task.augment": {}})
    task = open_task(recipe, Path("/nowhere"), classes(tmp_path / "data"))
    model = build(task.adapt(recipe.model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = task.loss(model, batch)["loss"]
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    assert float(loss.total.detach()) / loss.count < 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells low tones from high ones."""
    place = tmp_path_factory.mktemp("runs")
    settings = {**SMALL, "train.steps": 60, "train.checkpoint_every": 20, "train.keep_checkpoints": 9, "optim.lr": 1e-2}
    settings |= {"task.augment.time_masks": 0, "task.augment.band_masks": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(place / "cache"))
        hw.train("audio", classes(place / "data"), settings, run=place / "run", progress=False, samples=4)
    return place / "run"


def test_a_run_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    before = cut_back(run, tmp_path / "run", 20)
    data = run.parent / "data"
    hw.train("audio", data, None, run=before, resume=True, progress=False, samples=0)
    ours, wanted = weights(before), weights(run)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_a_run_is_judged_and_shown(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    assert {"accuracy", "f1", "loss"} <= set(summary["scores"])
    assert all(set(sample) >= {"source", "output", "reference"} for sample in summary["samples"])
    page = (run / "report.html").read_text()
    assert "Confusions" in page
    assert page.count("data:image/png;base64,") == 2


def test_files_and_samples_are_classified(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write(tmp_path / "a.wav", tone(220, 0.2, 99)), write(tmp_path / "b.flac", tone(920, 0.2, 98))]
    model = hw.load(run)
    found = model.classify(files)
    assert [next(iter(row)) for row in found] == ["low", "high"]
    assert [sum(row.values()) for row in found] == pytest.approx([1, 1])
    assert model.classify([read_sound(files[0]).numpy()])[0] == pytest.approx(found[0], abs=1e-6)
    assert model.classify(files[0]) == pytest.approx(found[0], abs=1e-6)
    assert cli.main(["classify", str(run), *map(str, files), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [next(iter(row["labels"])) for row in said] == ["low", "high"]
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    assert cli.main(["classify", str(run), str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == said
    (tmp_path / "empty").mkdir()
    assert cli.main(["classify", str(run), str(tmp_path / "empty")]) == 2
    assert "empty contains no audio files (.wav, .flac" in capsys.readouterr().err


def test_what_cannot_be_classified_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = hw.load(run)
    long = write(tmp_path / "long.wav", tone(220, 1.0))
    for item, message in (
        (tmp_path / "none.wav", r"none\.wav is not a file; pass an audio file"),
        (long, r"long\.wav is 1\.00 s long, but the model's window is 0\.24 s"),
        (np.zeros((2, 100), np.float32), r"float32 of shape \(2, 100\)"),
        (np.array([0.0, np.nan]), "NaN or infinite samples"),
        (3, "sound 1 is int64 of shape"),
        (None, "sound 1 is a NoneType"),
    ):
        with pytest.raises(UserError, match=message):
            model.classify([item])  # type: ignore[list-item]
    assert next(iter(model.classify([long], truncate=True)[0])) == "low"
    assert cli.main(["classify", str(run), str(long)]) == 2
    assert "but the model's window is" in capsys.readouterr().err


def test_a_classifier_starts_from_the_encoder_of_a_whisper(tmp_path: Path) -> None:
    start, data = whisper_models.folder(tmp_path / "whisper"), classes(tmp_path / "data")
    settings = {"train.steps": 1, "train.frozen": ["embed", "stack"], "train.batch_size": 4, "train.precision": "fp32"}
    recipe = find_recipe("audio")
    run = hw.train(recipe, data, set=settings, start=start, run=tmp_path / "run", progress=False, samples=0)
    encoder = whisper_models.model().encoder
    model = hw.load(run.directory)
    ours, theirs = dict(model.module.named_parameters()), dict(encoder.named_parameters())
    assert {name for name in ours if name not in theirs} == {
        "heads.classes.project.weight",
        "heads.classes.project.bias",
    }
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    task = run.task
    assert task is not None
    assert isinstance(task.examples, SoundDataset)
    assert task.examples.frames == 2 * model.module.config.context < 100  # that of the longest sound
    file = sorted((data / "low").iterdir())[0]
    assert set(model.classify([file])[0]) == {"low", "high"}
    again = hw.train(recipe, data, set=settings, start=run.directory, run=tmp_path / "again", progress=False, samples=0)
    assert again.recipe.model.context == model.module.config.context
