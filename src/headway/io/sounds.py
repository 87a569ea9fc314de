"""Audio files, opened by libsndfile or FFmpeg and read in blocks as they are: all channels, at their own rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from headway.errors import UserError
from headway.io.containers import import_av, open_container
from headway.io.files import check_in_memory, file_size, open_file

BLOCK = 1 << 18  # samples per block of a file
_AV_HINT = "is not .wav, .flac, .ogg or .mp3, and other formats need the package av; run pip install 'headway[audio]'"
# Formats whose headers state their length; for others it is a guess from the size.
_RELIABLE_LENGTH = ("mov", "matroska")
_BLOCK_FRAMES = 256  # codec frames per block, about a thousand samples each
_SAMPLE_BYTES = 2  # bytes per sample of most recordings
MAX_SECONDS = 24 * 3600  # years of silence fit into a small file
_LENGTH_TOLERANCE = 0.5  # seconds by which audio may be shorter than its header states
_MAX_CHANNELS = 8  # channels up to which blocks have full length
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # sizes in the header of a .wav that was written as a stream


class SoundReader(Protocol):
    """An audio file at its own `rate`; `seconds` is the length that its header states."""

    rate: int
    seconds: float

    def read(self) -> Iterator[Float32[np.ndarray, "N channels"]]:
        """The samples in blocks, between -1 and 1. UserError if they are damaged, or fewer than the header states."""
        ...


def open_sound_file(path: Path) -> SoundReader:
    """A reader by libsndfile if it supports the format, otherwise by FFmpeg. UserError if neither can read the file."""
    try:
        return LibsndfileReader(path)
    except (TypeError, ValueError, RuntimeError):  # from soundfile, which is only imported if needed
        return ContainerReader(path)


class ContainerReader:
    """The first audio stream in a container, at its own `rate`; `seconds` is the length that the header states.

    UserError for a format that FFmpeg cannot read, a file without audio, or a missing av package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as stream:
            first = next(self._decode(stream), None)
            if first is None:
                raise UserError(f"{path} has 0 samples; remove it or record it again")
            self.rate: int = first.sample_rate
            stated = _seconds(stream)
        self.seconds: float = sum(map(len, self.read())) / self.rate if stated is None else stated

    def read(self) -> Iterator[Float32[np.ndarray, "N channels"]]:
        """The samples in blocks. UserError if they are damaged, or end earlier than the header states."""
        av, count = import_av(f"{self.path} {_AV_HINT}"), 0
        with self._open() as stream:
            stated, resampler = _seconds(stream), av.AudioResampler("fltp", rate=self.rate)
            chunks: list[np.ndarray] = []
            for frame in self._decode(stream):
                for resampled in resampler.resample(frame):
                    count += resampled.samples
                    chunks.append(resampled.to_ndarray().T)
                if len(chunks) >= _BLOCK_FRAMES:
                    check_length(self.path, count / self.rate)
                    yield np.ascontiguousarray(np.concatenate(chunks))
                    chunks = []
            if chunks:
                yield np.ascontiguousarray(np.concatenate(chunks))
            is_reliable = stream.container.format.name.startswith(_RELIABLE_LENGTH)
        if stated is not None and is_reliable and count / self.rate < stated - _LENGTH_TOLERANCE:
            raise UserError(
                f"{self.path} ends after {count / self.rate:.1f} of {stated:.1f} s; download the file again"
            )

    def _decode(self, stream: Any) -> Iterator[Any]:
        return (frame for frame in stream.container.decode(stream) if frame.samples)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        av = import_av(f"{self.path} {_AV_HINT}")
        try:
            with open_container(self.path) as container:
                if not container.streams.audio:
                    raise UserError(f"{self.path} has no audio stream; use a file with one")
                yield container.streams.audio[0]
        except (av.FFmpegError, ValueError, RuntimeError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(
                f"{self.path} is not a readable audio file ({reason}); use .wav, .flac, .ogg, .mp3, .m4a or .mp4"
            ) from error


def _seconds(stream: Any) -> float | None:
    """The length that the header states, if any; the video's may differ."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    container = stream.container
    if container.duration is None or container.streams.video:
        return None
    return container.duration / 1_000_000  # from microseconds


def check_length(path: Path, seconds: float) -> None:
    """UserError for audio longer than a day."""
    if seconds > MAX_SECONDS:
        raise UserError(f"{path} is longer than {MAX_SECONDS // 3600} hours; split it into shorter files")


def check_plausible_length(path: Path, seconds: float, rate: int) -> None:
    """UserError for audio that is implausibly long for its file size, such as hours of silence."""
    check_in_memory(f"{path}, of {seconds:,.0f} s,", path.stat().st_size, round(seconds * rate) * _SAMPLE_BYTES)


class LibsndfileReader:
    """Reads a file with libsndfile, at its own `rate`. UserError for an empty file or a truncated .wav; RuntimeError or
    another exception from soundfile for other invalid files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _soundfile(path).SoundFile(path) as file:
            self.rate: int = file.samplerate
            self.seconds: float = file.frames / file.samplerate
        if not self.seconds:
            raise UserError(f"{path} has 0 samples; remove it or record it again")
        _check_wav(path)

    def read(self) -> Iterator[Float32[np.ndarray, "N channels"]]:
        """The samples in blocks. UserError if there are fewer than the header states."""
        count = 0
        try:
            with _soundfile(self.path).SoundFile(self.path) as file:
                frames = file.frames
                max_frames = max(1, BLOCK // max(1, file.channels // _MAX_CHANNELS))
                while len(samples := file.read(max_frames, dtype="float32", always_2d=True)):
                    count += len(samples)
                    yield samples
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is not a readable audio file ({reason}); download the file again") from error
        if count < frames:
            raise UserError(f"{self.path} ends after {count} of {frames} samples; download the file again")


def _check_wav(path: Path) -> None:
    """UserError for a truncated .wav, which libsndfile would read without an error."""
    with open_file(path) as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        total_size = file_size(file)
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            remaining = total_size - file.tell()
            if chunk[:4] == b"data":
                if size not in _UNKNOWN_SIZES and size > remaining:
                    raise UserError(f"{path} ends after {remaining} of {size} bytes of audio; download the file again")
                return
            file.seek(size + size % 2, 1)


def _soundfile(path: Path) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library for this machine is missing
        raise UserError(f"{path} needs the package soundfile; run pip install 'headway[audio]'") from error
    return soundfile
