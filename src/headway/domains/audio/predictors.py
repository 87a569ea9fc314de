"""Inference with speech and audio models: classes and transcripts of one or more recordings."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.augmentation import fit_to_window
from headway.domains.audio.classification import crop_to_window, sound_statistics, window_frames
from headway.domains.audio.framing import bands_of, check_lengths, window_of
from headway.domains.audio.mel import HOP
from headway.domains.audio.sound_files import SoundInput, mono, read_sound
from headway.domains.audio.transcriber import Transcriber, Transcription, transcribe_all
from headway.domains.audio.window_transcriber import Task, TranscriptionOptions
from headway.errors import UserError
from headway.formats.usage import named_scores
from headway.generate.prompts import device_of
from headway.io import arguments
from headway.io.arguments import check_types
from headway.nn.models import evaluation_mode, kinds
from headway.predict.model_handle import ModelHandle

Sound = str | Path | Float[np.ndarray, "N"]
Labels = dict[str, float]

_BATCH_SIZE = 16  # sounds


@check_types
def classify(
    model: ModelHandle,
    items: Sound | Iterable[Sound],
    truncate: bool = False,
    labels: Iterable[str] | None = None,
    hypothesis: str = "This example is {}.",
    multiple: bool = False,
) -> Labels | list[Labels]:
    if labels is not None:
        raise UserError("labels can be chosen only for text; remove them")
    request, failures = arguments.audio_inputs(items), arguments.Failures()
    for index, sound in enumerate(request.items):  # before reading the first
        if isinstance(sound, np.ndarray):
            if sound.ndim != 1 or not len(sound) or not np.issubdtype(sound.dtype, np.floating):
                raise UserError(
                    f"sound {index + 1} is {sound.dtype} of shape {sound.shape}; pass samples at 16 kHz as "
                    "floating-point numbers between -1 and 1"
                )
        elif not isinstance(sound, (str, Path)):
            raise UserError(f"sound {index + 1} is a {type(sound).__name__}; pass paths of audio files, or samples")
    statistics: dict[int, np.ndarray] = {}
    on_statistics = statistics.__setitem__ if model.has_input_statistics else None
    scores: list[dict[str, float]] = []
    config: Any = model.module.config
    head = kinds.predicting_head(model.module) or "classes"

    crops = truncate or getattr(getattr(model.recipe, "task", None), "crop", False)

    def frames(index: int, sound: Sound) -> Float[Tensor, "T M"]:
        if isinstance(sound, np.ndarray):
            name = f"sound {index + 1}"
            samples = mono(torch.from_numpy(sound.astype(np.float32))[:, None], name)
        else:
            if not Path(sound).is_file():
                raise UserError(f"{sound} is not a file; pass an audio file")
            name, samples = str(sound), read_sound(sound)
        window = window_of(config)
        if not crops:
            check_lengths(np.array([len(samples)]), window, name, "cut it, or set truncate to use its middle")
        if on_statistics is not None:
            on_statistics(index, sound_statistics(crop_to_window(samples, window)))
        return window_frames(fit_to_window(samples, window * HOP), window, bands_of(config))

    with evaluation_mode(model.module), torch.inference_mode():
        inputs_of_sounds = arguments.read_each(request.items, frames, failures)
        while batch := list(islice(inputs_of_sounds, _BATCH_SIZE)):
            inputs = torch.stack(batch)
            outputs = model.module.output(head, inputs.to(device_of(model.module)))
            scores += named_scores(outputs, model.usage)
    model.check_item_statistics(request.items, statistics, "sound")
    return request.unwrap(scores, failures, "sound")


@check_types
def transcribe(
    model: ModelHandle,
    sound: SoundInput | Iterable[SoundInput],
    language: str | None = None,
    task: Task = "transcribe",
    beam: int = 5,
    prompt: str = "",
    words: bool = False,
    seed: int = 0,
    vad: bool = True,
) -> Transcription | list[Transcription]:
    """Transcribe a recording, or each of several, with timestamps. Pass files or samples at 16 kHz, [N] or [N,
    channels].

    language: spoken language, such as en or de (default: detected in the first 30 s).
    task: "translate" translates into English.
    beam: beams at temperature 0.
    prompt: text assumed to precede the audio; sets names, spelling and style.
    words: also return the time of each word.
    vad: skip parts without speech.

    `transcriber` takes all settings.

    Raises UserError for a model that does not take audio, and for damaged files.
    """
    config = TranscriptionOptions(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
    request, speech_model, failures = arguments.audio_inputs(sound), transcriber(model, config), arguments.Failures()
    return request.unwrap(transcribe_all(speech_model, request.items, failures), failures, "sound")


def transcriber(model: ModelHandle, config: TranscriptionOptions) -> Transcriber:
    """A transcriber with all settings, for many recordings or for a stream. Errors as for `transcribe`."""
    generator: Any = model.generator  # encodes audio, as the module does
    return Transcriber(model.module, generator, model.codec, model.usage, config)
