"""Retrieval: recall, and pictures of nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.image_processor import pillow
from headway.errors import UserError
from headway.learn.report import Picture
from headway.learn.report.charts import ellipsize, svg, text
from headway.learn.report.rendering import data_uri
from headway.metrics import bootstrap_mean, wilson_interval

_TILE_SIDE, _GAP, _LABEL_WIDTH = 56, 8, 180  # in SVG units
_NEAREST = 5
_THUMBNAIL = 96  # pixels per side


def nearest_pictures(
    pixels: UInt8[np.ndarray, "M H W 3"],
    texts: Sequence[str],
    of: Int[np.ndarray, "N"],
    similarity: Float[np.ndarray, "N M"],
    count: int,
) -> list[Picture]:
    """`count` of the texts with their nearest images, and `count` images with their nearest texts."""
    text_rows = np.unique(np.linspace(0, len(texts) - 1, count).astype(int)).tolist()
    image_rows = np.unique(np.linspace(0, len(pixels) - 1, count).astype(int)).tolist()
    caption = f"held out; the {_NEAREST} nearest of {len(pixels):,}, true pairs framed"
    text_drawing = _drawing(
        [_nearest_images_row(row, pixels, texts, of, similarity) for row in text_rows], "texts and their nearest images"
    )
    text_caption = f"held out; the {_NEAREST} nearest of {len(texts):,}, true pairs marked"
    image_drawing = _drawing(
        [_nearest_texts_row(image, pixels, texts, of, similarity) for image in image_rows], "images and their texts"
    )
    return [
        Picture("Nearest images for each text", caption, text_drawing),
        Picture("Nearest texts for each image", text_caption, image_drawing),
    ]


def _nearest_images_row(
    row: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similarity: np.ndarray
) -> list[str]:
    elements = [text("name", _LABEL_WIDTH - _GAP, _TILE_SIDE / 2 + 4, ellipsize(texts[row], 22), "end")]
    for rank, image in enumerate(map(int, np.argsort(-similarity[row], kind="stable")[:_NEAREST])):
        x = _LABEL_WIDTH + rank * (_TILE_SIDE + _GAP)
        elements.append(_image_element(x, pixels[image]))
        if image == of[row]:
            elements.append(
                f'<rect class="whisker" x="{x - 2}" y="-2" width="{_TILE_SIDE + 4}" height="{_TILE_SIDE + 4}"/>'
            )
    return elements


def _nearest_texts_row(
    image: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similarity: np.ndarray
) -> list[str]:
    elements = [_image_element(0, pixels[image])]
    for rank, row in enumerate(map(int, np.argsort(-similarity[:, image], kind="stable")[:_NEAREST])):
        is_match = of[row] == image
        line = ("✓ " if is_match else "") + ellipsize(texts[row], 60)
        elements.append(text("name" if is_match else "label", _TILE_SIDE + 2 * _GAP, 9 + rank * 12, line))
    return elements


def _drawing(rows: Sequence[Sequence[str]], title: str) -> str:
    step = _TILE_SIDE + 2 * _GAP
    groups = [f'<g transform="translate(2 {2 + index * step})">{"".join(row)}</g>' for index, row in enumerate(rows)]
    return svg(_LABEL_WIDTH + _NEAREST * (_TILE_SIDE + _GAP), len(rows) * step, groups, title)


def _image_element(x: float, pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    image = pillow().fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return f'<image x="{x}" y="0" width="{_TILE_SIDE}" height="{_TILE_SIDE}" href="{data_uri(np.array(image))}"/>'


RECALL_AT = (1, 5)
_TOLERANCE = 1e-6  # minimum difference of similarities; equal texts are equally near
_BLOCK_ROWS = 1024  # queries per block of similarities


def retrieval_recall(
    images: Float[np.ndarray, "M E"],
    texts: Float[np.ndarray, "N E"],
    of: Int[np.ndarray, "N"],
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`recall_at_K` is how often one of an image's texts is among the K nearest texts; `image_recall_at_K` is how often
    a text's image is among the K nearest images. Text n belongs to image `of[n]`.

    With `languages` [N], only texts in the same language are compared: recall_at_K is the mean over languages, and
    recall_at_K_LANGUAGE is for one. Intervals resample images. Ties count in favour of the true pair.
    """
    if not len(texts):
        raise UserError("there are no texts to measure; pass at least one")
    text_languages = np.array(languages) if languages is not None else np.full(len(texts), "")
    ranks = {
        name: _text_ranks(images, texts, of, np.flatnonzero(text_languages == name))
        for name in np.unique(text_languages)
    }
    scores = {
        **_scores("recall", ranks),
        **_scores("image_recall", {"": _image_ranks(images, texts, of)}),
        "samples": len(np.unique(of)),
    }
    if languages is not None:
        for name, language_ranks in ranks.items():
            scores |= {
                f"recall_at_{k}_{name}": float((language_ranks[language_ranks >= 0] < k).mean()) for k in RECALL_AT
            }
    return scores


def _scores(name: str, ranks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates and their intervals, over the rows [M] with a rank (0 or more) in any language."""
    scores: dict[str, Any] = {}
    table = np.stack(list(ranks.values()), 1)
    ranked = table[(table >= 0).any(1)]
    for k in RECALL_AT:
        hits = ((ranked >= 0) & (ranked < k)).sum(1) / (ranked >= 0).sum(1)
        rate = float(hits.mean())
        scores[f"{name}_at_{k}"] = rate
        has_several = table.shape[1] > 1
        scores[f"{name}_at_{k}_interval"] = (
            bootstrap_mean(hits) if has_several else wilson_interval(int(hits.sum()), len(hits))
        )
    return scores


def _text_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """For each image, the number of candidate texts nearer than its own nearest text; -1 if it has no text."""
    ranks = np.full(len(images), -1)
    for image in np.unique(of[candidates]):
        similarity = texts[candidates] @ images[image]
        ranks[image] = (similarity > similarity[of[candidates] == image].max() + _TOLERANCE).sum()
    return ranks


def _image_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each text, the number of images nearer than its own image, including images without a text."""
    ranks = []
    for start in range(0, len(texts), _BLOCK_ROWS):
        similarity, image_of = texts[start : start + _BLOCK_ROWS] @ images.T, of[start : start + _BLOCK_ROWS]
        ranks.append((similarity > similarity[np.arange(len(image_of)), image_of][:, None] + _TOLERANCE).sum(1))
    return np.concatenate(ranks)
