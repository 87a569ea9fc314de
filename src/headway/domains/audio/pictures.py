"""Pictures of sounds and of what is made of them, for the page of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.mel import HOP
from headway.domains.audio.resample import RATE
from headway.report import Picture, heatmap
from headway.report.spectrogram import Span, spectrogram

_MOST = 24  # classes that a picture shows


def class_pictures(
    labels: Sequence[str], right: np.ndarray, said: np.ndarray, heard: Sequence[tuple[str, Float[Tensor, "T M"]]]
) -> list[Picture]:
    """Confusions of classes int [N], and the spectrograms of some sounds by name."""
    pictures = [confusions(labels, right, said)]
    for name, frames in heard:
        pictures.append(Picture("A sound as it is heard", name, spectrogram(frames.numpy(), seconds(len(frames)))))
    return pictures


def confusions(labels: Sequence[str], right: np.ndarray, said: np.ndarray) -> Picture:
    """The share of each class (downwards) that is taken for each; of many classes, those with the most errors."""
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (right, said), 1)
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [labels[number] for number in map(int, shown)]
    caption = f"what is said (to the right) of each class (downwards), {int(counts.sum()):,} sounds"
    if len(shown) < len(labels):
        caption += f"; the {len(shown)} classes of {len(labels)} that are confused most"
    return Picture("Confusions", caption, heatmap(share[np.ix_(shown, shown)].tolist(), names, names, "confusions"))


def alignment_picture(
    name: str,
    frames: Float[Tensor, "T M"],
    tracks: dict[str, list[Span]],
    attention: Float[np.ndarray, "N S"] | None,
    symbols: Sequence[str],
) -> Picture:
    """A sound, what is said and heard in it, and where the decoder looked when it foretold each symbol."""
    caption = f"{name}; below, where each symbol (downwards) was read from, in the mean of layers and heads"
    figure = spectrogram(frames.numpy(), seconds(len(frames)), tracks, attention, symbols)
    return Picture("Alignment", caption, figure, wide=True)


def seconds(frames: int) -> float:
    return frames * HOP / RATE
