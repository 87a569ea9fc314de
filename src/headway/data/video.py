"""Write videos frame by frame, read them as arrays, and memory-map camera images."""

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

FASTEST = 240  # frames per second that players support
_X264 = "libx264"
_CODECS = (_X264, "h264", "mpeg4")
_OFF = 0.25  # frames by which a frame's time may deviate from its index
SUFFIXES = (".mp4", ".mkv", ".mov")


def check_film(path: Path) -> None:
    """UserError if no video can be written to a path, before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} does not have a video's extension; use {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; create it, or choose another path for the video")
    packaged_av()


class Film:
    """Write a video frame by frame, in H.264 if available: `with VideoWriter(path, rate) as video: video.add(frame)`.

    `rate` is in frames per second, rounded to an integer unless it is a Fraction. `keyframe_interval` sets the distance
    between keyframes. `fast` takes a third of the time for a file four times as large, on one thread. After an error,
    no file remains.
    """

    def __init__(self, path: Path, rate: float | Fraction, jumps: int | None = None, quick: bool = False) -> None:
        self._path, self._part = path, draft_of(path, f"draft{path.suffix}")
        whole = rate if isinstance(rate, Fraction) else round(rate)
        self._rate, self._jumps, self._quick = min(max(whole, 1), FASTEST), jumps, quick
        self._stream: Any = None
        av = packaged_av()
        self._codec = next((name for name in _CODECS if name in av.codecs_available), None)
        if self._codec is None:
            raise UserError(
                f"the package av has no encoder ({', '.join(_CODECS)}); install another build of av"
            )

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
        """Append a frame, uint8 [H, W, 3]; all must have the same size."""
        height, width = (side - side % 2 for side in frame.shape[:2])  # these codecs need even sizes
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
        except OSError as error:  # av's exceptions derive from it
            raise UserError(
                f"the video {self._path} cannot be written ({error.strerror or error}); choose another path"
            ) from error


def read_frames(
    path: Path, wanted: np.ndarray, rate: float, size: tuple[int, int], scaled: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video at increasing indices, int64 [K]: uint8 [H, W, 3] each.

    `size` is the height and width that the video must have; `scaled` those of the returned frames. Decoding stops at
    the last index. Raises UserError for a video that is missing, damaged, too short or of another size or rate.
    """
    if not path.is_file():
        raise UserError(f"there is no video {path}; download the data set again")
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
    raise UserError(f"{path} has no frame {wanted[place]}, but the rows have one; download the data set again")


def _check_size(path: Path, shown: Any, size: tuple[int, int]) -> None:
    """Check the size of a frame, or of a stream, whose codec must be known."""
    with _sound(path):
        height, width = shown.height, shown.width
    if (height, width) != size:
        raise UserError(
            f"{path} has {height} x {width} pixels, but info.json has {size[0]} x {size[1]}; "
            "correct info.json, or download the data set again"
        )


def _numbered(path: Path, rate: float, size: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """All frames with their indices, which follow from their times."""
    with _sound(path):
        container = open_container(path)
    with container:
        if not container.streams.video:
            raise UserError(f"{path} contains no video; download the data set again")
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
                    f"{path} has a frame at {frame.time:.4f} s, which does not match the {rate:g} frames per second in "
                    "info.json; correct fps in info.json"
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
    """Turn any exception that the library raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is damaged or not a video ({reason}); download the data set again") from error


class Frames(Protocol):
    """The images of one camera at all steps, in sequence. `size` is height and width, `recorded_size` the size before
    scaling.
    """

    size: tuple[int, int]
    recorded: tuple[int, int]

    @property
    def content(self) -> str:
        """An identifier of the source of the images, independent of its path."""
        ...

    def __len__(self) -> int: ...
    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        ...


class MappedFrames:
    """N images in a file that `ColumnWriter` wrote as one column of bytes."""

    def __init__(
        self, folder: Path, name: str, count: int, size: tuple[int, int], recorded: tuple[int, int] | None = None
    ) -> None:
        """Raises UserError if the file does not have this length."""
        self.size, self.recorded = size, recorded or size
        self.content = folder.name  # a hash of the files' contents
        shape = (count, *size, 3)
        self._pixels = read_column(folder, name, np.uint8, int(np.prod(shape))).reshape(shape)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return np.asarray(self._pixels[steps])


class JoinedFrames:
    """The images of several sources in sequence; all must have the same size."""

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
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        found = np.empty((len(steps), *self.size, 3), np.uint8)
        numbers = np.searchsorted(self._ends, steps, side="right")
        for number in np.unique(numbers).tolist():
            places = numbers == number
            found[places] = self._parts[number].read(steps[places] - (self._ends[number] - len(self._parts[number])))
        return found
