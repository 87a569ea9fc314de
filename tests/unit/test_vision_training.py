"""Images with classes: batches by number alone, runs, their pages, and what they are used for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import cut_back, weights
from vision_data import COLOURS, SETTINGS, colours, opened, tiny

import headway as hw
from headway.app.cli import main as cli
from headway.app.cli.inputs import Failures, predict_each
from headway.domains.vision.task import ImageDataset, Teacher
from headway.errors import ConfigError, UserError
from headway.formats.usage import read_usage
from headway.learn.examples import RngKey
from headway.learn.objectives.classes import Classification
from headway.learn.report.pictures import confusions
from headway.learn.report.rendering import png
from headway.nn.models import DistilledHeadConfig, Transformer
from headway.nn.models.presets import deit, vit

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.train.__class__ | Any:
    """A run that has learnt the colours, with its page."""
    place = tmp_path_factory.mktemp("runs") / "colours"
    recipe = tiny(**{"train.steps": 40, "task.augment.erase": 0.0})
    return hw.train(recipe, data=folder, run=place, progress=False, samples=3)


def test_batches_are_a_function_of_their_number(folder: Path, tmp_path: Path) -> None:
    settings = {"task.augment.mixup": 0.2, "task.augment.crop": 0.5, "task.augment.flip": 0.5}
    stream = opened(folder, tmp_path, **settings).batches("train")
    third = [next(stream) for _ in range(4)][3]
    alone = next(opened(folder, tmp_path, **settings).batches("train", start=3))
    assert torch.equal(*third.inputs, *alone.inputs)
    assert torch.equal(third.targets, alone.targets)
    assert third.targets.shape == (12, 3)


def test_it_learns_the_colours_and_is_used_at_once(run: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.summary["scores"]["split"] == "test"
    assert run.summary["scores"]["accuracy"] > 0.9
    usage = read_usage(run.directory)
    assert usage.labels == ("blue", "green", "red")
    assert usage.processor["size"] == {"height": 16, "width": 16}
    files = [str(folder / "red" / "0.png"), str(folder / "blue" / "4.bmp")]
    assert cli.main(["classify", str(run.directory), *files, "--json"]) == cli.DONE
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [next(iter(each["labels"])) for each in results] == ["red", "blue"]
    model = hw.load(run.directory)
    assert model.embed(files).shape == (2, 16)
    images = opened(folder, run.directory)
    first = images.of("all").limited_to(1)
    torch.testing.assert_close(
        torch.tensor([list(model.classify([images.files[first.rows[0]]])[0].values())]),  # type: ignore[index]
        Classification("image").outputs(model.module, first)[0].softmax(-1).sort(descending=True).values,
        rtol=1e-4,
        atol=1e-5,
    )
    assert model.evaluate(folder)["accuracy"] > 0.9


def test_a_limit_leaves_all_classes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders come one class after the other."""
    some = opened(folder, tmp_path).of("all").limited_to(6)
    assert np.bincount(some.examples.classes[some.rows]).tolist() == [2, 2, 2]  # type: ignore[attr-defined]


def test_the_page_has_confusions_and_images(run: Any) -> None:
    text = (run.directory / "report.html").read_text(encoding="utf-8")
    for part in ("Confusions", "red, predicted red", "data:image/png;base64,", "nats per image", "images per second"):
        assert part in text
    assert not re.search(r"https?://|\bsrc=(?!.data:)|@import|url\(|<script", text)


def test_where_it_looks_is_drawn_over_the_image(run: Any, folder: Path, tmp_path: Path) -> None:
    file, out = str(folder / "red" / "3.png"), tmp_path / "look.png"
    assert cli.main(["classify", str(run.directory), file, "--attention", str(out)]) == cli.DONE
    with Image.open(out) as picture:
        assert picture.size == (2 * 448 + 8, 448 + 8 + 3 * 26)  # the image, the look, and three labels under both
    look = hw.load(run.directory).look([file])[0]
    assert np.array_equal(hw.load(run.directory).look(file).weights, look.weights)
    assert look.weights.shape == (4, 4)
    assert (look.weights.min(), look.weights.max()) == (0.0, 1.0)
    assert cli.main(["classify", str(run.directory), file, "--attention", str(tmp_path / "look.xyz")]) == cli.USER_ERROR
    assert cli.main(["classify", str(run.directory), file, file, "--attention", str(out)]) == cli.USER_ERROR


