"""How much of a sound a model hears at once: its window, in frames of 10 ms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headway.domains.audio.mel import HOP, RATE
from headway.errors import ConfigError, UserError
from headway.learn import Recipe
from headway.nn.models import FramesEmbedConfig, SpectrogramEmbedConfig, TransformerConfig

_RECIPE = "recipe.json"  # in a workspace it says that the run has begun, so that its model's window is settled


def window_of(model: TransformerConfig) -> int:
    """The frames of a model's window. ConfigError for one that hears none."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.frames
    if isinstance(model.embed, FramesEmbedConfig) and model.context is not None:
        return 2 * model.context
    raise ConfigError(
        f"this task needs a model that hears windows of sound, and the model's embed is {type(model.embed).__name__}; "
        "choose another, such as that of the recipe audio"
    )


def bands_of(model: TransformerConfig) -> int:
    """The bands of its frames."""
    window_of(model)
    return model.embed.bands  # type: ignore[attr-defined]


def with_window(model: TransformerConfig, frames: int) -> TransformerConfig:
    """`model` with a window of so many frames, which `fitting` gave."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return replace(model, embed=replace(model.embed, frames=frames))
    return replace(model, context=frames // 2)


def fitting(model: TransformerConfig, frames: int) -> int:
    """The fewest frames that hold so many and that the model can have as its window."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.fitting(frames)
    return frames + frames % 2


def settled(
    recipe: Recipe, model: TransformerConfig, lengths: np.ndarray, seconds: float | None, workspace: Path
) -> int:
    """The frames of the window: `seconds` where they are given; else the model's own where it has learned or comes from
    another, and for a new model the longest sound, which is no more than the model's. `lengths` are in samples.
    """
    most = window_of(model)
    if seconds is not None:
        return fitting(model, frames_of(round(seconds * RATE)))
    if recipe.start is not None or (workspace / _RECIPE).exists():
        return most
    return min(most, fitting(model, frames_of(int(lengths.max(initial=1)))))


def frames_of(samples: int) -> int:
    """The fewest frames that hold so many samples."""
    return -(-samples // HOP)


def check_lengths(lengths: np.ndarray, frames: int, named: str, remedy: str) -> None:
    """UserError for the longest sound, whose place is `named`, where it does not fit."""
    longest = int(lengths.max(initial=0))
    if frames_of(longest) > frames:
        raise UserError(
            f"{named} has {longest / RATE:.2f} s, more than the window of {frames * HOP / RATE:g} s that the model "
            f"hears; {remedy}"
        )
