"""Read LeRobotDataset folders (v2.0, v2.1, v3.0) as demonstrations."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.data.columns import check_header
from headway.data.demonstrations import Demonstrations, check_numbers
from headway.data.files import File
from headway.data.fingerprint import fingerprint
from headway.data.lerobot_info import (
    ACTION,
    AGAIN,
    INFO,
    STATES,
    CameraFeature,
    Info,
    Noted,
    read_environments,
    read_episodes_noted,
    read_info_file,
    read_tasks,
    sound,
)
from headway.data.parquet import index_of, open_parquet
from headway.data.store import Columns, cache_key, open_or_build, writing
from headway.data.video import Frames, MappedFrames, read_frames
from headway.errors import UserError, nearest
from headway.images import open_image, pillow
from headway.received import check_whole

_FORMAT = 1
_ROWS = 64  # images of a column in memory at once
_WHOLE = ("episode_index", "task_index")  # columns with one integer per step


class _Part(NamedTuple):
    """Episodes whose rows are in one file, and the columns of these rows."""

    data: Path
    episodes: list[Noted]
    columns: dict[str, np.ndarray]


class _Shown(NamedTuple):
    """The images of a camera: `count` images, decoded into `folder` now or later; `spans` are file, first image and
    length for each episode.
    """

    camera: CameraFeature
    size: tuple[int, int]
    folder: Path
    places: list[tuple[tuple[Path, int], int]]
    count: int


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobotDataset."""
    return (folder / INFO).is_file()


def read_lerobot(
    folder: Path, cache: Path, size: tuple[int, int] | None = None, cameras: Sequence[str] | None = None
) -> Demonstrations:
    """The episodes of a folder; states are observation.state followed by observation.environment_state.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. Raises UserError for damaged, missing, uneven or non-finite data, before images are decoded.
    """
    info = read_info_file(folder)
    noted = read_episodes_noted(info)
    texts = read_tasks(info)
    parts = [
        _Part(data, episodes, _rows(info, data, episodes))
        for data, episodes in ((data, list(found)) for data, found in groupby(noted, lambda each: each.data))
    ]
    whole = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    ends = np.cumsum([episode.length for episode in noted], dtype=np.int64)
    empty = np.zeros((len(whole[ACTION]), 0), np.float32)
    states = np.concatenate([empty, *(whole[name] for name in STATES if name in whole)], axis=1)
    for name, values in (("states", states), ("actions", whole[ACTION])):
        check_numbers(values, ends, name, str(folder))
    numbers, tasks = np.unique(whole["task_index"][ends - 1], return_inverse=True)
    names = tuple(_task(folder, texts, number) for number in numbers.tolist())
    places = read_environments(folder)
    shown = [_shown(info, parts, camera, cache, size or camera.size) for camera in _chosen(info, cameras)]
    _check_room(info, cache, shown)
    return Demonstrations(
        states,
        whole[ACTION],
        ends,
        {each.camera.name: _decoded(info, parts, each) for each in shown},
        tasks.astype(np.int64).reshape(-1),
        names,
        np.array([episode.side for episode in noted], np.uint8),
        tuple(places.get(name, "") for name in names),
        info.rate,
    )


def _task(folder: Path, texts: dict[int, str], number: int) -> str:
    if number not in texts:
        raise UserError(f"{folder}: rows have the task {number}, which is missing in meta/; {AGAIN}")
    return texts[number]


def _rows(info: Info, path: Path, episodes: Sequence[Noted]) -> dict[str, np.ndarray]:
    """The numeric columns of a file, whose rows must be exactly those of `episodes`."""
    wanted = dict.fromkeys(_WHOLE, 1) | dict(info.numbers)
    rows = sum(episode.length for episode in episodes)
    file = _opened(path)
    with sound(path, "Parquet"):
        _check_file(path, file, rows, wanted)
        check_whole(str(path), path.stat().st_size, 8 * rows * sum(wanted.values()))
        table = file.read(list(wanted))
    found = {name: _column(f"{path}: {name}", path, table.column(name), rows, count) for name, count in wanted.items()}
    said = np.concatenate([np.full(episode.length, episode.number) for episode in episodes])
    if not np.array_equal(found["episode_index"][:, 0], said):
        row = int(np.flatnonzero(found["episode_index"][:, 0] != said)[0])
        own = int(found["episode_index"][row, 0])
        raise UserError(f"{path}, row {row} belongs to episode {own}, but to {said[row]} according to meta/; {AGAIN}")
    for name in info.numbers:
        found[name] = found[name].astype(np.float32)
    found["task_index"] = found["task_index"][:, 0].astype(np.int64)
    del found["episode_index"]
    return found


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no {path}; {AGAIN}")
    with sound(path, "Parquet"):
        file = open_parquet(path, "robotics")
        check_header(str(path), file.schema_arrow.names)
        return file


def _check_file(path: Path, file: Any, rows: int, wanted: dict[str, int]) -> None:
    """Check by the file's index that it has the expected rows and values, before reading it into memory."""
    if file.metadata.num_rows != rows:
        raise UserError(f"{path} has {file.metadata.num_rows:,} rows, but {rows:,} according to meta/; {AGAIN}")
    values = dict.fromkeys(wanted, 0)
    with sound(path, "Parquet"):
        index = index_of(path)
    for column in (each for group in index for each in group):
        owners = [name for name in file.schema_arrow.names if f"{column.path}.".startswith(f"{name}.")]
        name = max(owners, key=len, default="")  # names contain dots, too: action and action.original
        if name in values:
            values[name] += column.values
    for name, count in wanted.items():
        if name not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {name!r}; {AGAIN}")
        if values[name] != rows * count:
            raise UserError(
                f"{path}: {name} has {values[name]:,} values, but {rows:,} steps of {count} need {rows * count:,}; "
                f"{AGAIN}"
            )


