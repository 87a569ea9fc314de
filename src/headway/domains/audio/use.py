"""Classifiers of sounds at work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.checkpoints.usage import Usage, named
from headway.domains.audio.classification import windowed
from headway.domains.audio.sound import mono, read_sound
from headway.domains.audio.windows import bands_of, check_lengths, window_of
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.given import Failed, each
from headway.models import Transformer

Sound = str | Path | Float[np.ndarray, "N"]

_AT_ONCE = 16  # sounds


def classify(
    model: Transformer,
    usage: Usage,
    sounds: Sequence[Sound],
    source: str,
    truncate: bool = False,
    failed: Failed | None = None,
) -> list[dict[str, float]]:
    """The probability of each label for each sound, a file or its samples at 16,000 a second, the most probable first.

    `source` is the model's place, for messages; `truncate` hears the middle of what is longer than the model's window;
    sounds that cannot be read are left out and put into `failed`, where that is given.
    Raises UserError for what is no sound, and for a longer one.
    """
    _check(sounds)
    said: list[list[float]] = []
    with evaluating(model), torch.inference_mode():
        read = each(sounds, lambda place, sound: _frames(model, sound, place, truncate), failed)
        while some := list(islice(read, _AT_ONCE)):
            inputs = torch.stack(some)
            said += model.output("classes", inputs.to(device_of(model))).float().softmax(-1).tolist()
    return [named(row, usage.labels) for row in said]


def _frames(model: Transformer, sound: Sound, number: int, truncate: bool) -> Float[Tensor, "T M"]:
    config: Any = model.config
    if isinstance(sound, np.ndarray):
        name = f"sound {number + 1}"
        samples = mono(torch.from_numpy(sound.astype(np.float32))[:, None], name)
    else:
        if not Path(sound).is_file():
            raise UserError(f"{sound} is not a file; this model classifies sound files")
        name, samples = str(sound), read_sound(sound)
    frames = window_of(config)
    if not truncate:
        check_lengths(np.array([len(samples)]), frames, name, "cut it, or have its middle heard with truncate")
    return windowed(samples, frames, bands_of(config))


def _check(sounds: Sequence[Sound]) -> None:
    """UserError for what cannot be a sound, before the first is read."""
    for number, sound in enumerate(sounds):
        if isinstance(sound, np.ndarray):
            if sound.ndim != 1 or not len(sound) or not np.issubdtype(sound.dtype, np.floating):
                raise UserError(
                    f"sound {number + 1} is {sound.dtype} of shape {sound.shape}; give its samples at 16,000 a second, "
                    "floating-point numbers between -1 and 1"
                )
        elif not isinstance(sound, (str, Path)):
            raise UserError(
                f"sound {number + 1} is a {type(sound).__name__}; give the paths of sound files, or samples"
            )
