"""Read LeRobotDataset folders (v2.0, v2.1, v3.0) as episodes: metadata, rows of numbers, and camera images."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from headway.data.array_store import ColumnWriter, cache_errors, cache_key, open_or_build
from headway.data.episodes import Episodes, check_finite, numbers_text
from headway.data.input_files import File
from headway.data.parquet import check_table, max_rows_at_once, open_parquet, read_index
from headway.data.splits import split_code, split_from_name
from headway.data.table_files import check_column_names
from headway.data.token_store import fingerprint
from headway.data.video import Frames, MappedFrames, read_frames
from headway.errors import UserError, nearest
from headway.io.files import check_in_memory, damage_errors, open_file
from headway.io.images import open_image, pillow
from headway.io.json_files import parse_json

INFO_PATH = "meta/info.json"
HEADWAY_PATH = "meta/headway.json"  # headway's addition: the environment of each task
VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE_FEATURES, ACTION_FEATURE = ("observation.state", "observation.environment_state"), "action"
DOWNLOAD_AGAIN = "download the data set again"
_FORMAT = 1  # of decoded images in the cache
_IMAGES_AT_ONCE = 64  # images per column in memory at once
_MAX_METADATA = 1 << 28  # bytes per metadata file
_MAX_SIZE, _MAX_NUMBERS, _MAX_EPISODES = 16384, 100_000, 10_000_000  # limits of a valid folder
_PATTERN_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_RANGE = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class CameraFeature:
    """An image feature: its column or the key of its videos, and height and width."""

    key: str
    size: tuple[int, int]
    video: bool

    @property
    def name(self) -> str:
        """The name that LeRobot users know: corner2 for observation.images.corner2."""
        return self.key.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class EpisodeEntry:
    """An episode in meta/: the file of its rows; for each camera the video and the first frame in it."""

    index: int
    length: int
    path: Path
    videos: Mapping[str, tuple[Path, int]]
    split_code: int


@dataclass(frozen=True)
class DatasetInfo:
    """info.json, checked. `number_columns` are the numeric columns to read, with their sizes."""

    folder: Path
    version: str
    rate: float
    number_columns: Mapping[str, int]
    cameras: tuple[CameraFeature, ...]
    raw: Mapping[str, Any]


class _CameraImages(NamedTuple):
    """The images of a camera: `count` images, decoded into `folder` now or later; `spans` are the file, first image and
    length for each episode.
    """

    camera: CameraFeature
    size: tuple[int, int]
    folder: Path
    spans: list[tuple[tuple[Path, int], int]]
    count: int


def read_lerobot(
    folder: Path, cache: Path, size: tuple[int, int] | None = None, cameras: Sequence[str] | None = None
) -> Episodes:
    """The episodes of a folder; states are observation.state followed by observation.environment_state.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. Raises UserError for damaged, missing, uneven or non-finite data, before images are decoded.
    """
    info = read_info_file(folder)
    entries = read_episode_entries(info)
    if info.version < "v3":
        rows = _read_lines(info.folder / "meta/tasks.jsonl")
    else:
        rows = _read_table(info.folder / "meta/tasks.parquet")
        for row in rows:  # the name is pandas' index, whose column name depends on the version
            row["task"] = next((value for value in row.values() if isinstance(value, str)), None)
    for row in rows:
        if not isinstance(row.get("task_index"), int) or not isinstance(row.get("task"), str):
            raise UserError(
                f"{info.folder}/meta has the task {str(row)[:80]} without task_index or name; {DOWNLOAD_AGAIN}"
            )
    names_by_index = {row["task_index"]: row["task"] for row in rows}
    parts = [_read_rows(info, path, list(group)) for path, group in groupby(entries, lambda entry: entry.path)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([entry.length for entry in entries], dtype=np.int64)
    steps = len(columns[ACTION_FEATURE])
    states = [np.zeros((steps, 0), np.float32), *(columns[name] for name in STATE_FEATURES if name in columns)]
    values = {"states": np.concatenate(states, axis=1), "actions": columns[ACTION_FEATURE]}
    for name, array in values.items():
        check_finite(array, ends, name, str(folder))
    task_indices, tasks = np.unique(columns["task_index"][ends - 1], return_inverse=True)
    for index in task_indices.tolist():
        if index not in names_by_index:
            raise UserError(f"{folder}: rows have the task {index}, which is missing from meta/; {DOWNLOAD_AGAIN}")
    names = tuple(names_by_index[index] for index in task_indices.tolist())
    environments = _read_environments(folder)
    known = {camera.name: camera for camera in info.cameras}
    for name in cameras or ():
        if name not in known:
            hint = nearest(name, known) if known else "it has no cameras"
            raise UserError(f"{info.folder} has no camera {name!r}; {hint}")
    images = [
        _locate_images(info, entries, known[name], cache, size) for name in (known if cameras is None else cameras)
    ]
    _check_disk_space(info, cache, images)
    return Episodes(
        **values,
        rewards=np.zeros(steps),
        ends=ends,
        cut=np.zeros(len(entries), bool),
        named_splits=np.array([entry.split_code for entry in entries], np.uint8),
        tasks=tasks.astype(np.int64).reshape(-1),
        task_names=names,
        environments=tuple(environments.get(name, "") for name in names),
        cameras={image.camera.name: _decode(info, image) for image in images},
        rate=info.rate,
    )


def read_info_file(folder: Path) -> DatasetInfo:
    """Read and check info.json. Raises UserError for unknown versions or features."""
    path = folder / INFO_PATH
    raw = read_json(path)
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(f"{path}: codebase_version is {version!r}; use a folder in version {', '.join(VERSIONS)}")
    rate = raw.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 100_000:
        raise UserError(f"{path}: fps is {rate!r}; set it to the steps per second")
    features = raw.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UserError(f"{path} has no features; {DOWNLOAD_AGAIN}")
    if ACTION_FEATURE not in features:
        raise UserError(f"{path} has no feature {ACTION_FEATURE!r}; {nearest(ACTION_FEATURE, features)}")
    number_columns, cameras = {}, []
    for name in (*STATE_FEATURES, ACTION_FEATURE):
        if name in features:
            shape = features[name].get("shape")
            number_columns[name] = 1
            for length in shape if isinstance(shape, list) and shape else [None]:
                valid = isinstance(length, int) and 0 < length <= _MAX_NUMBERS
                number_columns[name] *= length if valid else _MAX_NUMBERS + 1
            if number_columns[name] > _MAX_NUMBERS:
                raise UserError(f"{path}: {name!r} has the shape {shape}; use 1 to {_MAX_NUMBERS:,} numbers per step")
    for key, feature in features.items():
        details = feature.get("info") if isinstance(feature.get("info"), dict) else {}
        is_depth_map = details.get("video.is_depth_map") or details.get("is_depth_map")
        if feature.get("dtype") in ("video", "image") and not is_depth_map:
            shape = feature.get("shape")  # [H, W, C] or [C, H, W]
            lengths = shape if isinstance(shape, list) and len(shape) == 3 else [0, 0, 0]
            size = lengths[1:] if lengths[0] == 3 and lengths[2] != 3 else lengths[:2]
            is_valid = all(isinstance(length, int) and 0 < length <= _MAX_SIZE for length in size)
            if 3 not in (lengths[0], lengths[2]) or not is_valid:
                raise UserError(f"{path}: {key!r} has the shape {shape}; use images of [height, width, 3]")
            cameras.append(CameraFeature(key, (size[0], size[1]), feature["dtype"] == "video"))
    if len(number_columns) == 1 and not cameras:
        raise UserError(
            f"{path} has neither {STATE_FEATURES[0]!r} nor cameras, so a policy has no input; add one of them"
        )
    return DatasetInfo(folder, version, float(rate), number_columns, tuple(cameras), raw)


def read_episode_entries(info: DatasetInfo) -> list[EpisodeEntry]:
    """The episodes of a folder, in order. Raises UserError if there are none, or if one has 0 steps.

    v2 has one line per episode, each with its own data and video files; v3 has one row per episode, and several
    episodes share a file.
    """
    is_v2, entries = info.version < "v3", list[EpisodeEntry]()
    chunk = info.raw.get("chunks_size", 1000)
    if is_v2 and (not isinstance(chunk, int) or chunk <= 0):
        raise UserError(f"{info.folder / INFO_PATH}: chunks_size is {chunk!r}; set it to the episodes per folder")
    rows = _read_lines(info.folder / "meta/episodes.jsonl") if is_v2 else _read_episode_rows(info)
    stated = info.raw.get("splits")
    splits = stated if isinstance(stated, dict) and len(stated) > 1 else {}  # headway splits a folder with only one
    for row in rows:
        index, length = (_integer(info, row, name) for name in ("episode_index", "length"))
        if is_v2:
            fields = {"episode_chunk": index // chunk, "episode_index": index}
        else:
            fields = {name: _integer(info, row, f"data/{name}") for name in ("chunk_index", "file_index")}
        videos = {}
        for camera in (camera for camera in info.cameras if camera.video):
            video_fields, prefix = {**fields, "video_key": camera.key}, f"videos/{camera.key}/"
            first = 0
            if not is_v2:
                video_fields |= {name: _integer(info, row, prefix + name) for name in ("chunk_index", "file_index")}
                start = row.get(f"{prefix}from_timestamp")
                if not isinstance(start, (int, float)) or not 0 <= start < 1e9:
                    raise UserError(
                        f"{info.folder}, episode {index}: {prefix}from_timestamp is {start!r}; {DOWNLOAD_AGAIN}"
                    )
                first = round(start * info.rate)
            videos[camera.key] = _file_path(info, "video_path", video_fields), first
        code = 0
        for name, text in splits.items():
            split, bounds = split_from_name(name), _RANGE.fullmatch(str(text))
            if not code and split is not None and bounds and int(bounds[1]) <= index < int(bounds[2]):
                code = split_code(split)
        entries.append(EpisodeEntry(index, length, _file_path(info, "data_path", fields), videos, code))
    if not entries:
        raise UserError(f"{info.folder} contains no episodes; record some (headway data collect), or remove it")
    for index, entry in enumerate(entries):
        location = f"{info.folder}, episode {entry.index}"
        if entry.index != index:
            raise UserError(f"{location} is where episode {index} should be; {DOWNLOAD_AGAIN}")
        if entry.length <= 0:
            raise UserError(f"{location} has {entry.length} steps; remove it")
    return entries


def _read_episode_rows(info: DatasetInfo) -> list[dict[str, Any]]:
    """The rows of v3's meta/episodes, by episode index."""
    folder = info.folder / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} contains no chunk-000/file-000.parquet; {DOWNLOAD_AGAIN}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows.extend(_read_table(path, lambda name: not name.startswith("stats/")))
        if len(rows) > _MAX_EPISODES:
            raise UserError(f"{path}: there are more than {_MAX_EPISODES:,} episodes; split the data set")
    return sorted(rows, key=lambda row: _integer(info, row, "episode_index"))


