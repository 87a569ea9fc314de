"""What is chosen for a user's images: their size, what they may be changed by, and who is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headway as hw
from headway.config import override
from headway.domains import recipe, scale_of
from headway.domains.vision.augment import Augment, ImageAugmentConfig
from headway.domains.vision.labelled_images import LabelledImages, Survey, survey_images
from headway.domains.vision.recipes import augmentation, input_sizes
from headway.errors import UserError

Image = pytest.importorskip("PIL.Image")


def samples(images: np.ndarray, labels: list[str]) -> LabelledImages:
    count = len(images)
    return LabelledImages(labels, np.zeros(count, np.uint8), [str(i) for i in range(count)], grey=images)


def spots(seed: int, count: int, sided: bool) -> tuple[np.ndarray, list[str]]:
    """A bright spot on the left or on the right: two classes where it is `sided`, else one of two brightnesses' shapes
    on any side.
    """
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 60, (count, 16, 16), dtype=np.uint8), []
    for i in range(count):
        kind, right = rng.integers(0, 2, 2).tolist()
        column, row = 2 + 8 * right + int(rng.integers(0, 3)), int(rng.integers(1, 9))
        tall, wide = (2, 3) if sided or kind else (5, 1)
        images[i, row : row + tall, column : column + wide] = 250
        labels.append(str(right if sided else kind))
    return images, labels


def test_mirrors_are_told_from_the_data() -> None:
    seen = survey_images(samples(*spots(0, 600, sided=True)))
    assert seen is not None
    assert not seen.flips
    seen = survey_images(samples(*spots(0, 600, sided=False)))
    assert seen is not None
    assert seen.flips
    assert (seen.images, seen.classes) == (600, 2)
    assert seen.size == (16, 16)
    assert seen.grey


def test_few_images_are_judged_by_their_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seen = survey_images(samples(rng.integers(0, 256, (9, 8, 8), dtype=np.uint8), list("aabbccabc")))
    assert seen is not None
    assert not seen.flips
    assert seen.min_class_size == 3
    files = []
    for number in range(8):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (20, 50, 3), dtype=np.uint8)).save(files[-1])
    files[3].write_bytes(b"none")
    found = survey_images(LabelledImages(list("abababab"), np.zeros(8, np.uint8), [""] * 8, files=files))
    assert found is not None
    assert found.flips
    assert not found.grey
    assert found.size == (20, 50)
    assert survey_images(LabelledImages(["a"], np.zeros(1, np.uint8), [""], files=[files[3]])) is None


def test_what_is_drawn_is_never_mirrored() -> None:
    images = np.full((200, 40, 40), 255, np.uint8)
    images[:, 8:20, 18:22] = 0  # the same in a mirror
    seen = survey_images(samples(images, [str(number % 4) for number in range(200)]))
    assert seen is not None
    assert seen.is_drawing
    assert not seen.flips
    assert augmentation(seen, (28, 28))["warp"] == 0.03
    shaded = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (200, 40, 1))
    seen = survey_images(samples(shaded, [str(number % 4) for number in range(200)]))
    assert seen is not None
    assert not seen.is_drawing


@pytest.mark.parametrize(
    ("size", "grey", "flips", "minutes", "wanted"),
    [
        ((28, 28), True, False, 5, ((28, 28), 4)),
        ((8, 8), True, False, 5, ((8, 8), 2)),
        ((30, 18), True, False, 5, ((32, 20), 4)),
        ((105, 105), True, False, 4, ((28, 28), 4)),
        ((480, 640), False, True, 5, ((48, 48), 8)),
        ((480, 640), False, True, 600, ((128, 128), 8)),
        ((100, 900), False, True, 30, ((40, 112), 8)),
    ],
)
def test_sizes_are_whole_patches(size: tuple, grey: bool, flips: bool, minutes: float, wanted: tuple) -> None:
    assert input_sizes(Survey(1000, 10, 50, size, grey, grey and not flips, flips), minutes) == wanted


@pytest.mark.parametrize(("size", "patch"), [((70, 70), 7), ((96, 64), 8), ((100, 75), 5)])
def test_patches_divide_prepared_images(size: tuple[int, int], patch: int) -> None:
    """The largest patches do, because smaller ones are many more tokens."""
    assert input_sizes(Survey(1000, 10, 50, size, False, False, True), 60, keeps_size=True) == (size, patch)


def test_changes_grow_with_the_epochs_and_all_sizes_are_models(tmp_path: Path) -> None:
    images, labels = spots(0, 200, sided=True)
    for number, (image, label) in enumerate(zip(images, labels)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    scale = scale_of("vision")
    assert scale is not None
    found = scale.data_settings(recipe("vision"), [tmp_path], 5)
    settled = override(recipe("vision"), found.settings)
    assert settled.task.augment.flip == 0
    assert settled.task.augment.outside == "edge"
    few, many = (override(settled, scale.regularise(settled, epochs, 1.0)).task.augment for epochs in (1, 99))  # type: ignore[attr-defined]
    assert 0 < few.rotate < many.rotate
    assert few.shift <= many.shift
    assert {override(settled, shape).model.embed.size for shape in scale.sizes()} == {(16, 16)}


def test_slanted_and_bent_images_keep_their_edge_and_their_place() -> None:
    image = np.full((1, 16, 16, 1), 200, np.uint8)
    bent = ImageAugmentConfig(rotate=20, zoom=0.3, shear=20, warp=0.1, shift=3, outside="edge")
    moved = Augment(bent, 0).augment_pixels(np.repeat(image, 8, 0), np.arange(8))
    assert torch.allclose(moved, torch.full_like(moved, 200.0), atol=1e-2)
    shifted = Augment(ImageAugmentConfig(shift=3, outside="edge"), 0).augment_pixels(
        np.repeat(image, 8, 0), np.arange(8)
    )
    assert (shifted == 200).all()
    image[0, 8:, 8:] = 0
    once, again = (Augment(bent, 0).augment_pixels(np.repeat(image, 8, 0), np.arange(8)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once[0], once[1])
    lit = Augment(ImageAugmentConfig(light=0.5), 0).augment_pixels(np.repeat(image, 8, 0), np.arange(8))
    assert lit.min() >= 0
    assert lit.max() <= 255
    assert len(lit.amax((1, 2, 3)).unique()) > 4


def test_a_class_of_one_sample_is_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(40):
        (tmp_path / "data" / f"c{label}").mkdir(parents=True)
        for number in range(1 + label % 3):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"c{label}" / f"{number}.png")
    from headway.app.recipes import configure_recipe
    from headway.learn.recipe import open_task

    given = {"model.embed.size": [8, 8], "task.split.validation": 0.3, "task.split.test": 0.3}
    task = open_task(configure_recipe("vision", tmp_path / "data", given, None), tmp_path / "none")
    sides = task.examples.splits.indices
    assert len(task.examples.labels) == 40
    assert sum(map(len, sides.values())) == 79
    assert len(sides["validation"])
    assert len(sides["test"])


def test_minutes_that_are_too_few_say_so(tmp_path: Path) -> None:
    images, labels = spots(0, 60, sided=True)
    for number, (image, label) in enumerate(zip(images, labels)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    with pytest.raises(UserError, match="left for training"):
        hw.train("vision", tmp_path, minutes=0.001, run=tmp_path / "run", progress=False)
