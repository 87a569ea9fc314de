"""Pictures of a few colours with captions in two languages, and tasks over them that take no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.app.recipes import configure_recipe
from headway.learn.recipe import open_task

Image = pytest.importorskip("PIL.Image")
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
SHADES = {"dark": 0.4, "pale": 0.7, "bright": 1.0}
SMALL = {"model.width": 32, "model.depth": 1, "model.heads": 2, "model.shared": 16, "model.dropout": 0.0}
TINY: dict[str, Any] = {
    **SMALL,
    "model.left.embed.size": [16, 16],
    "model.left.embed.patch": [8, 8],
    "task.size": 280,
    "train.batch_size": 4,
    "train.precision": "fp32",
}


def draw(folder: Path, named: str | None = None) -> Path:
    """A picture of each colour in each shade, and a table of what they show, in two languages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,caption,language"]
    for colour, rgb in COLOURS.items():
        for shade, part in SHADES.items():
            name = f"{shade}-{colour}.png"
            pixels = np.full((20, 24, 3), [round(part * c) for c in rgb], np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows += [f"{name},a {shade} {colour} picture,en", f"{name},{colour} {shade},xx"]
    table = folder / (named or "captions.csv")
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def task(table: Path, **settings: Any) -> Any:
    return open_task(configure_recipe("image-text", table, {**TINY, **settings}, None), table.parent / "none")
