"""Masked images and sounds: hidden patches, the losses, unlabelled data, and pre-training of vision."""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vision_data import SETTINGS, colours, opened, tiny

import headway as hw
from headway.app.pretraining import Pretrained, train_first_stage
from headway.app.recipes import configure_recipe
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.vision.masked_images import MaskedImages
from headway.domains.vision.recipes import PRETRAINING, unlabelled_settings
from headway.domains.vision.unlabelled_images import UnlabelledImages, read_images, read_unlabelled
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Task
from headway.learn.objectives.masked_patches import HidingConfig, normalise, patch_values_head
from headway.learn.plan.budget import Clock
from headway.learn.plan.scale import contrasted_settings
from headway.learn.pretraining import describe_stages
from headway.learn.recipe import open_task
from headway.learn.run import RunDirectory
from headway.nn.models import PatchValuesHeadConfig, Transformer, build
from headway.nn.models.presets import PRESETS, preset, whisper_classifier

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours"))


def pictures(place: Path, count: int, colour: tuple[int, int, int] = (120, 120, 120), seed: int = 1) -> Path:
    """Unlabelled images in one folder."""
    rng = np.random.default_rng(seed)
    place.mkdir(exist_ok=True)
    for number in range(count):
        shade = np.array(colour) + rng.integers(-90, 91, 3)
        pixels = (shade + rng.integers(-30, 31, (20, 24, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("unlabelled"), 150)


def masked(**settings: Any) -> Recipe:
    size = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.embed.size": [16, 16]}
    size |= {"model.embed.patch": [4, 4], "train.batch_size": 12, "train.steps": 4, "train.precision": "fp32"}
    size |= {"task.hiding.rate": 0.5, "task.contrast": 0.5}
    return override(find_recipe("masked-images"), {**size, **settings})


def test_patches_are_cut_joined_and_hidden() -> None:
    head = PatchValuesHeadConfig((2, 3), channels=2, skip=1).build(8, 0, None)
    images = torch.arange(2 * 2 * 4 * 6).view(2, 2, 4, 6).float()
    patches = head.cut(images)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1].tolist() == images[0, :, :2, 3:].flatten().tolist()
    assert torch.equal(head.join(patches, images), images)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[1, 2] = True
    changed = head.hide(images, hidden)
    assert changed[1, :, 2:, :3].eq(0).all()
    assert (changed != images).sum() == 12
    assert head(torch.randn(2, 5, 8)).shape == (2, 4, 12)
    frames = torch.randn(2, 6, 80)
    sound_head = patch_values_head(whisper_classifier(16, 1, 2, 2)).build(16, 0, None)
    assert torch.equal(sound_head.cut(frames)[:, 1], frames[:, 2:4].flatten(1))
    assert torch.equal(sound_head.join(sound_head.cut(frames), frames), frames)


def test_a_share_of_blocks_is_hidden_by_index_alone() -> None:
    hiding = HidingConfig(rate=0.5, span=2)
    indices = np.arange(50)
    hidden = hiding.sample((4, 6), indices, seed=3)
    assert torch.equal(hidden[7:8], hiding.sample((4, 6), indices[7:8], seed=3))
    assert not torch.equal(hidden, hiding.sample((4, 6), indices, seed=4))
    blocks = hidden.view(50, 2, 2, 3, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    assert hidden.sum(1).tolist() == [12] * 50
    assert HidingConfig(rate=0.99).sample((1, 2), indices, 0).sum(1).tolist() == [1] * 50
    with pytest.raises(ConfigError, match=r"hiding.rate is 1.0; choose a fraction"):
        HidingConfig(rate=1.0)


def test_of_few_patches_some_are_visible() -> None:
    hidden = HidingConfig(rate=0.4, span=5).sample((5, 1), np.arange(20), 0)
    assert hidden.any(1).all()
    assert not hidden.all(1).any()


def test_patches_of_other_models_cannot_be_hidden() -> None:
    for name in PRESETS:
        if name.startswith("ast"):
            with pytest.raises(ConfigError, match="overlap or do not exist"):
                patch_values_head(cast(Any, preset(name)))
    assert patch_values_head(cast(Any, preset("vit-ti16"))).skip == 1
    with pytest.raises(ConfigError, match="does not take images"):
        masked().task.open(override(masked(), {"model": preset("bert-base")}), [], Path("/nowhere"))


def opened_images(data: Path, workspace: Path, **settings: Any) -> tuple[Task, MaskedImages, Transformer]:
    task = open_task(masked(**settings), workspace, data)
    model = cast(Transformer, build(task.adapt(masked(**settings).model), 0)).eval()
    return task, cast(MaskedImages, task.examples), model


def test_losses_are_those_of_the_papers(unlabelled: Path, tmp_path: Path) -> None:
    """He et al. 2022 with a hidden share of 0.5, and SimCLR's equation 1 in both directions."""
    task, images, model = opened_images(unlabelled, tmp_path)
    batch = next(task.batches("train"))
    again = next(open_task(masked(), tmp_path, unlabelled).batches("train"))
    (inputs,), hidden = batch.inputs, batch.targets
    assert torch.equal(inputs, again.inputs[0])
    assert torch.equal(hidden, again.targets)
    assert (inputs.shape, batch.tokens) == ((24, 3, 16, 16), 12)
    assert not torch.equal(inputs[:12], inputs[12:])
    head: Any = model.heads["patches"]
    x = model(head.hide(inputs, hidden))
    targets, total = normalise(head.cut(inputs)), 0.0
    values = head(x.x).detach()
    for row in range(24):
        for patch in range(16):
            if hidden[row, patch]:
                total += float((values[row, patch] - targets[row, patch]).square().mean())
    first, second = model.heads["contrast"](x.x, x.layout).chunk(2)
    scores, index = first.detach() @ second.detach().T / 0.2, torch.arange(12)
    contrast = 0.5 * (F.cross_entropy(scores, index) + F.cross_entropy(scores.T, index)) / 2
    losses, counts = task.loss(model, batch), task.objective.counts(batch)
    assert counts == {"patches": 24 * 8, "contrast": 12}
    assert losses["patches"].total.item() == pytest.approx(total, rel=1e-4)
    assert losses["contrast"].total.item() / 12 == pytest.approx(contrast.item(), rel=1e-4)
    scores = task.evaluate(model)
    assert scores["loss"] > 0.5
    assert scores["explained"] < 0.5
    assert len(images.splits.rows("validation")) > 0


def test_hidden_patches_do_not_leak_through_the_stem(unlabelled: Path, tmp_path: Path) -> None:
    task, images, model = opened_images(unlabelled, tmp_path)
    batch = next(task.batches("validation"))
    (inputs,), hidden = batch.inputs, batch.targets
    head: Any = model.heads["patches"]
    other = head.join(torch.where(hidden[..., None], torch.randn(len(hidden), 16, 48), head.cut(inputs)), inputs)
    assert torch.equal(model(head.hide(inputs, hidden)).x, model(head.hide(other, hidden)).x)
    assert images.describe_row(0).endswith(".png")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task.contrast": -1.0}, ConfigError, "task.contrast is -1; choose a weight of 0"),
        ({"task.temperature": 0.0}, ConfigError, "task.temperature is 0; choose a number above 0"),
        ({"train.batch_size": 1000}, UserError, "train.batch_size=1000 exceeds the 1[34][0-9] images"),
        ({"train.accumulate": 2}, ConfigError, "needs all pairs in a batch at once"),
    ],
)
def test_settings_that_cannot_work(
    unlabelled: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened_images(unlabelled, tmp_path, **settings)


def idx(path: Path, images: np.ndarray) -> Path:
    path.write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape) + images.tobytes()))
    return path


