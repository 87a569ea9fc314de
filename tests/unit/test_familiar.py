"""What lies beyond what a model met in training is said, once, and never where nothing does."""

from __future__ import annotations

import base64
import json
import wave
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from serve_models import asking, ready

import headway as hw
from headway.app.cli import main as cli
from headway.codecs.image_processor import write_image
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.audio.classification import crop_to_window, sound_statistics
from headway.domains.vision.recipes import small_vit
from headway.formats.out_of_distribution import (
    SampleStatistics,
    TrainingStatistics,
    image_statistics,
    read_training_statistics,
    stack_image_statistics,
)


def test_unseen_symbols_and_longer_texts() -> None:
    met = TrainingStatistics.from_ids(np.array([0, 1, 2, 2]), 8, max_length=3, special_tokens=(7, None))
    assert met.unseen == (3, 4, 5, 6)
    assert met.unexpected_texts(["a", "b"], [[0, 1, 7], [2, 2, 1]]) == []
    long, strange = met.unexpected_texts(["a", "b b b b", "c"], [[0, 1], [2, 2, 2, 2], [3, 0, 1]])
    assert long.startswith("longer than any text in training: 1 of 3, with up to 4 tokens")
    assert "1 of 3, such as 'c'" in strange
    assert met.unexpected_texts(["six"], [[3, *[0] * 2]])  # a third of them
    assert TrainingStatistics(None, (3,)).unexpected_texts(["rare"], [[3, *[0] * 9]]) == []  # a tenth: one rare word
    assert TrainingStatistics().unexpected_texts(["any"], [[1] * 1000]) == []


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    words = ["one", "two", "three", "four", "five"]
    lines = [f"{a} {b}\t{b} {a}" for a in words for b in words]
    (folder / "pairs.tsv").write_text("\n".join(lines * 4) + "\n")
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("translation", data=folder / "pairs.tsv", set=settings, run=folder / "run", samples=0, progress=False)
    return folder / "run"


