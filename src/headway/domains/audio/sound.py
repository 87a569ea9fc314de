"""Sounds from files: wav, flac, ogg, mp3 and what else libsndfile reads, whole or a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.resample import RATE, Resampler
from headway.errors import UserError

BLOCK = 1 << 18  # samples of a file that are read at once
_UNKNOWN = (0, 0xFFFFFFFF)  # sizes in the header of a .wav that was written as a stream


class FileSound:
    """A file as numbers between -1 and 1 at `rate` samples a second, its channels averaged; it lasts so many `seconds`.

    UserError for what is no sound; what is damaged further on is found as it is read.
    """

    def __init__(self, path: Path | str, rate: int = RATE) -> None:
        self.path, self.rate = Path(path), rate
        self.source = str(self.path)
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise UserError(f"{self.path} {what}; give a sound file, as .wav, .flac, .ogg or .mp3")
        with self._opened() as file:
            if file.frames == 0:
                raise UserError(f"{self.path} is a sound of 0 samples; leave it out, or record it again")
            self.seconds: float = file.frames / file.samplerate
            try:
                Resampler(file.samplerate, rate)
            except UserError as error:
                raise UserError(f"{self.path}: {error}") from None
        _check_wav(self.path)

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The sound from its start, in pieces. UserError where the file ends before its header says, and for samples
        that are no numbers.
        """
        with self._opened() as file:
            frames, resampler, count = file.frames, Resampler(file.samplerate, self.rate), 0
            while len(samples := file.read(BLOCK, dtype="float32", always_2d=True)):
                count += len(samples)
                yield resampler.push(mono(torch.from_numpy(samples), self.source))
        if count < frames:
            raise UserError(f"{self.path} ends after {count} of {frames} samples; get the file again")
        yield resampler.finish()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        soundfile = _library(self.path)
        try:
            with soundfile.SoundFile(self.path) as file:
                yield file
        except (soundfile.SoundFileError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"Error opening {str(self.path)!r}: ")
            raise UserError(
                f"{self.path} is no sound that can be read ({reason}); give .wav, .flac, .ogg or .mp3"
            ) from error


class ArraySound:
    """A sound that is in memory: numbers between -1 and 1, 16,000 a second, of one channel or [N, channels]."""

    def __init__(self, samples: Any, source: str = "the sound") -> None:
        found = torch.as_tensor(samples)
        if not found.is_floating_point() or found.dim() not in (1, 2):
            raise UserError(
                f"{source} is {found.dtype} of shape {tuple(found.shape)}; give floating-point numbers between -1 and "
                "1, of shape [samples] or [samples, channels]"
            )
        if not len(found):
            raise UserError(f"{source} has 0 samples; leave it out")
        self.source = source
        self._samples = mono(found.float().view(len(found), -1), source)

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The sound from its start, in pieces."""
        yield from self._samples.split(BLOCK)


Sound = FileSound | ArraySound
Given = str | Path | np.ndarray | Tensor | Sequence[float] | Sound


def open_sound(given: Given) -> Sound:
    """A sound by its file, or its samples; one that is opened as it is. UserError for anything else."""
    if isinstance(given, (FileSound, ArraySound)):
        return given
    if isinstance(given, (str, Path)):
        return FileSound(given)
    if isinstance(given, (np.ndarray, Tensor, list, tuple)):
        return ArraySound(given)
    raise UserError(f"a {type(given).__name__} is no sound; give the path of a file, or samples at {RATE} a second")


def read_sound(path: Path | str, rate: int = RATE) -> Float[Tensor, "N"]:
    """A whole file. Errors as of a FileSound."""
    return torch.cat(list(FileSound(path, rate).blocks()))


def mono(samples: Float[Tensor, "N channels"], source: str = "the sound") -> Float[Tensor, "N"]:
    """The mean of the channels. UserError where samples are no numbers."""
    sound = samples.mean(1)
    if not bool(sound.isfinite().all()):
        raise UserError(f"{source} has samples that are infinite or no numbers; make the file again")
    return sound


def _check_wav(path: Path) -> None:
    """UserError for a .wav that was cut: libsndfile would read it as far as it goes, and say nothing."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        whole = path.stat().st_size
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            left = whole - file.tell()
            if chunk[:4] == b"data":
                if size not in _UNKNOWN and size > left:
                    raise UserError(f"{path} ends after {left} of {size} bytes of sound; get the file again")
                return
            file.seek(size + size % 2, 1)


def _library(place: Path) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library for this machine is missing
        raise UserError(f"{place} needs the package soundfile; pip install 'headway[audio]'") from error
    return soundfile
