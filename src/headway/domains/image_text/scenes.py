"""Scenes of coloured shapes with exactly one correct caption: a controlled test for captioners.

A scene has one to three shapes. Its caption names them from largest to smallest, each with its position relative to the
next: "a red circle left of a blue square above a green cross". Sizes and positions are sampled so that order and
relations are unambiguous. Scenes and their images are pure functions of (seed, index).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

SIDE = 64  # pixels
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 90, 214),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 180),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
_COLOUR_SHAPES = [(colour, shape) for colour in COLOURS for shape in SHAPES]
# Pairs that never occur in training, although each of these colours and shapes occurs in other pairs.
NOVEL = frozenset({("red", "triangle"), ("green", "square"), ("blue", "circle"), ("yellow", "cross")})
# Further pairs, which settings can be chosen on: training for tuning lacks them too, so NOVEL stays for the final test.
TUNING = frozenset({("purple", "circle"), ("orange", "square")})
# Half the size of each shape in pixels, in scenes with one, two and three shapes; the ranges in a scene are disjoint.
_RADII = (((7.0, 15.0),), ((10.5, 13.5), (5.5, 8.0)), ((10.5, 12.0), (7.0, 8.5), (4.5, 5.5)))
_GAP = 2.0  # pixels between shapes
_MAX_OFFSET = 0.5  # maximum offset from the axis of a relation, as a share of the distance
_MAX_DISTANCE = 1.6  # times the minimum distance of two neighbours
_MAX_TRIES = 200


class SceneShape(NamedTuple):
    """A shape: its centre, in pixels from the left and from the top, and half its size."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Its shapes from the largest to the smallest, and the grey level of its background."""

    shapes: tuple[SceneShape, ...]
    background: int

    @property
    def caption(self) -> str:
        words = [self.shapes[0].name]
        for first, second in pairwise(self.shapes):  # the position of the first along the axis of their larger distance
            dx, dy = second.x - first.x, second.y - first.y
            sideways, upright = "left of" if dx > 0 else "right of", "above" if dy > 0 else "below"
            words += [sideways if abs(dx) > abs(dy) else upright, second.name]
        return " ".join(words)

    @property
    def novel(self) -> bool:
        """Whether it has a pair of colour and shape that never occurs in training."""
        return any((shape.colour, shape.shape) in NOVEL for shape in self.shapes)


def scene(seed: int, index: int, novel: bool = False, tuning: bool = False) -> Scene:
    """The scene with this index among those with training pairs of colour and shape or, with `novel`, those with a
    novel pair. With `tuning` no scene has a pair of NOVEL, and those of TUNING are the novel ones.
    """
    rng = random.Random(f"{seed} {index} {novel}")
    count = rng.randint(1, len(_RADII))
    held_out, known = (
        (TUNING, [pair for pair in _COLOUR_SHAPES if pair not in NOVEL])
        if tuning
        else (
            NOVEL,
            _COLOUR_SHAPES,
        )
    )
    pairs = rng.sample(known, count)
    while any(pair in held_out for pair in pairs) != novel:
        pairs = rng.sample(known, count)
    positions = None
    while positions is None:
        radii = [rng.uniform(*radius_range) for radius_range in _RADII[count - 1]]
        positions = _sample_positions(rng, radii)
    shapes = (SceneShape(*pair, *position, radius) for pair, position, radius in zip(pairs, positions, radii))
    return Scene(tuple(shapes), rng.randint(215, 255))


def _sample_positions(rng: random.Random, radii: list[float]) -> list[tuple[float, float]] | None:
    """A position for each shape, each next to, above or below the previous one; None if sampling failed."""
    first = radii[0]
    positions = [(rng.uniform(first, SIDE - first), rng.uniform(first, SIDE - first))]
    for previous, radius in pairwise(radii):
        min_distance = _extent(previous) + _extent(radius) + _GAP
        for _ in range(_MAX_TRIES):
            distance = rng.uniform(min_distance, _MAX_DISTANCE * min_distance) * rng.choice((1, -1))
            offset = rng.uniform(-_MAX_OFFSET, _MAX_OFFSET) * abs(distance)
            dx, dy = rng.choice(((distance, offset), (offset, distance)))
            position = (positions[-1][0] + dx, positions[-1][1] + dy)
            inside = all(radius <= coordinate <= SIDE - radius for coordinate in position)
            gaps = (
                math.dist(position, other_position) - _extent(size) for other_position, size in zip(positions, radii)
            )
            if inside and all(gap >= _extent(radius) + _GAP for gap in gaps):
                positions.append(position)
                break
        else:
            return None
    return positions


def _extent(radius: float) -> float:
    """The maximum extent of a shape of this size; a square's corners are outside its circle."""
    return 1.2 * radius


def render(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """The image of a scene, with smooth edges."""
    picture = np.full((SIDE, SIDE, 3), float(scene.background))
    for shape in scene.shapes:
        reach = _extent(shape.radius) + 1  # of the pixels that the shape may cover
        columns, rows = (
            slice(max(0, math.floor(centre - reach)), min(SIDE, math.ceil(centre + reach)))
            for centre in (shape.x, shape.y)
        )
        x, y = np.arange(SIDE)[columns] + 0.5 - shape.x, np.arange(SIDE)[rows] + 0.5 - shape.y
        x, y, r = x[None, :], y[:, None], shape.radius
        # The signed distance of each pixel to the shape, in pixels (negative inside); accurate near its edge.
        if shape.shape == "circle":
            distance = np.hypot(x, y) - r
        elif shape.shape == "square":
            distance = np.maximum(abs(x), abs(y)) - 0.85 * r
        elif shape.shape == "cross":
            arm = 0.32 * r
            distance = np.minimum(np.maximum(abs(x) - r, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - r))
        else:  # an upright equilateral triangle: three half planes at r / 2 from its centre, slightly enlarged
            slope = math.sqrt(3.0) / 2
            distance = np.maximum(np.maximum(slope * x - 0.5 * y, -slope * x - 0.5 * y), y) - 0.6 * r
        inside = np.clip(0.5 - distance, 0.0, 1.0)
        region = picture[rows, columns]
        region += inside[:, :, None] * (np.array(COLOURS[shape.colour], float) - region)
    return picture.round().astype(np.uint8)