def test_a_translator_says_so_once(
    translator: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_training_statistics(translator).longest
    ask = ["translate", str(translator), "--beam", "1", "--json"]
    monkeypatch.setattr("sys.stdin", StringIO("one two\nthree one\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert json.loads(told.out)["beyond"] == []
    monkeypatch.setattr("sys.stdin", StringIO(""))
    assert cli.main(ask) == cli.USER_ERROR
    assert "no text to translate; pass text" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", StringIO("Привет мир\n" + "one two three " * 5 + "\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert len(json.loads(told.out)["beyond"]) == 2


def test_a_language_model_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{number} birds sang in the trees.\n" for number in range(300)))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("text", data=book, set=settings, run=tmp_path / "run", samples=0, progress=False)
    model = hw.load(tmp_path / "run", backend="torch")
    model.generate("12 birds sang", max_new_tokens=1)
    assert not model.unexpected
    model.generate("世界你好", max_new_tokens=1)
    model.generate("世界你好", max_new_tokens=1)
    assert len(model.unexpected) == 1
    assert sum("never occurred in training" in record.message for record in caplog.records) == 1


def texture(rng: np.random.Generator, size: int = 12) -> np.ndarray:
    """A bright spot at any place of a dark image, with a little noise."""
    y, x = np.mgrid[:size, :size]
    at = rng.uniform(4, size - 4, 2)
    spot = 200 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / rng.uniform(4, 9))
    return (spot + rng.uniform(0, 20, (size, size))).clip(0, 255).astype(np.uint8)[:, :, None]


def test_what_looks_like_no_training_image_is_told() -> None:
    rng = np.random.default_rng(0)
    alike = SampleStatistics.fit(stack_image_statistics(texture(rng) for _ in range(600)))
    assert alike is not None
    assert alike.find_outliers(stack_image_statistics(texture(rng) for _ in range(1000))).mean() < 0.01
    noise = rng.integers(0, 256, (20, 12, 12, 1), dtype=np.uint8)
    blank = [np.full((12, 12, 1), level, np.uint8) for level in (0, 10, 128, 255)]
    inverted = [255 - texture(rng) for _ in range(20)]
    for strange in (noise, blank, inverted):
        assert alike.find_outliers(stack_image_statistics(strange)).all()
    assert SampleStatistics.fit(np.stack([image_statistics(texture(rng))] * 99)) is None
    met = TrainingStatistics(alike=alike)
    assert met.unexpected_samples(["a"], stack_image_statistics([texture(rng)])) == []
    brighter = "much brighter than the images in training"
    told = met.describe_images(stack_image_statistics([texture(rng), inverted[0], blank[2], noise[0]]))
    assert told == [None, brighter, brighter, brighter]
    assert TrainingStatistics().describe_images(stack_image_statistics(noise[:2])) == [None, None]
    assert met.unexpected_samples(["a", "b"], stack_image_statistics([texture(rng), noise[0]]))[0].startswith(
        "unlike the images in training: 1 of 2, such as b"
    )


def file_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def test_a_classifier_of_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, data = np.random.default_rng(1), tmp_path / "data"
    for number in range(150):
        place = data / ("train" if number < 130 else "test") / ("light" if number % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        write_image(np.repeat(texture(rng) // (1 + number % 2), 3, axis=2), place / f"{number}.png")
    settings = {"train.steps": 1, "train.batch_size": 8, "train.precision": "fp32"}
    model = small_vit(width=16, depth=1, heads=2, patch=4, size=12)
    recipe = override(replace(find_recipe("vision"), model=model), settings)
    hw.train(recipe, data=data, run=tmp_path / "run", samples=0, progress=False)
    write_image(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), tmp_path / "noise.png")
    ask = ["classify", "--json", str(tmp_path / "run")]
    assert cli.main([*ask, str(data / "test")]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"] == []
    assert cli.main([*ask, str(tmp_path / "noise.png")]) == cli.DONE
    (line,) = json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"]
    assert line.startswith("unlike the images in training: 1 of 1")
    assert "noise.png" in line
    usual, unlike = (file_url(file) for file in (next((data / "test" / "light").iterdir()), tmp_path / "noise.png"))
    with asking(ready(tmp_path / "run", "lights")) as client:
        answer = client.post("/v1/classify", json={"items": [usual, unlike]}).json()
        assert answer["unexpected"] == [None, "much brighter than the images in training"]
        assert client.post("/v1/classify", json={"items": usual}).json()["unexpected"] == [None]

    judge = ["evaluate", str(tmp_path / "run"), "--json", "--data"]
    assert cli.main([*judge, str(data)]) == cli.DONE
    told = capsys.readouterr()
    scores = json.loads(told.out.splitlines()[-1])
    assert (scores["split"], scores["samples"]) == ("test", 20)
    assert f"evaluated on the test split of {data}; --split all uses all of it" in told.err
    (data / "test").rename(data / "val")
    judged = [
        (data, [], ("validation", 20)),
        (data / "val", [], ("all", 20)),
        (data, ["--split", "all"], ("all", 150)),
    ]
    for folder, more, found in judged:
        assert cli.main([*judge, str(folder), *more]) == cli.DONE
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (scores["split"], scores["samples"]) == found


def spoken(rng: np.random.Generator) -> np.ndarray:
    """Half a second of a voice: overtones of a low tone that falls, in two formants, at some loudness."""
    time = np.arange(8000) / 16000
    pitch = rng.uniform(90, 220) * (1.1 - 0.4 * time)
    phase, formants = 2 * np.pi * np.cumsum(pitch) / 16000, rng.uniform((300, 1000), (800, 2400))
    voice = np.zeros(8000)
    for number in range(1, 25):
        near = np.exp(-(((number * pitch.mean() - formants[:, None]) / 300) ** 2)).sum()
        voice += near / number * np.sin(number * phase)
    shape = np.sin(np.pi * np.arange(8000) / 8000) ** rng.uniform(0.5, 2)
    loud = 10 ** rng.uniform(-2, -0.5)
    return (loud * (voice * shape / np.abs(voice).max() + rng.normal(0, 3e-3, 8000))).astype(np.float32)


def write_wav(path: Path, sound: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((sound.clip(-1, 1) * 32767).astype("<i2").tobytes())


def test_what_sounds_like_no_training_sound_is_told() -> None:
    rng, time = np.random.default_rng(0), np.arange(8000) / 16000

    def glances(sounds: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack([sound_statistics(torch.from_numpy(each).float()) for each in sounds])

    alike = SampleStatistics.fit(glances(spoken(rng) for _ in range(200)))
    assert alike is not None
    held_out = [spoken(rng) for _ in range(100)]
    for loudness in (1.0, 0.5):
        assert alike.find_outliers(glances(loudness * each for each in held_out)).mean() <= 0.02
    tone = [np.sin(2 * np.pi * pitch * time) for pitch in (220, 1000, 3000)]
    chord = [sum(np.sin(2 * np.pi * pitch * time) for pitch in (262, 330, 392)) * np.exp(-3 * time)]
    noise = [rng.normal(0, size, 8000) for size in (1e-4, 0.01, 0.3)]
    assert alike.find_outliers(glances([*tone, *chord, *noise, np.zeros(8000)])).all()
    assert glances([np.zeros(3)]).shape == glances([np.zeros(8000)]).shape  # shorter than a frame


def test_a_long_sound_is_heard_in_its_middle() -> None:
    sound = torch.arange(1000.0)
    assert crop_to_window(sound, 10).equal(sound)
    assert crop_to_window(sound, 2).equal(sound[340:660])


def test_a_classifier_of_sounds_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng, data = np.random.default_rng(1), tmp_path / "data"
    for number in range(150):
        place = data / ("train" if number < 130 else "test") / ("odd" if number % 2 else "even")
        place.mkdir(parents=True, exist_ok=True)
        write_wav(place / f"{number}.wav", spoken(rng))
    settings = {"train.steps": 1, "train.batch_size": 8, "train.precision": "fp32", "model.width": 16, "model.heads": 2}
    hw.train("audio", data, {**settings, "model.depth": 1}, run=tmp_path / "run", samples=0, progress=False)
    write_wav(tmp_path / "noise.wav", rng.normal(0, 0.1, 8000))
    ask = ["classify", "--json", str(tmp_path / "run")]
    assert cli.main([*ask, *map(str, sorted((data / "test").glob("*/*.wav")))]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"] == []
    assert cli.main([*ask, str(tmp_path / "noise.wav")]) == cli.DONE
    (line,) = json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"]
    assert line.startswith("unlike the sounds in training: 1 of 1")
    assert "noise.wav" in line
    assert [record.message for record in caplog.records].count(line) == 1
    model = hw.load(tmp_path / "run")
    model.classify([spoken(rng), np.zeros(8000, np.float32)])
    assert model.unexpected == ["unlike the sounds in training: 1 of 2, such as sound 2; do not trust the labels"]


def test_a_classifier_of_texts_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{number} birds sang,sound" for number in range(60)] + [
        f"{number} trees stood,sight" for number in range(60)
    ]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 1}
    hw.train("classification", tmp_path / "texts.csv", settings, run=tmp_path / "run", samples=0, progress=False)
    model = hw.load(tmp_path / "run")
    model.classify("birds sang birds sang birds sang birds sang birds sang birds sang")
    assert not model.unexpected  # a longer text is nothing strange
    model.classify(["3 birds", "世界你好"])
    model.classify("世界你好")
    assert [line[:46] for line in model.unexpected] == ["with tokens that never occurred in training: 1"]
    assert sum("never occurred in training" in record.message for record in caplog.records) == 1


def test_an_empty_text_has_no_attention(translator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text("".join(f"{number} birds sang in the trees.\n" for number in range(300)))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 1}
    hw.train("text", data=tmp_path / "book.txt", set=settings, run=tmp_path / "run", samples=0, progress=False)
    capsys.readouterr()
    for run in (translator, tmp_path / "run"):
        assert cli.main(["attention", str(run), str(tmp_path / "a.png"), "--text", " "]) == cli.USER_ERROR
        assert capsys.readouterr().err.strip() == "headway: the text is empty; pass at least one word"
