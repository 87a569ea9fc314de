"""A model's window of sound, in frames of 10 ms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headway.domains.audio.mel import HOP, RATE
from headway.errors import ConfigError, UserError
from headway.learn import Recipe
from headway.nn.models import FramesEmbedConfig, SpectrogramEmbedConfig, TransformerConfig

_RECIPE = "recipe.json"  # in a workspace, shows that the run has started, so its window is fixed


def window_of(model: TransformerConfig) -> int:
    """The frames of a model's window. ConfigError for a model that does not take sounds."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.frames
    if isinstance(model.embed, FramesEmbedConfig) and model.context is not None:
        return 2 * model.context
    raise ConfigError(
        f"this task needs a model that takes windows of sound, but the model's embed is {type(model.embed).__name__}; "
        "choose another, such as that of the recipe audio"
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
    """The frames of the window: `seconds` if given; otherwise the model's own if it is trained or comes from another,
    and for a new model the longest sound, at most the model's window. `lengths` are in samples.
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
    """UserError if the longest sound, located at `named`, exceeds the window."""
    max_length = int(lengths.max(initial=0))
    if frames_of(max_length) > frames:
        raise UserError(
            f"{location} has {max_length / RATE:.2f} s, more than the model's window of {frames * HOP / RATE:g} s; "
            f"{remedy}"
        )
