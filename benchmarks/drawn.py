"""Drawn characters of many scripts, few of each: 242 classes of 16 images, a stand-in for collections by hand.

    python benchmarks/drawn.py FOLDER

Each character of DejaVu Sans is drawn by sixteen "hands": every one has its slant, size, stroke and tremor, and each
drawing a little of its own. The folder has one for each class, with images of 105 x 105 pixels, black on white.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion, map_coordinates

CLASSES, HANDS, SIDE = 242, 16, 105
# Greek, Cyrillic, Armenian, Hebrew, Georgian, Tifinagh, Ogham and syllabics: first and last character of each.
SCRIPTS = ((0x3B1, 0x3C9), (0x430, 0x44F), (0x561, 0x586), (0x5D0, 0x5EA), (0x10D0, 0x10F0), (0x2D30, 0x2D65))
SCRIPTS += ((0x1401, 0x1405), (0x1410, 0x1433), (0x144A, 0x1470))


def draw(folder: Path, seed: int = 0) -> None:
    """Fill a folder that is not there yet."""
    random = np.random.default_rng(seed)
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    characters = [chr(code) for first, last in SCRIPTS for code in range(first, last + 1)][:CLASSES]
    assert len(characters) == CLASSES
    hands = [
        {
            "angle": random.normal(0, 6),
            "slant": random.normal(0, 0.15),
            "size": random.uniform(48, 78),
            "wide": random.uniform(0.8, 1.25),
            "stroke": int(random.integers(0, 3)),
            "tremor": random.uniform(1.5, 4.0),
        }
        for _ in range(HANDS)
    ]
    for character in characters:
        place = folder / f"{ord(character):05x}"
        place.mkdir(parents=True)
        for number, hand in enumerate(hands):
            drawn(character, path, hand, random).save(place / f"{number:02}.png")


def drawn(character: str, font: Path, hand: dict[str, float], random: np.random.Generator) -> Image.Image:
    """One drawing of a character by a hand."""
    size = int(hand["size"] * random.uniform(0.9, 1.1))
    image = Image.new("L", (SIDE, SIDE), 0)
    middle = SIDE / 2 + random.normal(0, 4, 2)
    ImageDraw.Draw(image).text(tuple(middle), character, 255, ImageFont.truetype(str(font), size), anchor="mm")
    turn = np.deg2rad(hand["angle"] + random.normal(0, 4))
    slant, wide = hand["slant"] + random.normal(0, 0.08), hand["wide"] * random.uniform(0.92, 1.08)
    high, across = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    y = np.cos(turn) * high - np.sin(turn) * across
    x = (np.sin(turn) * high + np.cos(turn) * across + slant * high) / wide
    bends = [gaussian_filter(random.normal(0, 1, (SIDE, SIDE)), 9) for _ in range(2)]
    y, x = (part + hand["tremor"] * bend / bend.std() for part, bend in zip((y, x), bends))
    ink = map_coordinates(np.asarray(image, np.float32), [y + SIDE / 2, x + SIDE / 2], order=1)
    stroke = int(hand["stroke"])
    ink = grey_erosion(ink, 3) if stroke == 0 else grey_dilation(ink, stroke)
    return Image.fromarray(np.where(ink > 90, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
