"""Sounds in containers that libsndfile does not read, such as .m4a, .mp4 and .webm, by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.errors import UserError
from headway.received import check_whole, opened

# What is in one file. A playlist, which FFmpeg reads too, would name other files and hosts.
_FORMATS = "mov,matroska,webm,ogg,mp3,aac,flac,wav,w64,aiff,avi,asf,flv,mpeg,mpegts,amr,caf,ac3,ape,wv,tta,dsf,au"
_TELL_LENGTH = ("mov", "matroska")  # whose headers say how long they are; others are guessed from the size
_TOGETHER = 256  # frames of a codec, a thousand samples each or so, that are given at once
_SAMPLE = 2  # bytes of a sample, as most are recorded
LONGEST = 24 * 3600  # seconds; silence of years packs into a small file
_CUT = 0.5  # seconds by which what is read may be shorter than the header says


class ContainerReader:
    """The first sound of a container, at its own `rate`; `seconds` long, as far as the header says.

    UserError for what FFmpeg does not read, what holds no sound, and where the package av is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as stream:
            first = next(self._decoded(stream), None)
            if first is None:
                raise UserError(f"{path} is a sound of 0 samples; leave it out or record it again")
            self.rate: int = first.sample_rate
            said = _seconds(stream)
        self.seconds: float = sum(map(len, self.read())) / self.rate if said is None else said

    def read(self) -> Iterator[Float[Tensor, "N channels"]]:
        """The samples in pieces. UserError where they are damaged, or end before the header says."""
        av, count = _library(self.path), 0
        with self._opened() as stream:
            said, resampler = _seconds(stream), av.AudioResampler("fltp", rate=self.rate)
            pieces: list[Tensor] = []
            for frame in self._decoded(stream):
                for some in resampler.resample(frame):
                    count += some.samples
                    pieces.append(torch.from_numpy(some.to_ndarray()).T)
                if len(pieces) >= _TOGETHER:
                    check_length(self.path, count / self.rate)
                    yield torch.cat(pieces)
                    pieces = []
            if pieces:
                yield torch.cat(pieces)
            told = stream.container.format.name.startswith(_TELL_LENGTH)
        if said is not None and told and count / self.rate < said - _CUT:
            raise UserError(f"{self.path} ends after {count / self.rate:.1f} of {said:.1f} s; get the file again")

    def _decoded(self, stream: Any) -> Iterator[Any]:
        return (frame for frame in stream.container.decode(stream) if frame.samples)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        av = _library(self.path)
        opened(self.path).close()  # what is no plain file would keep the library waiting
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            with av.open(str(self.path.resolve()), options=options, metadata_errors="ignore") as container:
                if not container.streams.audio:
                    raise UserError(f"{self.path} holds no sound; give a file that does")
                yield container.streams.audio[0]
        except (av.FFmpegError, ValueError, RuntimeError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(
                f"{self.path} is not a sound that can be read ({reason}); give .wav, .flac, .ogg, .mp3, .m4a or .mp4"
            ) from error


def _seconds(stream: Any) -> float | None:
    """What the header says of a sound's length, if it does; that of a film may be another."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    container = stream.container
    if container.duration is None or container.streams.video:
        return None
    return container.duration / 1_000_000  # from microseconds


def check_length(path: Path, seconds: float) -> None:
    """UserError for a sound of more than a day."""
    if seconds > LONGEST:
        raise UserError(f"{path} is longer than {LONGEST // 3600} hours; cut it into shorter sounds")


def check_packing(path: Path, seconds: float, rate: int) -> None:
    """UserError for a sound that is longer than so few bytes can hold: hours of silence."""
    check_whole(f"{path}, of {seconds:,.0f} s,", path.stat().st_size, round(seconds * rate) * _SAMPLE)


def _library(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"{path} is none of .wav, .flac, .ogg and .mp3, and other sounds need the package av; "
                        "pip install 'headway[audio]'") from error  # fmt: skip
    return av
