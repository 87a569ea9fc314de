"""Read LeRobotDataset folders (v2.0, v2.1, v3.0) as demonstrations."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.data.array_store import ColumnWriter, cache_errors, cache_key, open_or_build
from headway.data.column_names import check_column_names
from headway.data.content_hash import fingerprint
from headway.data.demonstrations import Demonstrations, check_finite
from headway.data.input_files import File
from headway.data.lerobot_info import (
    ACTION_FEATURE,
    DOWNLOAD_AGAIN,
    INFO_PATH,
    STATE_FEATURES,
    CameraFeature,
    DatasetInfo,
    EpisodeEntry,
    damage_errors,
    read_environments,
    read_episode_entries,
    read_info_file,
    read_tasks,
)
from headway.data.parquet import open_parquet, read_index
from headway.data.video import Frames, MappedFrames, read_frames
from headway.errors import UserError, nearest
from headway.images import open_image, pillow
from headway.safe_io import check_in_memory

_FORMAT = 1
_IMAGES_AT_ONCE = 64  # images per column in memory at once
_INTEGER_COLUMNS = ("episode_index", "task_index")  # columns with one integer per step


class _Part(NamedTuple):
    """Episodes whose rows are in one file, and the columns of these rows."""

    path: Path
    episodes: list[EpisodeEntry]
    columns: dict[str, np.ndarray]


class _CameraImages(NamedTuple):
    """The images of a camera: `count` images, decoded into `folder` now or later; `spans` are the file, first image and
    length for each episode.
    """

    camera: CameraFeature
    size: tuple[int, int]
    folder: Path
    spans: list[tuple[tuple[Path, int], int]]
    count: int


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobotDataset."""
    return (folder / INFO_PATH).is_file()


def read_lerobot(
    folder: Path, cache: Path, size: tuple[int, int] | None = None, cameras: Sequence[str] | None = None
) -> Demonstrations:
    """The episodes of a folder; states are observation.state followed by observation.environment_state.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. Raises UserError for damaged, missing, uneven or non-finite data, before images are decoded.
    """
    info = read_info_file(folder)
    entries = read_episode_entries(info)
    names_by_index = read_tasks(info)
    parts = [
        _Part(path, episodes, _read_rows(info, path, episodes))
        for path, episodes in ((path, list(group)) for path, group in groupby(entries, lambda entry: entry.path))
    ]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    ends = np.cumsum([episode.length for episode in entries], dtype=np.int64)
    empty = np.zeros((len(columns[ACTION_FEATURE]), 0), np.float32)
    states = np.concatenate([empty, *(columns[name] for name in STATE_FEATURES if name in columns)], axis=1)
    for name, values in (("states", states), ("actions", columns[ACTION_FEATURE])):
        check_finite(values, ends, name, str(folder))
    task_indices, tasks = np.unique(columns["task_index"][ends - 1], return_inverse=True)
    names = tuple(_task_name(folder, names_by_index, number) for number in task_indices.tolist())
    environments = read_environments(folder)
    images = [
        _locate_images(info, parts, camera, cache, size or camera.size) for camera in _select_cameras(info, cameras)
    ]
    _check_disk_space(info, cache, images)
    return Demonstrations(
        states,
        columns[ACTION_FEATURE],
        ends,
        {entry.camera.name: _decode(info, parts, entry) for entry in images},
        tasks.astype(np.int64).reshape(-1),
        names,
        np.array([episode.split_code for episode in entries], np.uint8),
        tuple(environments.get(name, "") for name in names),
        info.rate,
    )


def _task_name(folder: Path, names: dict[int, str], index: int) -> str:
    if index not in names:
        raise UserError(f"{folder}: rows have the task {index}, which is missing from meta/; {DOWNLOAD_AGAIN}")
    return names[index]


