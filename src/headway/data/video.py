"""Videos, written picture by picture and read back as arrays, and the pictures of cameras in memory maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.data.containers import create_container, open_container, packaged_av
from headway.data.store import read_column
from headway.drafts import draft_of
from headway.errors import UserError

FASTEST = 240  # frames a second that players show
_X264 = "libx264"
_CODECS = (_X264, "h264", "mpeg4")
_OFF = 0.25  # of a frame, by which the time of one may be beside its number
SUFFIXES = (".mp4", ".mkv", ".mov")


def check_film(path: Path) -> None:
    """UserError for a place where no video can be written, before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not the name of a video; end it with {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first, or choose another place for the video")
    packaged_av()


class Film:
    """A video in H.264 where that is here, written frame by frame: `with Film(path, rate) as film: film.add(frame)`.

    `rate` is in frames a second, whole unless it is a fraction. With `jumps`, one frame of so many stands by itself,
    where a reader may begin; `quick` takes a third of the time for a file four times as large, on one thread. What
    ends with an error leaves nothing behind.
    """

    def __init__(self, path: Path, rate: float | Fraction, jumps: int | None = None, quick: bool = False) -> None:
        self._path, self._part = path, draft_of(path, f"draft{path.suffix}")
        whole = rate if isinstance(rate, Fraction) else round(rate)
        self._rate, self._jumps, self._quick = min(max(whole, 1), FASTEST), jumps, quick
        self._stream: Any = None
        av = packaged_av()
        self._codec = next((name for name in _CODECS if name in av.codecs_available), None)
        if self._codec is None:
            raise UserError(f"the package av has none of {', '.join(_CODECS)}; install another build of it")

    def __enter__(self) -> Film:
        with self._told():
            self._container = create_container(self._part)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                with self._told():
                    self._container.mux(self._stream.encode())
                    self._container.close()
                    self._part.replace(self._path)
        finally:
            self._container.close()
            self._part.unlink(missing_ok=True)

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]; all are of one size."""
        height, width = (side - side % 2 for side in frame.shape[:2])  # which these codecs want even
        with self._told():
            if self._stream is None:
                self._stream = self._opened(height, width)
            plain = np.ascontiguousarray(frame[:height, :width])
            self._container.mux(self._stream.encode(packaged_av().VideoFrame.from_ndarray(plain, format="rgb24")))

    def _opened(self, height: int, width: int) -> Any:
        stream = self._container.add_stream(self._codec, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if self._quick:
            stream.codec_context.thread_count = 1
            if self._codec == _X264:
                stream.options = {"preset": "ultrafast"}
        if self._jumps is not None:
            stream.codec_context.gop_size = self._jumps
        return stream

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # what av raises, too
            raise UserError(f"the video {self._path} cannot be written ({error.strerror or error})") from error


def read_frames(
    path: Path, wanted: np.ndarray, rate: float, size: tuple[int, int], scaled: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video by their rising numbers, int64 [K]: uint8 [H, W, 3] each.

    `size` is what the video must have, height and width; `scaled` what is given instead. No more is decoded than up to
    the last one. Raises UserError for a video that is not there, damaged, of another size or rate, or too short.
    """
    if not path.is_file():
        raise UserError(f"there is no video {path}; fetch the data set again")
    place = 0
    for number, frame in _numbered(path, rate, size):
        if number < wanted[place]:
            continue
        if number > wanted[place]:
            break
        _check_size(path, frame, size)
        yield _plain(frame, path, scaled)
        place += 1
        if place == len(wanted):
            return
    raise UserError(f"{path} has no frame {wanted[place]}, and the rows have one; fetch the data set again")


def _check_size(path: Path, shown: Any, size: tuple[int, int]) -> None:
    """That a stream, whose codec must be known, or a frame is of a size."""
    with _sound(path):
        height, width = shown.height, shown.width
    if (height, width) != size:
        raise UserError(
            f"{path} shows {height} x {width} pixels, and info.json says {size[0]} x {size[1]}; "
            "correct it there, or fetch the data set again"
        )


def _numbered(path: Path, rate: float, size: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """All frames with their numbers, which their times say."""
    with _sound(path):
        container = open_container(path)
    with container:
        if not container.streams.video:
            raise UserError(f"{path} holds no video; fetch the data set again")
        stream = container.streams.video[0]
        _check_size(path, stream, size)  # before a frame takes memory
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        while True:
            with _sound(path):
                frame = next(frames, None)
            if frame is None:
                return
            time = 0.0 if frame.time is None else frame.time * rate
            number = round(time)
            if abs(time - number) > _OFF:
                raise UserError(
                    f"{path} has a frame at {frame.time:.4f} s, between two of {rate:g} a second as info.json says; "
                    "correct fps there"
                )
            yield number, frame


def _plain(frame: Any, path: Path, scaled: tuple[int, int] | None) -> np.ndarray:
    with _sound(path):
        if scaled is None or scaled == (frame.height, frame.width):
            return frame.to_ndarray(format="rgb24")
        height, width = scaled
        return frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """What the library says of a damaged file, in any of its many exceptions, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is damaged or no video ({reason}); fetch the data set again") from error


class Frames(Protocol):
    """The pictures of one camera, of all steps one after the other. `size` is height and width, `recorded` what they
    were before they were scaled.
    """

    size: tuple[int, int]
    recorded: tuple[int, int]

    @property
    def content(self) -> str:
        """A name for what the pictures were decoded from, wherever that is."""
        ...

    def __len__(self) -> int: ...
    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        ...


class MappedFrames:
    """N pictures in a file that `Columns` wrote as one column of bytes."""

    def __init__(
        self, folder: Path, name: str, count: int, size: tuple[int, int], recorded: tuple[int, int] | None = None
    ) -> None:
        """Raises UserError for a file that is not of this length."""
        self.size, self.recorded = size, recorded or size
        self.content = folder.name  # which the cache makes of the files' contents
        shape = (count, *size, 3)
        self._pixels = read_column(folder, name, np.uint8, int(np.prod(shape))).reshape(shape)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return np.asarray(self._pixels[steps])


class JoinedFrames:
    """The pictures of several, one after the other; all are of one size."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.size, self.recorded = parts[0].size, parts[0].recorded
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    @property
    def content(self) -> str:
        return " ".join(part.content for part in self._parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        found = np.empty((len(steps), *self.size, 3), np.uint8)
        numbers = np.searchsorted(self._ends, steps, side="right")
        for number in np.unique(numbers).tolist():
            places = numbers == number
            found[places] = self._parts[number].read(steps[places] - (self._ends[number] - len(self._parts[number])))
        return found
