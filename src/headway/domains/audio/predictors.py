"""Speech and audio models in use: classes and transcripts of one sound or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.domains.audio.classification import glance, middle_of, windowed
from headway.domains.audio.listener import Task, Transcribing
from headway.domains.audio.sound import Given, mono, read_sound
from headway.domains.audio.transcribe import Transcriber, Transcription, tell_all
from headway.domains.audio.windows import bands_of, check_lengths, window_of
from headway.errors import UserError
from headway.formats.usage import named_scores
from headway.generate.prompts import device_of, evaluating
from headway.given import typed
from headway.handle import Handle
from headway.nn.models import kinds

Watch = Callable[[int, Float[np.ndarray, "F"]], None]
Sound = str | Path | Float[np.ndarray, "N"]
Labels = dict[str, float]

_AT_ONCE = 16  # sounds


@typed
def classify(model: Handle, items: Any, truncate: bool = False) -> Labels | list[Labels]:
    asked, failed = given.sounds(items), given.Failed()
    _check(asked.items)
    heard: dict[int, np.ndarray] = {}
    watch = heard.__setitem__ if model.watches else None
    scores: list[dict[str, float]] = []
    config: Any = model.module.config
    head = kinds.predicting_head(model.module) or "classes"

    def frames(number: int, sound: Sound) -> Float[Tensor, "T M"]:
        if isinstance(sound, np.ndarray):
            name = f"sound {number + 1}"
            samples = mono(torch.from_numpy(sound.astype(np.float32))[:, None], name)
        else:
            if not Path(sound).is_file():
                raise UserError(f"{sound} is not a file; pass a sound file")
            name, samples = str(sound), read_sound(sound)
        window = window_of(config)
        if not truncate:
            check_lengths(np.array([len(samples)]), window, name, "cut it, or use its middle with truncate")
        if watch is not None:
            watch(number, glance(middle_of(samples, window)))
        return windowed(samples, window, bands_of(config))

    with evaluating(model.module), torch.inference_mode():
        read = given.each(asked.items, frames, failed)
        while some := list(islice(read, _AT_ONCE)):
            inputs = torch.stack(some)
            outputs = model.module.output(head, inputs.to(device_of(model.module)))
            scores += named_scores(outputs, model.usage)
    model.see_some(asked.items, heard, "sound")
    return asked.answer(scores, failed, "sound")


@typed
def transcribe(
    model: Handle,
    sound: Given | Iterable[Given],
    language: str | None = None,
    task: Task = "transcribe",
    beam: int = 5,
    prompt: str = "",
    words: bool = False,
    seed: int = 0,
    vad: bool = True,
) -> Transcription | list[Transcription]:
    config = Transcribing(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
    asked, by, failed = given.sounds(sound), transcriber(model, config), given.Failed()
    return asked.answer(tell_all(by, asked.items, failed), failed, "sound")


def transcriber(model: Handle, config: Transcribing) -> Transcriber:
    generator: Any = model.generator  # encodes sounds, as the module does
    return Transcriber(model.module, generator, model.codec, model.usage, config)


def _check(sounds: Sequence[Sound]) -> None:
    """Raises UserError for values that cannot be sounds, before reading the first."""
    for number, sound in enumerate(sounds):
        if isinstance(sound, np.ndarray):
            if sound.ndim != 1 or not len(sound) or not np.issubdtype(sound.dtype, np.floating):
                raise UserError(
                    f"sound {number + 1} is {sound.dtype} of shape {sound.shape}; pass its samples at 16 kHz, "
                    "floating-point numbers between -1 and 1"
                )
        elif not isinstance(sound, (str, Path)):
            raise UserError(f"sound {number + 1} is a {type(sound).__name__}; pass paths of sound files, or samples")