def _integer(info: DatasetInfo, row: Mapping[str, Any], name: str) -> int:
    number = row.get(name)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 40:
        raise UserError(f"{info.folder}/meta has the {name} {number!r} for an episode; {DOWNLOAD_AGAIN}")
    return number


def _file_path(info: DatasetInfo, name: str, fields: Mapping[str, Any]) -> Path:
    """The path of a file. The pattern comes from the folder, so it is expanded by hand and must stay inside it."""
    pattern = info.raw.get(name)
    if not isinstance(pattern, str):
        raise UserError(f"{info.folder / INFO_PATH} has no {name}; {DOWNLOAD_AGAIN}")

    def fill(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise UserError(
                f"{info.folder / INFO_PATH}: {name} has the field {match[1]!r}; {nearest(match[1], fields)}"
            )
        return str(fields[match[1]]).rjust(int(match[2] or 0), "0")

    path = PurePosixPath(_PATTERN_FIELD.sub(fill, pattern))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path):
        raise UserError(f"{info.folder / INFO_PATH}: {name} {pattern!r} is outside the folder; use paths inside it")
    return info.folder / path


def _read_environments(folder: Path) -> dict[str, str]:
    """The environment of each task, by task name, as written by `headway data collect`."""
    path = folder / HEADWAY_PATH
    if not path.is_file():
        return {}
    environments = read_json(path).get("environments")
    if not isinstance(environments, dict) or not all(isinstance(value, str) for value in environments.values()):
        raise UserError(f"{path} does not map tasks to environments; remove the file, or collect the data again")
    return environments


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError for anything else."""
    with _damage(path, "JSON"):
        content = parse_json(_read_text(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; {DOWNLOAD_AGAIN}")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with _damage(path, "JSON lines"):
        rows = [parse_json(line) for line in _read_text(path).splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has a line that is not an object; {DOWNLOAD_AGAIN}")
    return rows


def _read_text(path: Path) -> str:
    _check_small(path)
    with open_file(path) as file:
        return file.read(_MAX_METADATA).decode("utf-8")


def _read_table(path: Path, accept: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    """The selected columns of a small Parquet file, row by row."""
    _check_small(path)
    file = _open_table(path)
    with _damage(path, "Parquet"):
        names = [name for name in file.schema_arrow.names if accept(name)]
        index = read_index(path)
        check_table(index, str(path), path.stat().st_size, names)
        text_columns = [name for name in names if str(file.schema_arrow.field(name).type) in ("string", "large_string")]
        repeated = open_parquet(path, "robotics", text_columns)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            for name in text_columns:
                if max_rows_at_once(index, repeated, group, name, rows) < rows:
                    raise UserError(f"{path} repeats long strings in the column {name!r}; {DOWNLOAD_AGAIN}")
        return file.read(names).to_pylist()


def _open_table(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    with _damage(path, "Parquet"):
        file = open_parquet(path, "robotics")
        check_column_names(str(path), file.schema_arrow.names)
        return file


def _check_small(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    if path.stat().st_size > _MAX_METADATA:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for metadata; {DOWNLOAD_AGAIN}")


def _damage(path: Path, kind: str) -> AbstractContextManager[None]:
    return damage_errors(path, kind, DOWNLOAD_AGAIN)


def _read_rows(info: DatasetInfo, path: Path, entries: Sequence[EpisodeEntry]) -> dict[str, np.ndarray]:
    """The numeric columns of a file, whose rows must exactly match `entries`. The file's index is checked first."""
    widths = {"episode_index": 1, "task_index": 1, **info.number_columns}
    rows = sum(entry.length for entry in entries)
    file = _open_table(path)
    if file.metadata.num_rows != rows:
        raise UserError(
            f"{path} has {file.metadata.num_rows:,} rows, but {rows:,} according to meta/; {DOWNLOAD_AGAIN}"
        )
    value_counts = dict.fromkeys(widths, 0)
    with _damage(path, "Parquet"):
        names, index = file.schema_arrow.names, read_index(path)
    for column in (entry for group in index for entry in group):
        owners = [name for name in names if f"{column.path}.".startswith(f"{name}.")]
        name = max(owners, key=len, default="")  # names contain dots, too: action and action.original
        if name in value_counts:
            value_counts[name] += column.values
    for name, width in widths.items():
        if name not in names:
            raise UserError(f"{path} has no column {name!r}; {DOWNLOAD_AGAIN}")
        if value_counts[name] != rows * width:
            raise UserError(
                f"{path}: {name} has {value_counts[name]:,} values, but {rows:,} steps of {width} need "
                f"{rows * width:,}; {DOWNLOAD_AGAIN}"
            )
    check_in_memory(str(path), path.stat().st_size, 8 * rows * sum(widths.values()))
    columns = {}
    with _damage(path, "Parquet"):
        table = file.read(list(widths))
        for name, width in widths.items():
            if table.column(name).null_count:
                raise UserError(f"{path}: {name} has empty cells; save {numbers_text(width)} per step")
            array = table.column(name).combine_chunks()
            while array.type.num_fields:  # a list of numbers
                array = array.flatten()
            values = array.to_numpy(zero_copy_only=False)
            if values.dtype.kind not in "fiub" or len(values) != rows * width:
                raise UserError(
                    f"{path}: {name} has {len(values):,} values of {values.dtype}; save {numbers_text(width)} per step"
                )
            columns[name] = values.astype(np.float32).reshape(rows, width) if name in info.number_columns else values
    actual = columns.pop("episode_index")
    expected = np.repeat([entry.index for entry in entries], [entry.length for entry in entries])
    if not np.array_equal(actual, expected):
        row = int(np.flatnonzero(actual != expected)[0])
        raise UserError(
            f"{path}, row {row} belongs to episode {int(actual[row])}, but to {expected[row]} according to meta/; "
            f"{DOWNLOAD_AGAIN}"
        )
    return {**columns, "task_index": columns["task_index"].astype(np.int64)}


