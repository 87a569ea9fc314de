"""Sounds from files: what libsndfile reads, and else what FFmpeg does, whole or a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.data.containers import open_container, packaged_av
from headway.domains.audio.mel import RATE, Resampler
from headway.errors import UserError, logger
from headway.received import check_whole, opened, size_of

_LOG = logger(__name__)
_MISSING = "is none of .wav, .flac, .ogg and .mp3, and other sounds need the package av; pip install 'headway[audio]'"
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
        av, count = packaged_av(f"{self.path} {_MISSING}"), 0
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
        av = packaged_av(f"{self.path} {_MISSING}")
        try:
            with open_container(self.path) as container:
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


KINDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".mov", ".mkv", ".webm", ".wma", ".aiff")
BLOCK = 1 << 18  # samples of a file that are read at once
_CHANNELS = 8  # of a sound, up to which blocks are whole
_UNKNOWN = (0, 0xFFFFFFFF)  # sizes in the header of a .wav that was written as a stream


class Sound(Protocol):
    """Samples at one rate, of one channel, in pieces; `source` names them in messages."""

    source: str

    def blocks(self) -> Iterator[Float[Tensor, "N"]]: ...


class FileSound:
    """A file as numbers between -1 and 1 at `rate` samples a second, its channels averaged; it lasts so many `seconds`.
    Where they would cancel each other, as one of them is out of phase, only the loudest is read: `opposed` says so once
    the sound has been read, and the log does if it is `told`.

    UserError for what is no sound, and for one of more than a day; what is damaged further on is found as it is read.
    """

    def __init__(self, path: Path | str, rate: int = RATE, told: bool = True) -> None:
        self.path, self.rate, self.told, self.opposed = Path(path), rate, told, False
        self.source = str(self.path)
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "is no file" if self.path.exists() else "does not exist"
            raise UserError(f"{self.path} {what}; give a sound file, as .wav, .flac, .ogg, .mp3 or .m4a")
        self._reader = _reader(self.path)
        self.seconds = self._reader.seconds
        check_length(self.path, self.seconds)
        check_packing(self.path, self.seconds, max(rate, self._reader.rate))
        try:
            Resampler(self._reader.rate, rate)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The sound from its start, in pieces. UserError where the file ends before its header says, and for samples
        that are no numbers.
        """
        resampler, count, mix = Resampler(self._reader.rate, self.rate), 0, ChannelMix(self.source)
        for samples in self._reader.read():
            count += len(samples)
            check_length(self.path, count / self._reader.rate)
            check_packing(self.path, count / self._reader.rate, max(self.rate, self._reader.rate))
            yield resampler.push(mix.mono(samples))
        self.opposed = mix.chosen is not None
        if self.opposed and self.told:
            _LOG.warning("%s: %s", self.source, OPPOSED)
        yield resampler.finish()


class LibsndfileReader:
    """What libsndfile reads of a file, at its own `rate`. UserError for a sound of no samples, and a .wav that was cut;
    RuntimeError, or another that soundfile raises, for what is no sound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _library(path).SoundFile(path) as file:
            self.rate: int = file.samplerate
            self.seconds: float = file.frames / file.samplerate
        if not self.seconds:
            raise UserError(f"{path} is a sound of 0 samples; leave it out or record it again")
        _check_wav(path)

    def read(self) -> Iterator[Float[Tensor, "N channels"]]:
        """The samples in pieces. UserError where there are fewer than the header says."""
        count = 0
        try:
            with _library(self.path).SoundFile(self.path) as file:
                frames = file.frames
                most = max(1, BLOCK // max(1, file.channels // _CHANNELS))
                while len(samples := file.read(most, dtype="float32", always_2d=True)):
                    count += len(samples)
                    yield torch.from_numpy(samples)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is not a sound that can be read ({reason}); get the file again") from error
        if count < frames:
            raise UserError(f"{self.path} ends after {count} of {frames} samples; get the file again")


def _reader(path: Path) -> LibsndfileReader | ContainerReader:
    """libsndfile for what it reads, as all did before there was another."""
    try:
        return LibsndfileReader(path)
    except (TypeError, ValueError, RuntimeError):  # of soundfile, which is not loaded where it is not needed
        return ContainerReader(path)


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
        mix = ChannelMix(source)
        self._samples = mix.mono(found.float().view(len(found), -1))
        if mix.chosen is not None:
            _LOG.warning("%s: %s", source, OPPOSED)

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The sound from its start, in pieces."""
        yield from self._samples.split(BLOCK)


Given = str | Path | np.ndarray | Tensor | Sequence[float] | Sound


def open_sound(given: Given) -> Sound:
    """A sound by its file, or its samples; one that is opened as it is. UserError for anything else."""
    if isinstance(given, (FileSound, ArraySound)):
        return given
    if isinstance(given, (str, Path)):
        return FileSound(given)
    if isinstance(given, (np.ndarray, Tensor, list, tuple)):
        return ArraySound(given)
    raise UserError(f"a {type(given).__name__} is not a sound; give the path of a file, or samples at {RATE} a second")


def read_sound(path: Path | str, rate: int = RATE) -> Float[Tensor, "N"]:
    """A whole file. Errors as of a FileSound."""
    return torch.cat(list(FileSound(path, rate).blocks()))


OPPOSED = "its channels cancel each other when they are averaged, so only the loudest is read"
_SILENT, _CANCELLED = 1e-8, 1e-3  # powers: of silence, and of what is left of the channels' own


class ChannelMix:
    """One channel of several, in pieces: their mean, or the loudest where the mean leaves less than a thousandth of
    their power (-30 dB). The first piece that is not silent decides; `chosen` is the channel that is read alone.
    """

    def __init__(self, source: str) -> None:
        self.source, self._decided = source, False
        self.chosen: int | None = None

    def mono(self, samples: Float[Tensor, "N channels"]) -> Float[Tensor, "N"]:
        """UserError where samples are no numbers."""
        if not self._decided and samples.shape[1] > 1:
            powers = samples.double().square().mean(0)
            power = float(powers.mean())
            if power > _SILENT:
                self._decided = True
                if float(samples.double().mean(1).square().mean()) < _CANCELLED * power:
                    self.chosen = int(powers.argmax())
        return mono(samples if self.chosen is None else samples[:, self.chosen, None], self.source)


def mono(samples: Float[Tensor, "N channels"], source: str = "the sound") -> Float[Tensor, "N"]:
    """The mean of the channels. UserError where samples are no numbers."""
    sound = samples.mean(1)
    if not bool(sound.isfinite().all()):
        raise UserError(f"{source} has samples that are infinite or no numbers; make the file again")
    return sound


def _check_wav(path: Path) -> None:
    """UserError for a .wav that was cut: libsndfile would read it as far as it goes, and say nothing."""
    with opened(path) as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        whole = size_of(file)
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