def _read_rows(info: DatasetInfo, path: Path, episodes: Sequence[EpisodeEntry]) -> dict[str, np.ndarray]:
    """The numeric columns of a file, whose rows must exactly match `episodes`."""
    widths = dict.fromkeys(_INTEGER_COLUMNS, 1) | dict(info.number_columns)
    rows = sum(episode.length for episode in episodes)
    file = _open_file(path)
    with damage_errors(path, "Parquet"):
        _check_file(path, file, rows, widths)
        check_in_memory(str(path), path.stat().st_size, 8 * rows * sum(widths.values()))
        table = file.read(list(widths))
    columns = {
        name: _column(f"{path}: {name}", path, table.column(name), rows, count) for name, count in widths.items()
    }
    expected = np.concatenate([np.full(episode.length, episode.index) for episode in episodes])
    if not np.array_equal(columns["episode_index"][:, 0], expected):
        row = int(np.flatnonzero(columns["episode_index"][:, 0] != expected)[0])
        actual = int(columns["episode_index"][row, 0])
        raise UserError(
            f"{path}, row {row} belongs to episode {actual}, but to {expected[row]} according to meta/; "
            f"{DOWNLOAD_AGAIN}"
        )
    for name in info.number_columns:
        columns[name] = columns[name].astype(np.float32)
    columns["task_index"] = columns["task_index"][:, 0].astype(np.int64)
    del columns["episode_index"]
    return columns


def _open_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    with damage_errors(path, "Parquet"):
        file = open_parquet(path, "robotics")
        check_column_names(str(path), file.schema_arrow.names)
        return file


def _check_file(path: Path, file: Any, rows: int, widths: dict[str, int]) -> None:
    """Check in the file's index that it has the expected rows and values, before reading it into memory."""
    if file.metadata.num_rows != rows:
        raise UserError(
            f"{path} has {file.metadata.num_rows:,} rows, but {rows:,} according to meta/; {DOWNLOAD_AGAIN}"
        )
    values = dict.fromkeys(widths, 0)
    with damage_errors(path, "Parquet"):
        index = read_index(path)
    for column in (entry for group in index for entry in group):
        owners = [name for name in file.schema_arrow.names if f"{column.path}.".startswith(f"{name}.")]
        name = max(owners, key=len, default="")  # names contain dots, too: action and action.original
        if name in values:
            values[name] += column.values
    for name, count in widths.items():
        if name not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {name!r}; {DOWNLOAD_AGAIN}")
        if values[name] != rows * count:
            raise UserError(
                f"{path}: {name} has {values[name]:,} values, but {rows:,} steps of {count} need {rows * count:,}; "
                f"{DOWNLOAD_AGAIN}"
            )


def _column(location: str, path: Path, column: Any, rows: int, count: int) -> np.ndarray:
    """A column of numbers or lists of numbers, [rows, count]."""
    with damage_errors(path, "Parquet"):
        if column.null_count:
            raise UserError(f"{location} has empty cells; save {count} numbers per step")
        array = column.combine_chunks()
        while array.type.num_fields:
            array = array.flatten()
        values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub" or len(values) != rows * count:
        raise UserError(f"{location} has {len(values):,} values of {values.dtype}; save {count} numbers per step")
    return values.reshape(rows, count)


def _select_cameras(info: DatasetInfo, names: Sequence[str] | None) -> list[CameraFeature]:
    """The cameras with these names; all if None."""
    known = {camera.name: camera for camera in info.cameras}
    for name in names or ():
        if name not in known:
            hint = nearest(name, known) if known else "it has no cameras"
            raise UserError(f"{info.folder} has no camera {name!r}; {hint}")
    return list(info.cameras) if names is None else [known[name] for name in names]


def _locate_images(
    info: DatasetInfo, parts: Sequence[_Part], camera: CameraFeature, cache: Path, size: tuple[int, int]
) -> _CameraImages:
    """Locate the images of a camera without decoding them."""
    spans = [
        (episode.videos.get(camera.key, (part.path, 0)), episode.length) for part in parts for episode in part.episodes
    ]
    files = sorted({path for (path, _), _ in spans})
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    starts = [(files.index(path), first, length) for (path, first), length in spans]
    key_parts = (_FORMAT, fingerprint(map(File, files)), camera.key, camera.size, size, starts, info.rate)
    return _CameraImages(
        camera, size, cache / cache_key("frames", *key_parts), spans, sum(length for _, length in spans)
    )


