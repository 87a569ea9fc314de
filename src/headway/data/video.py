"""Write videos frame by frame, read them as arrays, and memory-map camera images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headway.data.array_store import read_column
from headway.errors import UserError
from headway.io.containers import create_container, import_av, open_container
from headway.io.durable import temporary_path
from headway.io.files import damage_errors

MAX_FRAME_RATE = 240  # maximum frames per second that players support
_X264 = "libx264"
_CODECS = (_X264, "h264", "mpeg4")
_TIME_TOLERANCE = 0.25  # how far a frame's time may deviate from its index, in frames
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
_DAMAGE = ("a video", "download the data set again")


def check_video_path(path: Path) -> None:
    """UserError if no video can be written to a path, before any work."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"{path} does not have a video's extension; use {', '.join(VIDEO_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; create it, or choose another path for the video")
    import_av()


class VideoWriter:
    """Write a video frame by frame, in H.264 if available: `with VideoWriter(path, rate) as video: video.add(frame)`.

    `rate` is in frames per second, rounded to an integer unless it is a Fraction. `keyframe_interval` sets the distance
    between keyframes. `fast` takes a third of the time for a file four times as large, on one thread. `lossless` keeps
    the colour of each pixel, in a file about eight times as large, if the encoder can. After an error, no file remains.
    """

    def __init__(
        self,
        path: Path,
        rate: float | Fraction,
        keyframe_interval: int | None = None,
        fast: bool = False,
        lossless: bool = False,
    ) -> None:
        self._path, self._part = path, temporary_path(path, f"draft{path.suffix}")
        exact_rate = rate if isinstance(rate, Fraction) else round(rate)
        self._rate = min(max(exact_rate, 1), MAX_FRAME_RATE)
        self._keyframe_interval, self._fast = keyframe_interval, fast
        self._stream: Any = None
        av = import_av()
        self._codec = next((name for name in _CODECS if name in av.codecs_available), None)
        if self._codec is None:
            raise UserError(f"the package av has no encoder ({', '.join(_CODECS)}); install another build of av")
        self._lossless = lossless and self._codec == _X264
        self.pixel_format = "yuv444p" if self._lossless else "yuv420p"

    def __enter__(self) -> VideoWriter:
        with self._write_errors():
            self._container = create_container(self._part)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                with self._write_errors():
                    self._container.mux(self._stream.encode())
                    self._container.close()
                    self._part.replace(self._path)
        finally:
            self._container.close()
            self._part.unlink(missing_ok=True)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3]; all must have the same size."""
        height, width = (length - length % 2 for length in frame.shape[:2])  # these codecs need even sizes
        with self._write_errors():
            if self._stream is None:
                self._stream = self._container.add_stream(self._codec, rate=self._rate)
                self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, self.pixel_format
                if self._lossless:
                    self._stream.options = {"qp": "0"}
                if self._fast:
                    self._stream.codec_context.thread_count = 1
                    if self._codec == _X264:
                        self._stream.options = {"preset": "ultrafast"}
                if self._keyframe_interval is not None:
                    self._stream.codec_context.gop_size = self._keyframe_interval
            even_frame = np.ascontiguousarray(frame[:height, :width])
            self._container.mux(self._stream.encode(import_av().VideoFrame.from_ndarray(even_frame, format="rgb24")))

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # av's exceptions derive from it
            raise UserError(
                f"the video {self._path} cannot be written ({error.strerror or error}); choose another path"
            ) from error


def read_frames(
    path: Path, indices: np.ndarray, rate: float, size: tuple[int, int], scaled: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video at increasing indices, int64 [K]: uint8 [H, W, 3] each. A frame's index follows from its
    time.

    `size` is the height and width that the video must have; `scaled` those of the returned frames. Decoding stops at
    the last index. Raises UserError for a video that is missing, damaged, too short or has another size or rate.
    """
    if not path.is_file():
        raise UserError(f"there is no video {path}; download the data set again")
    with damage_errors(path, *_DAMAGE):
        container = open_container(path)
    position = 0
    with container:
        if not container.streams.video:
            raise UserError(f"{path} contains no video; download the data set again")
        stream = container.streams.video[0]
        _check_size(path, stream, size)  # before a frame takes memory
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        while position < len(indices):
            with damage_errors(path, *_DAMAGE):
                frame = next(frames, None)
            if frame is None:
                break
            time = 0.0 if frame.time is None else frame.time * rate
            number = round(time)
            if abs(time - number) > _TIME_TOLERANCE:
                raise UserError(
                    f"{path} has a frame at {frame.time:.4f} s, which does not match the {rate:g} frames per second in "
                    "info.json; correct fps in info.json"
                )
            if number > indices[position]:
                break
            if number == indices[position]:
                _check_size(path, frame, size)
                with damage_errors(path, *_DAMAGE):
                    if scaled is None or scaled == size:
                        image = frame.to_ndarray(format="rgb24")
                    else:
                        image = frame.reformat(scaled[1], scaled[0], "rgb24", interpolation="AREA").to_ndarray()
                yield image
                position += 1
    if position < len(indices):
        raise UserError(f"{path} has no frame {indices[position]}, but the rows have one; download the data set again")


def _check_size(path: Path, frame: Any, size: tuple[int, int]) -> None:
    """Check the size of a frame, or of a stream with a known codec."""
    with damage_errors(path, *_DAMAGE):
        height, width = frame.height, frame.width
    if (height, width) != size:
        raise UserError(
            f"{path} has {height} x {width} pixels, but info.json has {size[0]} x {size[1]}; "
            "correct info.json, or download the data set again"
        )


class Frames(Protocol):
    """The images of one camera at all steps, in sequence. `size` is height and width, `recorded_size` the size before
    scaling.
    """

    size: tuple[int, int]
    recorded_size: tuple[int, int]

    @property
    def content(self) -> str:
        """An identifier for the image source, independent of its path."""
        ...

    def __len__(self) -> int: ...
    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        ...


class MappedFrames:
    """N images in a file that `ColumnWriter` wrote as one column of bytes. It is mapped only while images are read,
    because a recording has more files than a process may keep open.
    """

    def __init__(
        self, folder: Path, name: str, count: int, size: tuple[int, int], recorded_size: tuple[int, int] | None = None
    ) -> None:
        """Raises UserError if the file does not have this length."""
        self.size, self.recorded_size = size, recorded_size or size
        self.content = folder.name  # a hash of the files' contents
        self._folder, self._name, self._count = folder, name, count
        self._pixels()

    def __len__(self) -> int:
        return self._count

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return np.asarray(self._pixels()[steps])

    def _pixels(self) -> np.ndarray:
        shape = (self._count, *self.size, 3)
        return read_column(self._folder, self._name, np.uint8, int(np.prod(shape))).reshape(shape)


class JoinedFrames:
    """The images of several sources in sequence; all must have the same size."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.size, self.recorded_size = parts[0].size, parts[0].recorded_size
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    @property
    def content(self) -> str:
        return " ".join(part.content for part in self._parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        images = np.empty((len(steps), *self.size, 3), np.uint8)
        part_indices = np.searchsorted(self._ends, steps, side="right")
        for index in np.unique(part_indices).tolist():
            selected = part_indices == index
            images[selected] = self._parts[index].read(steps[selected] - (self._ends[index] - len(self._parts[index])))
        return images