def _column(what: str, path: Path, column: Any, rows: int, count: int) -> np.ndarray:
    """A column of numbers or lists of numbers, [rows, count]."""
    with sound(path, "Parquet"):
        if column.null_count:
            raise UserError(f"{what} has empty cells; save {count} numbers per step")
        array = column.combine_chunks()
        while array.type.num_fields:
            array = array.flatten()
        found = array.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "fiub" or len(found) != rows * count:
        raise UserError(f"{what} has {len(found):,} values of {found.dtype}; save {count} numbers per step")
    return found.reshape(rows, count)


def _chosen(info: Info, names: Sequence[str] | None) -> list[CameraFeature]:
    """The cameras with these names; all if None."""
    known = {camera.name: camera for camera in info.cameras}
    for name in names or ():
        if name not in known:
            told = nearest(name, known) if known else "it has no cameras"
            raise UserError(f"{info.folder} has no camera {name!r}; {told}")
    return list(info.cameras) if names is None else [known[name] for name in names]


def _shown(info: Info, parts: Sequence[_Part], camera: CameraFeature, cache: Path, size: tuple[int, int]) -> _Shown:
    """Locate the images of a camera without decoding them."""
    places = [
        (episode.videos.get(camera.key, (part.data, 0)), episode.length) for part in parts for episode in part.episodes
    ]
    files = sorted({path for (path, _), _ in places})
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no {path}; {AGAIN}")
    firsts = [(files.index(path), first, length) for (path, first), length in places]
    how = (_FORMAT, fingerprint(map(File, files)), camera.key, camera.size, size, firsts, info.rate)
    return _Shown(camera, size, cache / cache_key("frames", *how), places, sum(length for _, length in places))


def _decoded(info: Info, parts: Sequence[_Part], shown: _Shown) -> Frames:
    """The images of a camera, from the cache if these files have been decoded to this size before."""
    camera, size, folder, places, count = shown
    embedded = (_embedded(part.data, camera, size) for part in parts)
    pictures = _filmed(info, places, camera, size) if camera.video else chain.from_iterable(embedded)
    open_or_build(folder, lambda beside: _build(beside, pictures))
    return MappedFrames(folder, "pixels", count, size, camera.size)


def _build(folder: Path, pictures: Iterable[np.ndarray]) -> None:
    with Columns(folder, {"pixels": np.uint8}) as columns:
        for picture in pictures:
            columns.append("pixels", picture)


def _check_room(info: Info, cache: Path, shown: Sequence[_Shown]) -> None:
    """UserError if the disk is too small for the images that are not decoded yet."""
    missing = [each for each in shown if not each.folder.is_dir()]
    size = sum(each.count * each.size[0] * each.size[1] * 3 for each in missing)
    with writing(cache):
        free = shutil.disk_usage(cache).free
    if size > free:
        named = ", ".join(each.camera.name for each in missing)
        raise UserError(
            f"{info.folder}: the images of {named} need {size / 1e9:,.1f} GB, but {cache} has {free / 1e9:,.1f} GB "
            "free; set HEADWAY_CACHE to a folder on another disk, or choose smaller images or fewer cameras"
        )


def _filmed(
    info: Info, places: Sequence[tuple[tuple[Path, int], int]], camera: CameraFeature, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The frames of videos, each video read once, from its first to its last needed frame."""
    for path, found in groupby(places, lambda each: each[0][0]):
        wanted = np.concatenate([np.arange(first, first + length) for (_, first), length in found])
        if (np.diff(wanted) <= 0).any():
            raise UserError(f"{path}: episodes in meta/ share frames or are out of order; {AGAIN}")
        yield from read_frames(path, wanted, info.rate, camera.size, size)


def _embedded(path: Path, camera: CameraFeature, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The images of a column of PNG or JPEG bytes."""
    file, row = _opened(path), 0
    with sound(path, "Parquet"):
        if camera.key not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {camera.key!r}; {AGAIN}")
        batches = file.iter_batches(_ROWS, columns=[camera.key])
    while True:
        with sound(path, "Parquet"):
            batch = next(batches, None)
            found = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            break
        for each in found:
            data = each.get("bytes") if isinstance(each, dict) else each
            if not isinstance(data, bytes):
                raise UserError(f"{path}, row {row}: {camera.key} contains no image; embed images as PNG bytes")
            yield _picture(data, f"{path}, row {row}, {camera.key}", camera.size, size)
            row += 1


def _picture(data: bytes, where: str, wanted: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    try:
        with open_image(io.BytesIO(data), where, ("PNG", "JPEG")) as image:
            found = (image.height, image.width)
            if found == wanted:  # known before it is decoded
                scaled = image.convert("RGB")
                if size != wanted:
                    scaled = scaled.resize((size[1], size[0]), pillow().Resampling.BOX)
                return np.asarray(scaled)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} is damaged or not a PNG or JPEG ({error}); {AGAIN}") from error
    raise UserError(
        f"{where} is {found[0]} x {found[1]}, but {wanted[0]} x {wanted[1]} in info.json; correct info.json"
    )
