"""What the page of a run shows of a classifier of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headway.domains.vision.looking import Look, weights_of
from headway.models import Transformer
from headway.report import Picture, Tile, tiled
from headway.report.confusion import confusion_chart
from headway.train import sharding

if TYPE_CHECKING:
    from headway.domains.vision.task import Vision

_SHOWN = 12  # images


def pictures(task: Vision, model: Transformer) -> list[Picture]:
    """What is taken for what in the split that is judged last, and some of its images, half of them mistaken."""
    rows = task.numbers(task.final_split)
    said = task.logits(model, rows).argmax(-1).numpy()
    right = task.classes[rows]
    chart = confusion_chart(right, said, task.labels)
    wrong = rows[said != right]
    chosen = np.sort(
        np.concatenate([sharding.spread(wrong, _SHOWN // 2), sharding.spread(rows[said == right], _SHOWN // 2)])
    )
    answers = dict(zip(rows.tolist(), said.tolist()))
    tiles = [each for row in chosen.tolist() for each in _tiles(task, model, row, answers[row])]
    caption = "of the images that are right, and of those that are not; beside each one where the model looks"
    return [
        Picture(
            "Confusions", f"{task.final_split} images: what they are (downwards) and what is said", chart, wide=True
        ),
        Picture("Images", caption if len(tiles) > len(chosen) else "", tiled(tiles), wide=True),
    ]


def _tiles(task: Vision, model: Transformer, row: int, said: int) -> list[Tile]:
    """An image with what is said of it and, where there is attention, with where the model looks."""
    pixels = np.asarray(task.images[task.rows[row]])
    seen = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    name, right = task.labels[said], task.labels[task.classes[row]]
    found = [Tile(seen, name if name == right else f"{name}, not {right}", right=name == right)]
    for weights in weights_of(model, task.inputs(np.array([row]))):
        found.append(Tile(Look(seen, weights).picture()))
    return found