def _decode(info: DatasetInfo, parts: Sequence[_Part], images: _CameraImages) -> Frames:
    """The images of a camera, from the cache if these files have been decoded to this size before."""
    camera, size, folder, spans, count = images
    embedded_arrays = (_embedded_images(part.path, camera, size) for part in parts)
    arrays = _video_frames(info, spans, camera, size) if camera.video else chain.from_iterable(embedded_arrays)
    open_or_build(folder, lambda part_folder: _build(part_folder, arrays))
    return MappedFrames(folder, "pixels", count, size, camera.size)


def _build(folder: Path, images: Iterable[np.ndarray]) -> None:
    with ColumnWriter(folder, {"pixels": np.uint8}) as columns:
        for image in images:
            columns.append("pixels", image)


def _check_disk_space(info: DatasetInfo, cache: Path, images: Sequence[_CameraImages]) -> None:
    """UserError if the disk is too small for the images that are not decoded yet."""
    missing = [entry for entry in images if not entry.folder.is_dir()]
    size = sum(entry.count * entry.size[0] * entry.size[1] * 3 for entry in missing)
    with cache_errors(cache):
        free_bytes = shutil.disk_usage(cache).free
    if size > free_bytes:
        camera_names = ", ".join(entry.camera.name for entry in missing)
        raise UserError(
            f"{info.folder}: the images of {camera_names} need {size / 1e9:,.1f} GB, but {cache} has "
            f"{free_bytes / 1e9:,.1f} GB "
            "free; set HEADWAY_CACHE to a folder on another disk, or choose smaller images or fewer cameras"
        )


def _video_frames(
    info: DatasetInfo, spans: Sequence[tuple[tuple[Path, int], int]], camera: CameraFeature, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The frames of videos, each video read once, from its first to its last needed frame."""
    for path, group in groupby(spans, lambda span: span[0][0]):
        indices = np.concatenate([np.arange(first, first + length) for (_, first), length in group])
        if (np.diff(indices) <= 0).any():
            raise UserError(f"{path}: episodes in meta/ share frames or are out of order; {DOWNLOAD_AGAIN}")
        yield from read_frames(path, indices, info.rate, camera.size, size)


def _embedded_images(path: Path, camera: CameraFeature, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The images of a column of PNG or JPEG bytes."""
    file, row = _open_file(path), 0
    with damage_errors(path, "Parquet"):
        if camera.key not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {camera.key!r}; {DOWNLOAD_AGAIN}")
        batches = file.iter_batches(_IMAGES_AT_ONCE, columns=[camera.key])
    while True:
        with damage_errors(path, "Parquet"):
            batch = next(batches, None)
            cells = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            break
        for cell in cells:
            encoded = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(encoded, bytes):
                raise UserError(f"{path}, row {row}: {camera.key} contains no image; embed images as PNG bytes")
            yield _decode_image(encoded, f"{path}, row {row}, {camera.key}", camera.size, size)
            row += 1


def _decode_image(encoded: bytes, location: str, expected: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    try:
        with open_image(io.BytesIO(encoded), location, ("PNG", "JPEG")) as image:
            actual = (image.height, image.width)
            if actual == expected:  # known before it is decoded
                scaled = image.convert("RGB")
                if size != expected:
                    scaled = scaled.resize((size[1], size[0]), pillow().Resampling.BOX)
                return np.asarray(scaled)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{location} is damaged or not a PNG or JPEG ({error}); {DOWNLOAD_AGAIN}") from error
    raise UserError(
        f"{location} is {actual[0]} x {actual[1]}, but {expected[0]} x {expected[1]} in info.json; correct info.json"
    )
