"""A published model of images at work: classes of files by the Python face and the command line."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import headway as hw
from headway.app.cli import main as cli
from headway.codecs.image_processor import ImageProcessor, read_image
from headway.domains.vision import attribution
from headway.errors import UserError
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.nn.models import build
from headway.nn.models.presets import deit, vit

Image = pytest.importorskip("PIL.Image")
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2}
LABELS = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model whose classifier says something."""
    place = tmp_path_factory.mktemp("models") / "vit"
    config = vit(16, 2, 2, 4, classes=3, size=8)
    model = build(config)
    weight = model.heads["classes"].project.weight  # type: ignore[index,union-attr]
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    save_published(model, config, place, Usage(labels=LABELS, processor=PROCESSOR))
    return place


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """More images than are computed at once, of several sizes and kinds."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [place / f"{i}.png" for i in range(19)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (9 + i, 30 - i, 3 + i % 2), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def test_files_and_pixels_get_the_probabilities_of_the_model(folder: Path, files: list[str]) -> None:
    model = hw.load(folder)
    found = model.classify(files)
    read = ImageProcessor.read(PROCESSOR, "")
    inputs = torch.from_numpy(np.stack([read(read_image(path)) for path in files]))
    with torch.inference_mode():
        wanted = model.module.output("classes", inputs).softmax(-1)  # type: ignore[union-attr]
    for row, values in zip(found, wanted):
        assert list(row.values()) == sorted(row.values(), reverse=True)
        assert [row[name] for name in LABELS] == pytest.approx(values.tolist(), abs=1e-6)
    assert model.classify([read_image(files[3]), Path(files[4])]) == [
        pytest.approx(row, abs=1e-6) for row in model.classify(files[3:5])
    ]
    assert model.classify(files[3]) == pytest.approx(found[3], abs=1e-6)
    stack = np.stack([read_image(files[3])] * 2)
    assert model.classify(stack) == [pytest.approx(model.classify(stack[0]), abs=1e-6)] * 2
    assert model.classify([]) == []


def test_images_of_several_sizes_are_one_call(folder: Path, tmp_path: Path) -> None:
    """A processor that keeps the shape gives inputs of many grids."""
    model = hw.load(folder)
    model.usage.processor.update(do_resize=False)
    rng = np.random.default_rng(1)
    some = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((8, 8, 3), (12, 20, 3), (12, 20, 3), (4, 8, 3))]
    together, alone = model.classify(some), [model.classify([image])[0] for image in some]
    assert together == [pytest.approx(row, abs=1e-6) for row in alone]
    with pytest.raises(UserError, match="an image of 9 x 8 pixels does not split into 4 x 4 patches"):
        model.classify([np.zeros((9, 8, 3), np.uint8)])


def test_quantised_weights_say_nearly_the_same(folder: Path, files: list[str]) -> None:
    whole, rounded = hw.load(folder, "cpu"), hw.load(folder, "cpu", weights="int8")
    for a, b in zip(whole.classify(files), rounded.classify(files)):
        assert b == pytest.approx(a, abs=0.05)


def test_what_is_imported_and_exported_keeps_its_processor(folder: Path, files: list[str], tmp_path: Path) -> None:
    assert cli.main(["import", str(folder), str(tmp_path / "own")]) == cli.DONE
    assert cli.main(["export", str(tmp_path / "own"), str(tmp_path / "out")]) == cli.DONE
    said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert said == PROCESSOR
    before = hw.load(folder).classify(files)
    assert hw.load(tmp_path / "out").classify(files) == [pytest.approx(row, abs=1e-6) for row in before]


def test_images_have_vectors_of_unit_length(
    folder: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hw.load(folder)
    found = model.embed(files)
    assert found.shape == (len(files), 16)
    inputs = torch.from_numpy(ImageProcessor.read(PROCESSOR, "")(read_image(files[7])))[None]
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(model.module(inputs).x[0, 0], dim=0)
    torch.testing.assert_close(found[7], wanted, rtol=1e-5, atol=1e-6)
    assert model.embed([]).shape == (0, 16)
    torch.testing.assert_close(model.embed(files[7]), wanted, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files[:2]) + "\n"))
    assert cli.main(["embed", str(folder)]) == cli.DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2


def test_an_image_without_a_class_token_is_the_mean_of_its_patches(tmp_path: Path) -> None:
    config = vit(16, 2, 2, 4, classes=3, size=8)
    config = replace(config, embed=replace(config.embed, tokens=0, registers=2))  # type: ignore[type-var]
    model, pixels = build(config), np.zeros((8, 8, 3), np.uint8)
    found = attribution.embed(model, Usage(processor={**PROCESSOR, "do_resize": False}), [pixels], "it")  # type: ignore[arg-type]
    inputs = torch.full((1, 3, 8, 8), -1.0)
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(model(inputs).x[0, 2:].mean(0), dim=0)
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-6)


def test_the_command_line_classifies_files(folder: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classify", str(folder), *files[:2], "--top", "2", "--json"]) == cli.DONE
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [each["item"] for each in results] == files[:2]
    assert all(len(each["labels"]) == 2 and each["labels"].keys() <= set(LABELS) for each in results)


def test_attention_is_drawn_at_a_size_one_can_see(
    folder: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the size of the image, and as wide as the labels below it."""
    (tmp_path / "one").mkdir()
    shutil.copy(files[0], tmp_path / "one")
    for item in (files[0], str(tmp_path / "one")):
        assert cli.main(["classify", str(folder), item, "--attention", str(tmp_path / "drawn.png")]) == cli.DONE
        height, width, _ = read_image(str(tmp_path / "drawn.png")).shape
        assert min(height, width // 2) >= 448
    pixels, weights = np.zeros((8, 8, 3), np.uint8), np.ones((2, 2))
    assert attribution.ImageAttention(pixels, weights).side_by_side(["label " * 40]).shape[1] > width
    assert cli.main(["classify", str(folder), *files[:2], "--attention", str(tmp_path / "two.png")]) == cli.USER_ERROR
    assert "--attention takes one image, not 2; pass a single image" in capsys.readouterr().err


def test_show_tells_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in ((str(folder), None), ("vit-b16", 86_567_656), ("deit-ti16", 5_910_800)):
        assert cli.main(["show", name, "--json"]) == cli.DONE
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert count in (None, found["parameters"])
        assert "patches" in found["tree"][0]


def test_bad_files_are_one_line_and_nothing_is_traced(
    folder: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes(Path(files[0]).read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    for name, message in (
        ("cut.png", "truncated or corrupt"),
        ("text.png", "not a supported image"),
        ("none.png", "is not a file"),
    ):
        assert cli.main(["classify", str(folder), files[0], str(tmp_path / name)]) == cli.USER_ERROR
        err = capsys.readouterr().err
        assert message in err
        assert str(tmp_path / name) in err
        assert len(err.strip().splitlines()) == 1


def test_a_model_that_cannot_classify_says_why(folder: Path, files: list[str], tmp_path: Path) -> None:
    model = hw.load(folder)
    with pytest.raises(UserError, match=r"image 1 is float64 of shape \(2, 2\); use uint8"):
        model.classify([np.zeros((2, 2))])
    with pytest.raises(UserError, match="image 2 is a tuple"):
        model.classify([files[0], ("a", "b")])  # type: ignore[list-item]
    config = deit(16, 2, 2, 4, classes=3, size=8)
    save_published(build(config), config, tmp_path / "deit")
    with pytest.raises(UserError, match=r"deit has no preprocessor_config.json"):
        hw.load(tmp_path / "deit").classify(files[:1])
    with pytest.raises(
        UserError, match=r"an image model .*, which cannot continue a prompt; use classify, embed or look"
    ):
        model.generate("hello")
