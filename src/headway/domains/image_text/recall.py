"""Retrieval: recall, and pictures of nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.processor import pillow
from headway.errors import UserError
from headway.learn.report import Picture
from headway.learn.report.charts import shorten, svg, text
from headway.learn.report.page import data_uri
from headway.metrics import bootstrap_mean, wilson

_SIDE, _GAP, _LEFT = 56, 8, 180  # in SVG units
_NEAREST = 5
_SHOWN = 96  # pixels per side


def nearest_pictures(
    pixels: UInt8[np.ndarray, "M H W 3"],
    texts: Sequence[str],
    of: Int[np.ndarray, "N"],
    similar: Float[np.ndarray, "N M"],
    count: int,
) -> list[Picture]:
    """`count` of the texts with their nearest images, and `count` images with their nearest texts."""
    asked = np.unique(np.linspace(0, len(texts) - 1, count).astype(int)).tolist()
    looked = np.unique(np.linspace(0, len(pixels) - 1, count).astype(int)).tolist()
    caption = f"held out; the {_NEAREST} nearest of {len(pixels):,}, with a frame around true pairs"
    found = _drawing([_images_of(row, pixels, texts, of, similar) for row in asked], "texts and their nearest images")
    other = f"held out; the {_NEAREST} nearest of {len(texts):,}, with a mark at true pairs"
    back = _drawing([_texts_of(image, pixels, texts, of, similar) for image in looked], "images and their texts")
    return [Picture("Nearest images of a text", caption, found), Picture("Nearest texts of an image", other, back)]


def _images_of(row: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similar: np.ndarray) -> list[str]:
    marks = [text("name", _LEFT - _GAP, _SIDE / 2 + 4, shorten(texts[row], 22), "end")]
    for place, image in enumerate(map(int, np.argsort(-similar[row], kind="stable")[:_NEAREST])):
        x = _LEFT + place * (_SIDE + _GAP)
        marks.append(_image(x, pixels[image]))
        if image == of[row]:
            marks.append(f'<rect class="whisker" x="{x - 2}" y="-2" width="{_SIDE + 4}" height="{_SIDE + 4}"/>')
    return marks


def _texts_of(image: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similar: np.ndarray) -> list[str]:
    marks = [_image(0, pixels[image])]
    for place, row in enumerate(map(int, np.argsort(-similar[:, image], kind="stable")[:_NEAREST])):
        own = of[row] == image
        line = ("✓ " if own else "") + shorten(texts[row], 60)
        marks.append(text("name" if own else "label", _SIDE + 2 * _GAP, 9 + place * 12, line))
    return marks


def _drawing(rows: Sequence[Sequence[str]], title: str) -> str:
    step = _SIDE + 2 * _GAP
    groups = [f'<g transform="translate(2 {2 + number * step})">{"".join(row)}</g>' for number, row in enumerate(rows)]
    return svg(_LEFT + _NEAREST * (_SIDE + _GAP), len(rows) * step, groups, title)


def _image(x: float, pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    image = pillow().fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_SHOWN, _SHOWN))
    return f'<image x="{x}" y="0" width="{_SIDE}" height="{_SIDE}" href="{data_uri(np.array(image))}"/>'


AT = (1, 5)
_NEAR = 1e-6  # minimum difference of similarities; equal texts are equally near
_ROWS = 1024  # queries per block of similarities


def recall(
    images: Float[np.ndarray, "M E"],
    texts: Float[np.ndarray, "N E"],
    of: Int[np.ndarray, "N"],
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`recall_at_K`: how often one of an image's texts is among the K nearest of all texts; `image_recall_at_K`: how
    often a text's image is among the K nearest of all images. Text n belongs to image `of[n]`.

    With `languages` [N], only texts of one language are compared: recall_at_K is the mean over all,
    recall_at_K_LANGUAGE that of one. Intervals resample images. Ties count in favour of the true pair.
    """
    if not len(texts):
        raise UserError("there are 0 texts to measure; pass at least one")
    spoken = np.array(languages) if languages is not None else np.full(len(texts), "")
    ranks = {name: _text_ranks(images, texts, of, np.flatnonzero(spoken == name)) for name in np.unique(spoken)}
    found = {
        **_scores("recall", ranks),
        **_scores("image_recall", {"": _image_ranks(images, texts, of)}),
        "samples": len(np.unique(of)),
    }
    if languages is not None:
        for name, each in ranks.items():
            found |= {f"recall_at_{k}_{name}": float((each[each >= 0] < k).mean()) for k in AT}
    return found


def _scores(name: str, ranks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates over the rows [M] with a rank (0 or more) in any language, and their intervals."""
    scores: dict[str, Any] = {}
    table = np.stack(list(ranks.values()), 1)
    kept = table[(table >= 0).any(1)]
    for k in AT:
        hits = ((kept >= 0) & (kept < k)).sum(1) / (kept >= 0).sum(1)
        rate = float(hits.mean())
        scores[f"{name}_at_{k}"] = rate
        several = table.shape[1] > 1
        scores[f"{name}_at_{k}_interval"] = bootstrap_mean(hits) if several else wilson(int(hits.sum()), len(hits))
    return scores


def _text_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray, some: np.ndarray) -> np.ndarray:
    """For each image, the number of candidate texts nearer than the nearest of its own; -1 if it has none."""
    ranks = np.full(len(images), -1)
    for image in np.unique(of[some]):
        similar = texts[some] @ images[image]
        ranks[image] = (similar > similar[of[some] == image].max() + _NEAR).sum()
    return ranks


def _image_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each text, the number of images nearer than its own, including those without a text."""
    ranks = []
    for start in range(0, len(texts), _ROWS):
        similar, own = texts[start : start + _ROWS] @ images.T, of[start : start + _ROWS]
        ranks.append((similar > similar[np.arange(len(own)), own][:, None] + _NEAR).sum(1))
    return np.concatenate(ranks)