def _locate_images(
    info: DatasetInfo, entries: Sequence[EpisodeEntry], camera: CameraFeature, cache: Path, size: tuple[int, int] | None
) -> _CameraImages:
    """Locate the images of a camera without decoding them."""
    spans = [(entry.videos.get(camera.key, (entry.path, 0)), entry.length) for entry in entries]
    files = sorted({path for (path, _), _ in spans})
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    starts = [(files.index(path), first, length) for (path, first), length in spans]
    size = size or camera.size
    key_parts = (_FORMAT, fingerprint(map(File, files)), camera.key, camera.size, size, starts, info.rate)
    folder = cache / cache_key("frames", *key_parts)
    return _CameraImages(camera, size, folder, spans, sum(length for _, length in spans))


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
            f"{free_bytes / 1e9:,.1f} GB free; set HEADWAY_CACHE to a folder on another disk, or choose smaller images "
            "or fewer cameras"
        )


def _decode(info: DatasetInfo, images: _CameraImages) -> Frames:
    """The images of a camera, from the cache if these files have been decoded to this size before. Each file is read
    once, a video from its first to its last needed frame.
    """
    camera, size, folder, spans, count = images

    def build(part_folder: Path) -> None:
        with ColumnWriter(part_folder, {"pixels": np.uint8}) as columns:
            for path, group in groupby(spans, lambda span: span[0][0]):
                indices = np.concatenate([np.arange(first, first + length) for (_, first), length in group])
                if camera.video and (np.diff(indices) <= 0).any():
                    raise UserError(f"{path}: episodes in meta/ share frames or are out of order; {DOWNLOAD_AGAIN}")
                for image in (
                    read_frames(path, indices, info.rate, camera.size, size)
                    if camera.video
                    else _embedded_images(path, camera, size)
                ):
                    columns.append("pixels", image)

    open_or_build(folder, build)
    return MappedFrames(folder, "pixels", count, size, camera.size)


