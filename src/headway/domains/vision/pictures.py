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
    from headway.domains.vision.task import Vision

_SHOWN = 12  # images


def pictures(task: Vision, model: Transformer) -> list[Picture]:
    """What is taken for what in the split that is judged last, and some of its images, half of them mistaken."""
    rows = task.numbers(task.final_split)
    said = task.logits(model, rows).argmax(-1).numpy()
    right = task.classes[rows]
    wrong = rows[said != right]
    chosen = np.sort(
        np.concatenate([sharding.spread(wrong, _SHOWN // 2), sharding.spread(rows[said == right], _SHOWN // 2)])
    )
    answers = dict(zip(rows.tolist(), said.tolist()))
    tiles = [_tile(task, model, row, answers[row]) for row in chosen.tolist()]
    looks = "; beside each one where the model looks" if any(tile.beside is not None for tile in tiles) else ""
    caption = f"some that are right, and some that are not{looks}"
    return [
        *confusions(right, said, task.labels, f"{task.final_split} images"),
        Picture("Images", caption, tiled(tiles), wide=True),
    ]


def _tile(task: Vision, model: Transformer, row: int, said: int) -> Tile:
    """An image with what is said of it and, where there is attention, with where the model looks."""
    pixels = np.asarray(task.images[task.rows[row]])
    seen = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    name, right = task.labels[said], task.labels[task.classes[row]]
    weights = next(weights_of(model, task.inputs(np.array([row]))), None)
    beside = None if weights is None else Look(seen, weights).picture()
    return Tile(seen, name if name == right else f"{name}, not {right}", right=name == right, beside=beside)
