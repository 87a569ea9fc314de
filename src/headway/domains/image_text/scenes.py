"""Scenes of coloured shapes with exactly one correct caption: a controlled test of captioners.

A scene has one to three shapes. Its caption names them from the largest to the smallest, with each one's position
relative to the next: "a red circle left of a blue square above a green cross". Sizes and positions are sampled so that
order and relations are unambiguous. A scene and its picture are pure functions of (seed, index).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

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
_PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
# Pairs that never occur in training, although each of these colours and shapes occurs in other pairs.
NOVEL = frozenset({("red", "triangle"), ("green", "square"), ("blue", "circle"), ("yellow", "cross")})
# Half the size of each shape in pixels, for scenes of one, two and three shapes; the ranges of a scene are disjoint.
_RADII = (((7.0, 15.0),), ((10.5, 13.5), (5.5, 8.0)), ((10.5, 12.0), (7.0, 8.5), (4.5, 5.5)))
_GAP = 2.0  # pixels between shapes
_ASIDE = 0.5  # maximum offset from the axis of a relation, as a share of the distance
_FARTHEST = 1.6  # times the minimum distance of two neighbours
_TRIES = 200


class Thing(NamedTuple):
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

    things: tuple[Thing, ...]
    ground: int

    @property
    def caption(self) -> str:
        words = [self.things[0].name]
        for one, other in pairwise(self.things):
            words += [relation(one, other), other.name]
        return " ".join(words)

    @property
    def novel(self) -> bool:
        """Whether it has a pair of colour and shape that never occurs in training."""
        return any((thing.colour, thing.shape) in NOVEL for thing in self.things)


def relation(one: Thing, other: Thing) -> str:
    """The position of `first` relative to `second`, along the axis of their larger distance."""
    dx, dy = other.x - one.x, other.y - one.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def scene(seed: int, number: int, novel: bool = False) -> Scene:
    """The scene with this index, among those with training pairs of colour and shape, or those with a `novel` pair."""
    rng = random.Random(f"{seed} {number} {novel}")
    count = rng.randint(1, len(_RADII))
    pairs = rng.sample(_PAIRS, count)
    while any(pair in NOVEL for pair in pairs) != novel:
        pairs = rng.sample(_PAIRS, count)
    places = None
    while places is None:
        radii = [rng.uniform(*ends) for ends in _RADII[count - 1]]
        places = _places(rng, radii)
    things = (Thing(*pair, *place, radius) for pair, place, radius in zip(pairs, places, radii))
    return Scene(tuple(things), rng.randint(215, 255))


def _places(rng: random.Random, radii: list[float]) -> list[tuple[float, float]] | None:
    """A position for each shape, each next to, above or below the previous one; None if sampling failed."""
    first = radii[0]
    places = [(rng.uniform(first, SIDE - first), rng.uniform(first, SIDE - first))]
    for last, radius in pairwise(radii):
        least = _reach(last) + _reach(radius) + _GAP
        for _ in range(_TRIES):
            along = rng.uniform(least, _FARTHEST * least) * rng.choice((1, -1))
            aside = rng.uniform(-_ASIDE, _ASIDE) * abs(along)
            dx, dy = rng.choice(((along, aside), (aside, along)))
            place = (places[-1][0] + dx, places[-1][1] + dy)
            inside = all(radius <= side <= SIDE - radius for side in place)
            apart = (math.dist(place, other) - _reach(size) for other, size in zip(places, radii))
            if inside and all(distance >= _reach(radius) + _GAP for distance in apart):
                places.append(place)
                break
        else:
            return None
    return places


def _reach(radius: float) -> float:
    """The maximum extent of a shape of this size: the corners of a square are outside of its circle."""
    return 1.2 * radius


def draw(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a scene, with smooth edges."""
    picture = np.full((SIDE, SIDE, 3), float(scene.ground))
    for thing in scene.things:
        columns, rows = (_span(middle, thing.radius) for middle in (thing.x, thing.y))
        x, y = np.arange(SIDE)[columns] + 0.5 - thing.x, np.arange(SIDE)[rows] + 0.5 - thing.y
        inside = np.clip(0.5 - _distance(thing, x[None, :], y[:, None]), 0.0, 1.0)
        place = picture[rows, columns]
        place += inside[:, :, None] * (np.array(COLOURS[thing.colour], float) - place)
    return picture.round().astype(np.uint8)


def _span(middle: float, radius: float) -> slice:
    """The pixels along one axis that a shape may cover."""
    reach = _reach(radius) + 1
    return slice(max(0, math.floor(middle - reach)), min(SIDE, math.ceil(middle + reach)))


def _distance(thing: Thing, x: Float[np.ndarray, "1 W"], y: Float[np.ndarray, "H 1"]) -> Float[np.ndarray, "H W"]:
    """The signed distance of each pixel to a shape, in pixels (negative inside); accurate near its edge."""
    r = thing.radius
    if thing.shape == "circle":
        return np.hypot(x, y) - r
    if thing.shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.85 * r
    if thing.shape == "cross":
        arm = 0.32 * r
        return np.minimum(np.maximum(abs(x) - r, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - r))
    # An upright equilateral triangle: three half planes at r / 2 from its centre, slightly enlarged.
    size = 0.6 * r
    slope = math.sqrt(3.0) / 2
    return np.maximum(np.maximum(slope * x - 0.5 * y, -slope * x - 0.5 * y), y) - size