def read_images_of(rows: Sequence[Mapping[str, Any]], path: Path) -> UnlabelledImages:
    """The images of a first stage's rows, in a file such as that of the run's folder."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_images([path])


def test_unreadable_images_alone_are_an_error(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image %d" % number)
    with pytest.raises(UserError, match="only 0 different images can be read; pass at least 2"):
        opened_images(tmp_path, tmp_path, **{"task.skip_bad": True})


def test_images_of_every_source_without_the_labelled_ones(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    dataset = opened(labelled, tmp_path / "workspace")
    recipe, task = tiny(), tiny().task.open(tiny(), [labelled], tmp_path / "workspace")
    folder = pictures(tmp_path / "more", 5)
    assert dataset.files is not None
    (folder / "copy.png").write_bytes(dataset.files[0].read_bytes())
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    grey = np.random.default_rng(0).integers(0, 255, (4, 8, 8)).astype(np.uint8)
    file = idx(tmp_path / "more-images-idx3-ubyte.gz", grey)
    (tmp_path / "table.csv").write_text(f"path,image\n{file.name},2\n")
    found = read_images([folder, file, tmp_path / "table.csv"])
    assert (len(found), found.indices[-5:]) == (12, [0, 1, 2, 3, 2])
    assert np.array_equal(found.pixels(11), grey[2])
    data = read_unlabelled(recipe, task, [folder, file, tmp_path / "table.csv"])
    assert (data.unlabelled, data.similar) == (9, None)
    assert data.labelled == len(dataset.splits.rows("train"))
    assert len(data.rows) == data.unlabelled + data.labelled
    again = read_images_of(data.rows, tmp_path / "rows.jsonl")  # files of one image and of several in one table
    assert [again.pixels(row).tolist() for row in (0, 5)] == [found.pixels(0).tolist(), grey[0].tolist()]
    assert again.indices[:9] == [None] * 5 + [0, 1, 2, 3]
    (tmp_path / "files.csv").write_text(f"path\n{file.name}\nmore/0.png\n")
    assert read_images([tmp_path / "files.csv"]).indices == [0, 1, 2, 3, None]
    with pytest.raises(UserError, match="all 60 images are also in the labelled data"):
        read_unlabelled(recipe, task, [labelled])
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("note.txt", "is not an image; pass images"),
        ("empty", "contains no images; pass a folder with images"),
        ("missing", "is not an image|does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            read_images([tmp_path / path])


def test_images_of_another_kind_leave_no_gain(labelled: Path, unlabelled: Path, tmp_path: Path) -> None:
    recipe, task = tiny(), tiny().task.open(tiny(), [labelled], tmp_path)
    alike = pictures(tmp_path / "alike", 200)
    assert cast(float, read_unlabelled(recipe, task, [alike]).similar) > 0.6
    flat = np.full((150, 9, 9), 255, np.uint8) - np.arange(150, dtype=np.uint8)[:, None, None] // 30
    flat[:, 4, 4] = np.arange(150) % 100
    other = read_unlabelled(recipe, task, [idx(tmp_path / "x-images-idx3-ubyte.gz", flat)])
    assert cast(float, other.similar) < 0.2
    plan, expectation = describe_stages("masked-images", other, 10)
    assert "takes 7 of 10 minutes on 150 unlabelled and" in plan
    assert expectation.startswith("no gain from pre-training is expected: only 0% of the labelled images are within")


def test_few_images_make_small_batches(unlabelled: Path) -> None:
    recipe = find_recipe("masked-images")
    settings = unlabelled_settings(recipe, [unlabelled], 1.0).settings
    count = len(read_images([unlabelled]))
    assert settings["train.batch_size"] == 2 ** int(math.log2(count * (1 - settings["task.split.validation"])))
    assert contrasted_settings(10_000, 128) == {"task.split.validation": 0.05}


def test_views_are_flipped_only_if_the_user_lets_them(labelled: Path) -> None:
    for flip in (0.0, 0.3):
        recipe = configure_recipe("vision", labelled, {"task.augment.flip": flip}, None)
        assert PRETRAINING["vision"].settings(recipe)["task.augment.flip"] == flip


def test_three_labels_are_an_error_before_any_training(labelled: Path, unlabelled: Path, tmp_path: Path) -> None:
    for name in ("red", "blue", "green"):
        (tmp_path / "few" / name).mkdir(parents=True)
        (tmp_path / "few" / name / "0.png").write_bytes((labelled / name / "0.png").read_bytes())
    with pytest.raises(UserError, match="of 3 images is empty; add a folder named validation, or more images"):
        hw.train("vision", tmp_path / "few", minutes=1, run=tmp_path / "run", pretrain=unlabelled, progress=False)
    assert not (tmp_path / "run" / "pretraining" / "run.json").exists()


def test_vision_is_pretrained_and_keeps_its_augmentation(labelled: Path, unlabelled: Path, tmp_path: Path) -> None:
    def brief(stage: str, data: Any, set: dict[str, Any], minutes: float, run: Path, **arguments: Any) -> Any:
        assert (stage, minutes) == ("masked-images", 7)
        assert set == {"task.skip_bad": True, "task.augment.flip": 0.5, "model.width": 16}
        size = {"model.depth": 1, "model.heads": 2, "model.embed.size": [16, 16], "model.embed.patch": [4, 4]}
        size |= {"train.steps": 2, "train.batch_size": 12, "train.precision": "fp32"}
        return hw.train(stage, data, set={**set, **size}, run=run, **arguments)

    def first_stage(train: Callable[..., Any]) -> Pretrained:
        options = {"progress": False, "resume": False}
        arguments = unlabelled, "vision", labelled, {"model.width": 16}, 3, 10, tmp_path / "run", Clock(), options
        return train_first_stage(train, *arguments)

    with RunDirectory(tmp_path / "run").locked():
        pretrained = first_stage(brief)
    first = hw.load(pretrained.start)
    assert first.embed([str(labelled / "red" / "0.png")]).shape == (1, 16)
    assert "Hidden patches" in (pretrained.start / "report.html").read_text()
    assert pretrained.settings["task.augment.flip"] == 0.5
    settings = {**pretrained.settings, **SETTINGS, "train.steps": 2, "train.batch_size": 8}
    run = hw.train("vision", labelled, set=settings, start=pretrained.start, run=tmp_path / "run", progress=False)
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    assert run.recipe.model.embed.size == (16, 16)
