"""What is possible without learning: chance, and the texts of the nearest image that was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.domains.image_text.recall import AT

_SIDE = 16  # pixels that images are compared by, as means of larger fields
_GRAM = 3


class Side(NamedTuple):
    """Images with their texts; text n belongs to image `of[n]`."""

    pixels: UInt8[np.ndarray, "M H W 3"]
    texts: Sequence[str]
    of: Int[np.ndarray, "N"]
    languages: Sequence[str]


def baselines(held_out: tuple, train: tuple) -> dict[str, float]:
    """`chance_at_K` and `neighbour_at_K`: recall of an image's texts among all of its language.

    The neighbour is the image to train on whose pixels are nearest. Its text ranks the texts that may be meant by the
    cosine of their counts of three characters; of those that are equal, the order is drawn, and the rates are expected
    ones.
    """
    asked, known = Side(*held_out), Side(*train)
    nearest = _nearest(_small(asked.pixels), _small(known.pixels))
    found: dict[str, list[float]] = {f"{kind}_at_{k}": [] for kind in ("chance", "neighbour") for k in AT}
    spoken, there = np.array(asked.languages), np.array(known.languages)
    for language in np.unique(spoken):
        some, others = np.flatnonzero(spoken == language), np.flatnonzero(there == language)
        similar = _overlap([known.texts[row] for row in others.tolist()], [asked.texts[row] for row in some.tolist()])
        place = dict(zip(known.of[others].tolist(), range(len(others))))
        for column, row in enumerate(some.tolist()):
            neighbour = place.get(int(nearest[asked.of[row]]))
            scores = np.zeros(len(some)) if neighbour is None else similar[neighbour]
            better, equal = (scores > scores[column]).sum(), (scores == scores[column]).sum()
            for k in AT:
                found[f"chance_at_{k}"].append(min(1.0, k / len(some)))
                found[f"neighbour_at_{k}"].append(float(np.clip((k - better) / equal, 0, 1)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _small(pixels: UInt8[np.ndarray, "M H W 3"]) -> Float[np.ndarray, "M P"]:
    count, high, wide = pixels.shape[:3]
    rows, columns = max(1, high // _SIDE), max(1, wide // _SIDE)
    cut = pixels[:, : high // rows * rows, : wide // columns * columns].astype(np.float32)
    return cut.reshape(count, high // rows, rows, wide // columns, columns, 3).mean((2, 4)).reshape(count, -1)


def _nearest(asked: Float[np.ndarray, "M P"], known: Float[np.ndarray, "K P"]) -> Int[np.ndarray, "M"]:
    return ((known**2).sum(1)[None] - 2 * asked @ known.T).argmin(1)


def _overlap(known: Sequence[str], asked: Sequence[str]) -> Float[np.ndarray, "K N"]:
    counts = [Counter(_grams(text)) for text in (*known, *asked)]
    names = {gram: number for number, gram in enumerate(sorted({gram for each in counts for gram in each}))}
    table = np.zeros((len(counts), len(names)), np.float32)
    for row, each in enumerate(counts):
        table[row, [names[gram] for gram in each]] = list(each.values())
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    return np.round(table[: len(known)] @ table[len(known) :].T, 5)


def _grams(text: str) -> list[str]:
    framed = f" {text.casefold()} "
    return [framed[start : start + _GRAM] for start in range(max(1, len(framed) - _GRAM + 1))]
