"""Pictures of sounds and of what is made of them, for the page of a run."""

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
    symbols: Sequence[str],
) -> Picture:
    """A sound, what is said and heard in it, and where the decoder looked when it foretold each symbol."""
    caption = f"{name}; below, where each symbol (downwards) was read from, in the mean of layers and heads"
    figure = spectrogram(frames.numpy(), seconds(len(frames)), tracks, attention, symbols)
    return Picture("Alignment", caption, figure, wide=True)


def seconds(frames: int) -> float:
    return frames * HOP / RATE
