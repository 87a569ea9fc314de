"""How well images and texts find each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from headway.errors import UserError
from headway.metrics import bootstrap_mean, wilson

AT = (1, 5)
_NEAR = 1e-6  # a difference of similarities that counts; equal texts are equally near
_ROWS = 1024  # queries whose similarities are held at once


def recall(
    images: Float[np.ndarray, "M E"],
    texts: Float[np.ndarray, "N E"],
    of: Int[np.ndarray, "N"],
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`recall_at_K`: how often one of an image's own texts is among the K nearest of all texts; `image_recall_at_K`:
    how often a text's image is among the K nearest of all images. Text n belongs to image `of[n]`.

    With `languages` [N] only texts of one language are compared: recall_at_K is the mean over all, recall_at_K_LANGUAGE
    that of one. Intervals draw images anew. What is as near as the own does not count against it.
    """
    if not len(texts):
        raise UserError("there are 0 texts to measure; give at least one")
    spoken = np.array(languages) if languages is not None else np.full(len(texts), "")
    ranks = {name: _text_ranks(images, texts, of, np.flatnonzero(spoken == name)) for name in np.unique(spoken)}
    found = {
        **_scores("recall", ranks),
        **_scores("image_recall", {"": _image_ranks(images, texts, of)}),
        "samples": len(np.unique(of)),
    }
    if languages is not None:
        for name, each in ranks.items():
            found |= {f"recall_at_{k}_{name}": _rate(each[each >= 0], k) for k in AT}
    return found


def _scores(name: str, ranks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates over the rows [M] that have a rank (0 or more) in some language, and their intervals."""
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


def _rate(ranks: np.ndarray, k: int) -> float:
    return float((ranks < k).mean())


def _text_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray, some: np.ndarray) -> np.ndarray:
    """For each image how many of `some` texts are nearer than the nearest of its own; -1 where it has none."""
    ranks = np.full(len(images), -1)
    for image in np.unique(of[some]):
        similar = texts[some] @ images[image]
        ranks[image] = (similar > similar[of[some] == image].max() + _NEAR).sum()
    return ranks


def _image_ranks(images: np.ndarray, texts: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each text how many images are nearer than its own, those without a text included."""
    ranks = []
    for start in range(0, len(texts), _ROWS):
        similar, own = texts[start : start + _ROWS] @ images.T, of[start : start + _ROWS]
        ranks.append((similar > similar[np.arange(len(own)), own][:, None] + _NEAR).sum(1))
    return np.concatenate(ranks)
