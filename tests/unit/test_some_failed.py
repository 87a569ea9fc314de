"""One damaged image or sound among many: the others keep their answers, in Python as on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper_models
from image_text_data import COLOURS, TINY, draw
from sound_files import classes, tone, write

import headway as hw
from headway.app.cli import main as cli
from headway.domains import recipe as find_recipe
from headway.domains.image_text.recipes import captioner
from headway.domains.vision import Image as Given
from headway.formats.published import save_published
from headway.io.arguments import fill_failures
from headway.nn.models import build
from headway.nn.models.presets import vit

Image = pytest.importorskip("PIL.Image")
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}
TEXTS = ["a bright red picture", "a dark blue picture"]


@pytest.fixture
def files(tmp_path: Path) -> list[Given]:
    """Twenty images of which the first is cut off, the fourth is not there and the last is no image."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (8 + number % 3, 9, 3), dtype=np.uint8)).save(path)
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    paths[3].unlink()
    paths[19].write_bytes(b"no image")
    return list(paths)


def others(files: list[Given]) -> list[Given]:
    return [file for place, file in enumerate(files) if place not in (0, 3, 19)]


def failed(ask: Any) -> hw.PartialFailureError:
    with pytest.raises(hw.PartialFailureError) as told:
        ask()
    found = told.value
    assert set(found.errors) == {0, 3, 19}
    assert str(found).endswith("(3 of 20 images failed; .results has the results of the others)")
    assert "3.png is not a file" in str(found.errors[3])
    return found


def test_classes_and_vectors_of_images(files: list[Given], tmp_path: Path) -> None:
    save_published(build(vit(16, 2, 2, 4, classes=3, size=8)), vit(16, 2, 2, 4, classes=3, size=8), tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    model = hw.load(tmp_path / "vit")
    found = failed(lambda: model.classify(files)).results
    assert [place for place, row in enumerate(found) if row is None] == [0, 3, 19]
    assert [row for row in found if row] == [pytest.approx(row, abs=1e-6) for row in model.classify(others(files))]
    vectors = failed(lambda: model.embed(files)).results
    assert vectors.isnan().all(1).nonzero().flatten().tolist() == [0, 3, 19]
    torch.testing.assert_close(vectors[[1, 2, 4]], model.embed(files[1:3] + files[4:5]))
    for alone in (files[0], [files[0]]):
        with pytest.raises(hw.UserError, match=r"0\.png") as told:
            model.classify(alone)
        assert not isinstance(told.value, hw.PartialFailureError)
    with pytest.raises(hw.UserError, match="image 2 is a dict") as told:  # what is no image at all is said at once
        model.classify([files[1], {}])  # type: ignore[list-item]
    assert not isinstance(told.value, hw.PartialFailureError)


def test_matches_and_common_vectors(files: list[Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**TINY, "train.steps": 1, "task.captions": 2, "task.augment": {}, "task.split.test": 0.0}
    hw.train("image-text", draw(tmp_path / "seen"), settings, run=tmp_path / "run", progress=False, samples=0)
    model = hw.load(tmp_path / "run")
    found = failed(lambda: model.match(files, TEXTS)).results
    assert found.probabilities.shape == (20, 2)
    assert found.similarities.isnan().all(1).nonzero().flatten().tolist() == [0, 3, 19]
    kept = ~found.probabilities.isnan().any(1)
    torch.testing.assert_close(found.probabilities[kept], model.match(others(files), TEXTS).probabilities)
    assert failed(lambda: model.match(files, TEXTS[0])).results.similarities.shape == (20,)

    paths = [*map(str, files[:2]), "a text", *map(str, files[4:6])]
    with pytest.raises(hw.PartialFailureError) as told:
        model.embed(paths)
    torch.testing.assert_close(told.value.results[1:], model.embed(paths[1:]))
    assert told.value.errors.keys() == {0}
    asked = ["match", str(tmp_path / "run"), "--image", *map(str, files), "--text", *COLOURS, "--json"]
    assert cli.main(asked) == cli.USER_ERROR
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(said["images"]) == len(said["probabilities"]) == 17
    assert len(said["errors"]) == 3


def test_captions(files: list[Given], tmp_path: Path) -> None:
    recipe = replace(find_recipe("scenes"), model=captioner(16, (1, 1), 2, 64, 16, 24))
    few = {
        "task.train": 20,
        "task.validation": 2,
        "task.test": 2,
        "task.beam": 1,
        "train.steps": 1,
        "train.batch_size": 4,
    }
    hw.train(recipe, set=few, run=tmp_path / "run", progress=False, samples=0)
    model = hw.load(tmp_path / "run", backend="torch")
    found = failed(lambda: model.caption(files, beam=1)).results
    assert [place for place, text in enumerate(found) if text is None] == [0, 3, 19]
    assert [text for text in found if text is not None] == model.caption(others(files), beam=1)


def test_sounds(tmp_path: Path) -> None:
    sounds = [write(tmp_path / f"{number}.wav", tone(300 + number, 0.2)) for number in range(3)]
    sounds[1].write_bytes(sounds[1].read_bytes()[:900])
    model = hw.load(whisper_models.folder(tmp_path / "whisper"), backend="torch")
    with pytest.raises(hw.PartialFailureError, match=r"1\.wav .* \(1 of 3 sounds failed") as told:
        model.transcribe(sounds, language="en", beam=1)
    assert told.value.results[1] is None
    assert told.value.results[2] == model.transcribe(sounds[2], language="en", beam=1)

    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 1, "train.batch_size": 4}
    hw.train("audio", classes(tmp_path / "data"), settings, run=tmp_path / "run", progress=False, samples=0)
    model = hw.load(tmp_path / "run")
    with pytest.raises(hw.PartialFailureError) as told:
        model.classify([*sounds, tmp_path / "none.wav"])
    assert told.value.errors.keys() == {1, 3}
    assert told.value.results[2] == pytest.approx(model.classify(sounds[2]), abs=1e-6)


def test_places_are_filled_in_every_kind_of_answer() -> None:
    wrong = {1: hw.UserError("no")}
    assert fill_failures(["a", "c"], wrong, 3) == ["a", None, "c"]
    assert fill_failures([], {0: wrong[1]}, 1) == [None]
    assert fill_failures(torch.ones(2, 2), wrong, 3).isnan().sum() == 2