def _embedded_images(path: Path, camera: CameraFeature, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The images of a column of PNG or JPEG bytes."""
    file, row = _open_table(path), 0
    if camera.key not in file.schema_arrow.names:
        raise UserError(f"{path} has no column {camera.key!r}; {DOWNLOAD_AGAIN}")
    with _damage(path, "Parquet"):
        batches = file.iter_batches(_IMAGES_AT_ONCE, columns=[camera.key])
    while True:
        with _damage(path, "Parquet"):
            batch = next(batches, None)
            cells = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            break
        for cell in cells:
            encoded = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(encoded, bytes):
                raise UserError(f"{path}, row {row}: {camera.key} contains no image; embed images as PNG bytes")
            location, (height, width) = f"{path}, row {row}, {camera.key}", camera.size
            with (
                damage_errors(location, "a PNG or JPEG", DOWNLOAD_AGAIN),
                open_image(io.BytesIO(encoded), location, ("PNG", "JPEG")) as image,
            ):
                if (image.height, image.width) != camera.size:  # known before it is decoded
                    raise UserError(
                        f"{location} is {image.height} x {image.width}, but {height} x {width} in info.json; correct "
                        "info.json"
                    )
                scaled = image.convert("RGB")
                if size != camera.size:
                    scaled = scaled.resize((size[1], size[0]), pillow().Resampling.BOX)
                pixels = np.asarray(scaled)
            yield pixels
            row += 1
