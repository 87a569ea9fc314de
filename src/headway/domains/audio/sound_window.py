"""A model's audio window, in frames of 10 ms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headway.domains.audio.mel import HOP, RATE
from headway.errors import ConfigError, UserError
from headway.learn import Recipe
from headway.nn.models import FramesEmbedConfig, SpectrogramEmbedConfig, TransformerConfig

_RECIPE = "recipe.json"  # if in the workspace, the run has started, so its window is fixed


def window_of(model: TransformerConfig) -> int:
    """The frames in a model's window. ConfigError for a model that does not take audio."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.frames
    if isinstance(model.embed, FramesEmbedConfig) and model.context is not None:
        return 2 * model.context
    raise ConfigError(
        f"this task needs a model that takes audio windows, but model.embed is {type(model.embed).__name__}; choose "
        "another model, such as the one from the audio recipe"
    )


def bands_of(model: TransformerConfig) -> int:
    """The number of mel bands of its frames."""
    window_of(model)
    return model.embed.bands  # type: ignore[attr-defined]


def with_window(model: TransformerConfig, frames: int) -> TransformerConfig:
    """`model` with a window of this many frames, from `valid_frames`."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return replace(model, embed=replace(model.embed, frames=frames))
    return replace(model, context=frames // 2)


def valid_frames(model: TransformerConfig, frames: int) -> int:
    """The smallest valid window of at least this many frames."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.padded_frames(frames)
    return frames + frames % 2


def choose_window(
    recipe: Recipe, model: TransformerConfig, lengths: np.ndarray, seconds: float | None, workspace: Path
) -> int:
    """The frames in the window: `seconds` if set; otherwise the model's own window if it is trained or has a start
    model; for a new model the longest recording, at most the model's window. `lengths` are in samples.
    """
    max_frames = window_of(model)
    if seconds is not None:
        return valid_frames(model, frames_of(round(seconds * RATE)))
    if recipe.start is not None or (workspace / _RECIPE).exists():
        return max_frames
    return min(max_frames, valid_frames(model, frames_of(int(lengths.max(initial=1)))))


def frames_of(samples: int) -> int:
    """The smallest number of frames that hold this many samples."""
    return -(-samples // HOP)


def check_lengths(lengths: np.ndarray, frames: int, location: str, remedy: str) -> None:
    """UserError if the longest recording, located at `named`, exceeds the window."""
    max_length = int(lengths.max(initial=0))
    if frames_of(max_length) > frames:
        raise UserError(
            f"{location} is {max_length / RATE:.2f} s long, but the model's window is {frames * HOP / RATE:g} s; "
            f"{remedy}"
        )
