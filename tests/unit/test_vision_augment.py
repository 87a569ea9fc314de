"""Changes of images: by seed and place alone, of whole pixels, and mixed labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headway.domains.vision.augment import Augment, ImageAugmentConfig
from headway.errors import ConfigError

ALL = ImageAugmentConfig(flip=0.5, shift=2, crop=0.6, rotate=20, erase=0.5, mixup=0.4, cutmix=1.0)


@pytest.mark.parametrize(
    "config", [ALL, ImageAugmentConfig(flip=0.5, shift=2, erase=0.5), ImageAugmentConfig(randaugment=2)]
)
def test_changes_hang_on_seed_and_place_alone(config: ImageAugmentConfig) -> None:
    if config.randaugment:
        pytest.importorskip("torchvision")
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 8, 3), dtype=np.uint8)
    places = np.array([5, 900, 7, 123_456_789, 0, 31])
    augment, other = Augment(config, 1), Augment(config, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = augment.erase(augment.augment_pixels(images, places), places)
    assert torch.equal(before, torch.get_rng_state())
    assert whole.shape == (6, 3, 12, 8)
    for i in range(6):
        one = augment.erase(augment.augment_pixels(images[i : i + 1], places[i : i + 1]), places[i : i + 1])
        torch.testing.assert_close(one[0], whole[i], rtol=1e-5, atol=1e-3)
    assert not torch.equal(whole, other.erase(other.augment_pixels(images, places), places))
    assert not torch.equal(whole, augment.erase(augment.augment_pixels(images, places + 1), places + 1))


def test_moves_and_flips_are_those_of_whole_pixels() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
    repeated, places = np.repeat(image, 200, 0), np.arange(200)
    flipped = Augment(ImageAugmentConfig(flip=0.5), 3).augment_pixels(repeated, places)[:, 0].numpy()
    mirrored = [(x == image[0, :, ::-1, 0]).all() for x in flipped]
    assert all(m or (x == image[0, :, :, 0]).all() for m, x in zip(mirrored, flipped))
    assert 70 < sum(mirrored) < 130
    moved = Augment(ImageAugmentConfig(shift=1), 3).augment_pixels(repeated, places)[:, 0].numpy()
    padded = np.pad(image[0, :, :, 0], 1)
    wanted = {padded[i : i + 3, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {x.astype(np.uint8).tobytes() for x in moved} == wanted
    same = Augment(ImageAugmentConfig(rotate=1e-6), 3).augment_pixels(repeated[:2], places[:2])
    torch.testing.assert_close(same[:, 0], torch.from_numpy(repeated[:2, :, :, 0]).float(), rtol=1e-3, atol=1e-3)
    whole = Augment(ImageAugmentConfig(flip=1.0, rotate=1e-6), 3).augment_pixels(repeated[:1], places[:1])
    torch.testing.assert_close(whole[0, 0], torch.from_numpy(image[0, :, ::-1, 0].copy()).float(), rtol=1e-3, atol=1e-3)


def test_a_rectangle_is_painted_over() -> None:
    erased = Augment(ImageAugmentConfig(erase=1.0), 0).erase(torch.ones(50, 1, 20, 20), np.arange(50))
    shares = (erased == 0).flatten(1).float().mean(1)
    assert 0.05 < shares.mean() < 0.3
    assert shares.max() < 0.45
    rows = (erased[0, 0] == 0).any(1).nonzero()[:, 0]
    columns = (erased[0, 0] == 0).any(0).nonzero()[:, 0]
    assert (erased[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_mixed_images(kind: str) -> None:
    """Images that are constant, each with its own number: what is in a mixed one can be read off."""
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10)
    shares = torch.eye(4)
    for first in range(20):
        places = np.arange(first * 4, first * 4 + 4)
        mixed, labels = Augment(ImageAugmentConfig(**{kind: 1.0}), 0).mix(x, shares, places)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels @ torch.arange(4.0), rtol=1e-4, atol=1e-4)
        if kind == "cutmix":
            assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_settings_of_changes_are_checked() -> None:
    for settings, message in (
        ({"flip": 1.5}, "choose a probability"),
        ({"crop": 0.0}, "share of the area above 0"),
        ({"shift": -1}, "below 0"),
        ({"magnitude": 31}, "choose 0 to 30"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImageAugmentConfig(**settings)  # type: ignore[arg-type]