def test_a_run_goes_on_to_the_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.app.api.available", lambda: False)
    settings = {f"task.augment.{name}": 0.5 for name in ("flip", "crop", "erase", "mixup", "cutmix")}
    recipe = tiny(**settings, **{"train.checkpoint_every": 2, "model.drop_path": 0.2})
    one = hw.train(recipe, data=folder, run=tmp_path / "one", progress=False, samples=0)
    two = cut_back(one.directory, tmp_path / "two", 2)
    hw.train(recipe, data=folder, run=two, resume=True, progress=False, samples=0)
    first, second = weights(one.directory), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_overfits_one_batch(folder: Path, tmp_path: Path) -> None:
    recipe = tiny(**{"optim.lr": 0.02})
    task = recipe.task.open(recipe, [folder], tmp_path)
    model = task.adapt(recipe.model).build(0)
    batch = task.examples.of("train").take(np.arange(12), RngKey(0, np.arange(12)))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.output("classes", *batch.inputs), batch.targets)  # type: ignore[operator]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_a_vit_is_fine_tuned_at_another_size_and_with_other_classes(folder: Path, tmp_path: Path) -> None:
    from headway.formats.published import save_published
    from headway.formats.usage import Usage
    from headway.nn.models import build

    config = vit(16, 2, 2, 4, classes=7, size=16)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3}
    start = build(config)
    save_published(start, config, tmp_path / "vit", Usage(labels=tuple("abcdefg"), processor=processor))
    settings = {**SETTINGS, "model.size": [24, 16], "train.steps": 2, "optim.lr": 1e-6}
    run = hw.train(
        "vision", data=folder, run=tmp_path / "run", start=tmp_path / "vit", set=settings, progress=False, samples=1
    )
    assert isinstance(run.model, Transformer)
    found = run.model.embed.positions
    before = start.embed.positions  # type: ignore[union-attr]
    front, patches = before((6, 4))  # type: ignore[operator]
    torch.testing.assert_close(found.table[:1], front, rtol=0, atol=1e-4)  # type: ignore[index]
    torch.testing.assert_close(found.table[1:], patches, rtol=0, atol=1e-4)  # type: ignore[index]
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    usage = read_usage(run.directory)
    assert (usage.processor["size"], usage.processor["resample"]) == ({"height": 24, "width": 16}, 3)
    assert hw.load(run.directory).classify([folder / "red" / "0.png"])[0].keys() == set(COLOURS)
    assert cli.main(["export", str(run.directory), str(tmp_path / "out")]) == cli.DONE
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["image_size"], said["id2label"]["2"]) == ([24, 16], "red")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == usage.processor
    with pytest.raises(ConfigError, match=r"model.width=32 does not fit"):
        hw.train(
            "vision", data=folder, run=tmp_path / "no", start=tmp_path / "vit", set={**SETTINGS, "model.width": 32}
        )


def test_a_stem_of_convolutions_has_no_published_format(run: Any, tmp_path: Path) -> None:
    assert cli.main(["export", str(run.directory), str(tmp_path / "out")]) == cli.USER_ERROR
    assert not (tmp_path / "out").exists()


