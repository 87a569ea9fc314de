"""Pictures of recordings and their transcripts, for run reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.mel import HOP, RATE
from headway.learn.report import Picture
from headway.learn.report.confusion import Span, spectrogram


def alignment_picture(
    name: str,
    frames: Float[Tensor, "T M"],
    tracks: dict[str, list[Span]],
    attention: Float[np.ndarray, "N S"] | None,
    tokens: Sequence[str],
) -> Picture:
    """A spectrogram with the spoken and the recognised words, and the decoder's attention for each predicted token."""
    caption = f"{name}; below, each token's attention (rows), averaged over layers and heads"
    figure = spectrogram(frames.numpy(), frames_to_seconds(len(frames)), tracks, attention, tokens)
    return Picture("Alignment", caption, figure, wide=True)


def frames_to_seconds(frames: int) -> float:
    return frames * HOP / RATE
