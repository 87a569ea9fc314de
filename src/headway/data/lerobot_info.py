"""The metadata (meta/) of a LeRobotDataset folder: features, episodes and tasks, for v2.0, v2.1 and v3.0."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headway.data.column_names import check_column_names
from headway.data.parquet import check_table, max_rows_at_once, open_parquet, read_index
from headway.data.splits import split_code, split_from_name
from headway.errors import UserError, nearest
from headway.parsing import parse_json
from headway.safe_io import open_file

INFO_PATH = "meta/info.json"
HEADWAY_PATH = "meta/headway.json"  # headway's addition: the environment of each task
VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE_FEATURES, ACTION_FEATURE = ("observation.state", "observation.environment_state"), "action"
_MAX_METADATA = 1 << 28  # bytes per metadata file
_MAX_SIZE, _MAX_NUMBERS, _MAX_EPISODES = 16384, 100_000, 10_000_000  # limits of a valid folder
_PATTERN_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_RANGE = re.compile(r"(\d+):(\d+)")
DOWNLOAD_AGAIN = "download the data set again"


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
    """An episode in meta/: the file of its rows, `data`; for each camera the video and the first frame in it."""

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
    number_columns = {
        name: _feature_size(path, name, features[name])
        for name in (*STATE_FEATURES, ACTION_FEATURE)
        if name in features
    }
    cameras = tuple(_camera(path, key, feature) for key, feature in features.items() if _is_image_feature(feature))
    if len(number_columns) == 1 and not cameras:
        raise UserError(
            f"{path} has neither {STATE_FEATURES[0]!r} nor cameras, so a policy has no input; add one of them"
        )
    return DatasetInfo(folder, version, float(rate), number_columns, cameras, raw)


def read_episode_entries(info: DatasetInfo) -> list[EpisodeEntry]:
    """The episodes of a folder, in order. Raises UserError if there are none, or if one has 0 steps."""
    entries = list(_entries_v2(info) if info.version < "v3" else _entries_v3(info))
    if not entries:
        raise UserError(f"{info.folder} contains no episodes; record some (headway data collect), or remove it")
    for index, episode in enumerate(entries):
        location = f"{info.folder}, episode {episode.index}"
        if episode.index != index:
            raise UserError(f"{location} is where episode {index} should be; {DOWNLOAD_AGAIN}")
        if episode.length <= 0:
            raise UserError(f"{location} has {episode.length} steps; remove it")
    return entries


def read_tasks(info: DatasetInfo) -> dict[int, str]:
    """The name of each task, by its index."""
    if info.version < "v3":
        rows = list(_read_lines(info.folder / "meta/tasks.jsonl"))
    else:
        rows = read_rows(info.folder / "meta/tasks.parquet")
        for row in rows:  # the name is pandas' index, whose column name depends on the version
            row["task"] = next((value for value in row.values() if isinstance(value, str)), None)
    tasks = {}
    for row in rows:
        index, name = row.get("task_index"), row.get("task")
        if not isinstance(index, int) or not isinstance(name, str):
            raise UserError(
                f"{info.folder}/meta has the task {str(row)[:80]} without task_index or name; {DOWNLOAD_AGAIN}"
            )
        tasks[index] = name
    return tasks


def read_environments(folder: Path) -> dict[str, str]:
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
    with damage_errors(path, "JSON"):
        content = parse_json(_read_text(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; {DOWNLOAD_AGAIN}")
    return content


def read_rows(path: Path, accept: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    """The selected columns of a small Parquet file, row by row."""
    _check_small(path)
    with damage_errors(path, "Parquet"):
        file = open_parquet(path, "robotics")
        check_column_names(str(path), file.schema_arrow.names)
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


@contextmanager
def damage_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn any exception that a library raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
        raise UserError(f"{path} is damaged or not {kind} ({reason}); {DOWNLOAD_AGAIN}") from error


def _is_image_feature(feature: Mapping[str, Any]) -> bool:
    """Whether a feature contains images; depth maps do not count."""
    feature_info = feature.get("info")
    depth = isinstance(feature_info, dict) and bool(
        feature_info.get("video.is_depth_map") or feature_info.get("is_depth_map")
    )
    return feature.get("dtype") in ("video", "image") and not depth


def _feature_size(path: Path, name: str, feature: Mapping[str, Any]) -> int:
    shape = feature.get("shape")
    lengths = shape if isinstance(shape, list) else []
    size = 1
    for length in lengths:
        size *= length if isinstance(length, int) and 0 < length <= _MAX_NUMBERS else _MAX_NUMBERS + 1
    if not lengths or size > _MAX_NUMBERS:
        raise UserError(f"{path}: {name!r} has the shape {shape}; use 1 to {_MAX_NUMBERS:,} numbers per step")
    return size


def _camera(path: Path, key: str, feature: Mapping[str, Any]) -> CameraFeature:
    """An image feature, whose shape may be [H, W, C] or [C, H, W]."""
    shape = feature.get("shape")
    lengths = shape if isinstance(shape, list) and len(shape) == 3 else [0, 0, 0]
    size = lengths[1:] if lengths[0] == 3 and lengths[2] != 3 else lengths[:2]
    if 3 not in (lengths[0], lengths[2]) or not all(
        isinstance(length, int) and 0 < length <= _MAX_SIZE for length in size
    ):
        raise UserError(f"{path}: {key!r} has the shape {shape}; use images of [height, width, 3]")
    return CameraFeature(key, (size[0], size[1]), feature["dtype"] == "video")


def _entries_v2(info: DatasetInfo) -> Iterator[EpisodeEntry]:
    """v2: one line per episode, each with its own data and video files."""
    chunk = info.raw.get("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk <= 0:
        raise UserError(f"{info.folder / INFO_PATH}: chunks_size is {chunk!r}; set it to the episodes per folder")
    for row in _read_lines(info.folder / "meta/episodes.jsonl"):
        index, length = (_integer(info, row, name) for name in ("episode_index", "length"))
        fields = {"episode_chunk": index // chunk, "episode_index": index}
        videos = {
            camera.key: (_file_path(info, "video_path", fields | {"video_key": camera.key}), 0)
            for camera in info.cameras
            if camera.video
        }
        yield EpisodeEntry(index, length, _file_path(info, "data_path", fields), videos, _split_of_episode(info, index))


def _entries_v3(info: DatasetInfo) -> Iterator[EpisodeEntry]:
    """v3: one row per episode; several episodes share a file."""
    folder = info.folder / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} contains no chunk-000/file-000.parquet; {DOWNLOAD_AGAIN}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows.extend(read_rows(path, lambda name: not name.startswith("stats/")))
        if len(rows) > _MAX_EPISODES:
            raise UserError(f"{path}: there are more than {_MAX_EPISODES:,} episodes; split the data set")
    for row in sorted(rows, key=lambda row: _integer(info, row, "episode_index")):
        index, length = (_integer(info, row, name) for name in ("episode_index", "length"))
        fields = {name: _integer(info, row, f"data/{name}") for name in ("chunk_index", "file_index")}
        videos = {camera.key: _video_start(info, row, camera) for camera in info.cameras if camera.video}
        yield EpisodeEntry(index, length, _file_path(info, "data_path", fields), videos, _split_of_episode(info, index))


def _video_start(info: DatasetInfo, row: Mapping[str, Any], camera: CameraFeature) -> tuple[Path, int]:
    prefix = f"videos/{camera.key}/"
    fields = {name: _integer(info, row, prefix + name) for name in ("chunk_index", "file_index")}
    start = row.get(f"{prefix}from_timestamp")
    if not isinstance(start, (int, float)) or not 0 <= start < 1e9:
        raise UserError(
            f"{info.folder}, episode {row['episode_index']}: {prefix}from_timestamp is {start!r}; {DOWNLOAD_AGAIN}"
        )
    return _file_path(info, "video_path", fields | {"video_key": camera.key}), round(start * info.rate)


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


def _split_of_episode(info: DatasetInfo, index: int) -> int:
    """The split of an episode; 0 if the folder has only one split, so that headway splits it."""
    stated = info.raw.get("splits")
    splits = stated if isinstance(stated, dict) and len(stated) > 1 else {}
    for name, text in splits.items():
        split, bounds = split_from_name(name), _RANGE.fullmatch(str(text))
        if split is not None and bounds and int(bounds[1]) <= index < int(bounds[2]):
            return split_code(split)
    return 0


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with damage_errors(path, "JSON lines"):
        rows = [parse_json(line) for line in _read_text(path).splitlines() if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path} has a line that is not an object; {DOWNLOAD_AGAIN}")
        yield row


def _read_text(path: Path) -> str:
    _check_small(path)
    with open_file(path) as file:
        return file.read(_MAX_METADATA).decode("utf-8")


def _check_small(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no {path}; {DOWNLOAD_AGAIN}")
    if path.stat().st_size > _MAX_METADATA:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for metadata; {DOWNLOAD_AGAIN}")