def test_a_student_learns_from_a_teacher(run: Any, folder: Path, tmp_path: Path) -> None:
    """Half of the loss is that of the second token to the class that the teacher names."""
    recipe = replace(tiny(**{"task.teacher": str(run.directory)}), model=deit(16, 2, 2, 4, classes=3, size=16))
    task = recipe.task.open(recipe, [folder], tmp_path)
    images = task.examples
    assert isinstance(images, ImageDataset)
    config = task.adapt(recipe.model)
    assert isinstance(config.heads["classes"], DistilledHeadConfig)  # type: ignore[attr-defined]
    model = config.build(0)
    torch.nn.init.normal_(model.heads["classes"].distilled.weight)  # type: ignore[union-attr,index,arg-type]
    batch = next(task.batches("train"))
    (pixels,) = batch.inputs
    x = model(pixels).x
    labelled, taught = model.heads["classes"].both(x)  # type: ignore[index,union-attr,operator]
    teacher = hw.load(run.directory).module
    mean, std = (
        torch.tensor(read_usage(run.directory).processor[f"image_{n}"]).view(1, 3, 1, 1) for n in ("mean", "std")
    )
    own = images.std * pixels + images.mean
    says = teacher.output("classes", (own - mean) / std).argmax(-1)  # type: ignore[union-attr]
    wanted = sum(
        torch.nn.functional.cross_entropy(a, b, reduction="sum", label_smoothing=s)
        for a, b, s in ((labelled, batch.targets, 0.1), (taught, says, 0.0))
    )
    torch.testing.assert_close(task.loss(model, batch)["loss"].total, wanted / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="has no class 'grey'"):
        Teacher.open(str(run.directory), ["red", "grey"])


def test_pictures_of_the_page_are_whole_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for channels in (3, 4):
        with Image.open(io.BytesIO(png(pixels[..., :channels]))) as found:
            np.testing.assert_array_equal(np.asarray(found), pixels[..., :channels])


def test_of_many_classes_the_most_mistaken_are_shown() -> None:
    right = np.arange(200) % 100
    said = np.where(right == 57, 3, right)
    matrix, pairs, classes = confusions(right, said, [f"class {i}" for i in range(100)], "test images")
    assert "class 57, predicted class 3: 2 of 2" in str(matrix.figure)
    assert str(matrix.figure).count("<rect") == 24 * 24
    assert matrix.caption.endswith("predicted class (columns); the 24 most confused of 100 classes")
    assert re.findall(r"<td[^>]*>([^<]*)", str(pairs.figure)) == ["class 57", "class 3", "2 of 2"]
    worst = re.findall(r"<td[^>]*>([^<]*)", str(classes.figure))
    assert worst[:10] == ["class 57", "2", "0.0 %", "-", "0.0 %", "class 3", "2", "100.0 %", "50.0 %", "66.7 %"]
    assert len(worst) == 24 * 5
    assert classes.caption == "of test images, worst first; 24 of 100 classes"


def test_one_answer_to_all_is_said() -> None:
    matrix, *_ = confusions(np.arange(10) % 2, np.ones(10, int), ["cat", "dog"], "sounds")
    assert matrix.caption.endswith("; 100% of the predictions are “dog”")


def test_a_damaged_image_does_not_cost_the_others_their_answer(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    place = colours(tmp_path / "new")
    (place / "red" / "0.png").write_bytes(b"\x89PNG damaged")
    names = [str(path) for path in sorted(place.rglob("*.*"))]
    assert cli.main(["classify", str(run.directory), str(place), "--format", "csv", "--top", "1"]) == cli.USER_ERROR
    told = capsys.readouterr()
    rows = list(csv.DictReader(told.out.splitlines()))
    assert [row["item"] for row in rows] == [name for name in names if not name.endswith("red/0.png")]
    assert rows[0].keys() == {"item", "label", "probability"}
    assert told.err.strip().splitlines()[-1].startswith(f"headway: {place / 'red' / '0.png'}")
    (tmp_path / "empty").mkdir()
    for asked, message in (
        ([str(tmp_path / "empty")], "contains no images"),
        ([str(place / "red" / "0.png")], "red/0.png"),
    ):
        assert cli.main(["classify", str(run.directory), *asked]) == cli.USER_ERROR
        assert message in capsys.readouterr().err


def test_what_all_are_refused_for_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(some: Sequence[int]) -> list[int]:
        if any(number % 2 for number in some):
            raise UserError(f"{some[0]} is odd")
        return [number // 2 for number in some]

    failures: Failures = []
    assert list(predict_each([2, 3, 4], ask, failures)) == [(2, 1), (3, None), (4, 2)]
    assert [item for item, _ in failures] == [3]
    with pytest.raises(UserError, match="1 is odd"):
        list(predict_each([1, 3], ask, []))
