"""Sounds from files: wav, flac, ogg, mp3 and what else libsndfile reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.resample import RATE, resample
from headway.errors import UserError


def read_sound(path: Path | str, rate: int = RATE) -> Float[Tensor, "N"]:
    """A whole file as numbers between -1 and 1 at `rate` samples a second, its channels averaged.

    UserError for what is no sound, has no samples, or ends before its header says.
    """
    place = Path(path)
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "does not exist"
        raise UserError(f"{place} {what}; give a sound file, as .wav, .flac, .ogg or .mp3")
    soundfile = _library(place)
    try:
        with soundfile.SoundFile(place) as file:
            frames, found = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"Error opening {str(place)!r}: ")
        raise UserError(f"{place} is no sound that can be read ({reason}); give .wav, .flac, .ogg or .mp3") from error
    if not len(samples):
        raise UserError(f"{place} is a sound of 0 samples; leave it out, or record it again")
    if len(samples) < frames:
        raise UserError(f"{place} ends after {len(samples)} of {frames} samples; get the file again")
    return resample(mono(torch.from_numpy(samples), str(place)), found, rate)


def mono(samples: Float[Tensor, "N channels"], source: str = "the sound") -> Float[Tensor, "N"]:
    """The mean of the channels. UserError where samples are no numbers."""
    sound = samples.mean(1)
    if not bool(sound.isfinite().all()):
        raise UserError(f"{source} has samples that are infinite or no numbers; make the file again")
    return sound


def _library(place: Path) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library for this machine is missing
        raise UserError(f"{place} needs the package soundfile; pip install 'headway[audio]'") from error
    return soundfile
