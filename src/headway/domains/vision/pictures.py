"""What the page of a run shows of a classifier of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headway.domains.vision.looking import Look, weights_of
from headway.models import Transformer
from headway.report import Picture, Tile, tiled
from headway.report.confusion import confusions
from headway.train import sharding

if TYPE_CHECKING:
    from headway.domains.vision.task import ImageClasses, Images

_SHOWN = 12  # images


def pictures(task: ImageClasses, images: Images, model: Transformer) -> list[Picture]:
    """What is taken for what in the split that is judged last, and some of its images, half of them mistaken."""
    samples = images.of(images.final_split)
    rows, (logits, classes) = samples.rows, task.logits(model, samples)
    said, right = logits.argmax(-1).numpy(), classes.numpy()
    wrong = rows[said != right]
    chosen = np.sort(
        np.concatenate([sharding.spread(wrong, _SHOWN // 2), sharding.spread(rows[said == right], _SHOWN // 2)])
    )
    answers = dict(zip(rows.tolist(), said.tolist()))
    tiles = [_tile(images, model, row, answers[row]) for row in chosen.tolist()]
    looks = "; beside each one where the model looks" if any(tile.beside is not None for tile in tiles) else ""
    caption = f"some that are right, and some that are not{looks}"
    return [
        *confusions(right, said, images.labels, f"{images.final_split} images"),
        Picture("Images", caption, tiled(tiles), wide=True),
    ]


def _tile(images: Images, model: Transformer, row: int, said: int) -> Tile:
    """An image with what is said of it and, where there is attention, with where the model looks."""
    pixels = np.asarray(images.images[images.rows[row]])
    seen = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    name, right = images.labels[said], images.labels[images.classes[row]]
    weights = next(weights_of(model, *images.take(np.array([row])).inputs), None)
    beside = None if weights is None else Look(seen, weights).picture()
    return Tile(seen, name if name == right else f"{name}, not {right}", right=name == right, beside=beside)
