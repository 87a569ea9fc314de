"""The metadata (meta/) of a LeRobotDataset folder: features, episodes and tasks, for v2.0, v2.1 and v3.0."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headway.data.columns import check_header
from headway.data.parquet import check_table, index_of, open_parquet, rows_at_once
from headway.data.splits import named_side, side_number
from headway.errors import UserError, nearest
from headway.parsing import parse_json
from headway.received import opened

INFO = "meta/info.json"
OWN = "meta/headway.json"  # headway's addition: the environment of each task
VERSIONS = ("v2.0", "v2.1", "v3.0")
STATES, ACTION = ("observation.state", "observation.environment_state"), "action"
_SMALL = 1 << 28  # maximum bytes of a metadata file
_SIDE, _NUMBERS, _EPISODES = 16384, 100_000, 10_000_000  # limits of a valid folder
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_RANGE = re.compile(r"(\d+):(\d+)")
AGAIN = "download the data set again"


@dataclass(frozen=True)
class CameraFeature:
    """An image feature: its column or the key of its videos, and height and width."""

    key: str
    size: tuple[int, int]
    video: bool

    @property
    def name(self) -> str:
        """The name that LeRobot's users know: corner2 for observation.images.corner2."""
        return self.key.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class Noted:
    """An episode in meta/: the file of its rows, `data`; for each camera the video and the first frame in it."""

    number: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, int]]
    side: int


@dataclass(frozen=True)
class Info:
    """info.json, checked. `number_columns` are the numeric columns to read, with their sizes."""

    folder: Path
    version: str
    rate: float
    numbers: Mapping[str, int]
    cameras: tuple[CameraFeature, ...]
    raw: Mapping[str, Any]


def read_info_file(folder: Path) -> Info:
    """Read and check info.json. Raises UserError for unknown versions or features."""
    path = folder / INFO
    raw = read_json(path)
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(f"{path}: codebase_version is {version!r}; use a folder of {', '.join(VERSIONS)}")
    rate = raw.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 100_000:
        raise UserError(f"{path}: fps is {rate!r}; set it to the steps per second")
    features = raw.get("features")
    if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
        raise UserError(f"{path} has no features; {AGAIN}")
    if ACTION not in features:
        raise UserError(f"{path} has no feature {ACTION!r}; {nearest(ACTION, features)}")
    numbers = {name: _numbers(path, name, features[name]) for name in (*STATES, ACTION) if name in features}
    cameras = tuple(_camera(path, key, each) for key, each in features.items() if _shows(each))
    if len(numbers) == 1 and not cameras:
        raise UserError(f"{path} has neither {STATES[0]!r} nor cameras, so a policy has no input; add one of them")
    return Info(folder, version, float(rate), numbers, cameras, raw)


def read_episodes_noted(info: Info) -> list[Noted]:
    """The episodes of a folder, in order. Raises UserError if there are none, or if one has 0 steps."""
    found = list(_of_lines(info) if info.version < "v3" else _of_tables(info))
    if not found:
        raise UserError(f"{info.folder} contains no episodes; record some (headway data collect), or remove it")
    for number, episode in enumerate(found):
        where = f"{info.folder}, episode {episode.number}"
        if episode.number != number:
            raise UserError(f"{where} is in the position of episode {number}; {AGAIN}")
        if episode.length <= 0:
            raise UserError(f"{where} has {episode.length} steps; remove it")
    return found


def read_tasks(info: Info) -> dict[int, str]:
    """The name of each task, by its index."""
    if info.version < "v3":
        rows = list(_lines(info.folder / "meta/tasks.jsonl"))
    else:
        rows = read_rows(info.folder / "meta/tasks.parquet")
        for row in rows:  # the name is pandas' index, whose column name depends on the version
            row["task"] = next((value for value in row.values() if isinstance(value, str)), None)
    found = {}
    for row in rows:
        number, text = row.get("task_index"), row.get("task")
        if not isinstance(number, int) or not isinstance(text, str):
            raise UserError(f"{info.folder}/meta has the task {str(row)[:80]} without task_index or name; {AGAIN}")
        found[number] = text
    return found


def read_environments(folder: Path) -> dict[str, str]:
    """The environment of each task by the task's name, as written by `headway data collect`."""
    path = folder / OWN
    if not path.is_file():
        return {}
    said = read_json(path).get("environments")
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise UserError(f"{path} does not map tasks to environments; remove the file, or collect the data again")
    return said


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError for anything else."""
    with sound(path, "JSON"):
        found = parse_json(_text(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} does not contain a JSON object; {AGAIN}")
    return found


def read_rows(path: Path, columns: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    """The selected columns of a small Parquet file, row by row."""
    _check_small(path)
    with sound(path, "Parquet"):
        file = open_parquet(path, "robotics")
        check_header(str(path), file.schema_arrow.names)
        names = [name for name in file.schema_arrow.names if columns(name)]
        index = index_of(path)
        check_table(index, str(path), path.stat().st_size, names)
        texts = [name for name in names if str(file.schema_arrow.field(name).type) in ("string", "large_string")]
        repeated = open_parquet(path, "robotics", texts)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            for name in texts:
                if rows_at_once(index, repeated, group, name, rows) < rows:
                    raise UserError(f"{path} repeats long strings in the column {name!r}; {AGAIN}")
        return file.read(names).to_pylist()


@contextmanager
def sound(path: Path, kind: str) -> Iterator[None]:
    """Turn any exception that a library raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
        raise UserError(f"{path} is damaged or not {kind} ({reason}); {AGAIN}") from error


def _shows(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is images; depth maps do not count."""
    notes = feature.get("info")
    depth = isinstance(notes, dict) and bool(notes.get("video.is_depth_map") or notes.get("is_depth_map"))
    return feature.get("dtype") in ("video", "image") and not depth


def _numbers(path: Path, name: str, feature: Mapping[str, Any]) -> int:
    shape = feature.get("shape")
    sides = shape if isinstance(shape, list) else []
    size = 1
    for side in sides:
        size *= side if isinstance(side, int) and 0 < side <= _NUMBERS else _NUMBERS + 1
    if not sides or size > _NUMBERS:
        raise UserError(f"{path}: {name!r} has the shape {shape}; use 1 to {_NUMBERS:,} numbers per step")
    return size


def _camera(path: Path, key: str, feature: Mapping[str, Any]) -> CameraFeature:
    """An image feature, whose shape may be [H, W, C] or [C, H, W]."""
    shape = feature.get("shape")
    sides = shape if isinstance(shape, list) and len(shape) == 3 else [0, 0, 0]
    size = sides[1:] if sides[0] == 3 and sides[2] != 3 else sides[:2]
    if 3 not in (sides[0], sides[2]) or not all(isinstance(side, int) and 0 < side <= _SIDE for side in size):
        raise UserError(f"{path}: {key!r} has the shape {shape}; use images of [height, width, 3]")
    return CameraFeature(key, (size[0], size[1]), feature["dtype"] == "video")


def _of_lines(info: Info) -> Iterator[Noted]:
    """v2: one line per episode, each with its own data and video files."""
    chunk = info.raw.get("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk <= 0:
        raise UserError(f"{info.folder / INFO}: chunks_size is {chunk!r}; set it to the episodes per folder")
    for row in _lines(info.folder / "meta/episodes.jsonl"):
        number, length = (_whole(info, row, name) for name in ("episode_index", "length"))
        fields = {"episode_chunk": number // chunk, "episode_index": number}
        videos = {
            camera.key: (_place(info, "video_path", fields | {"video_key": camera.key}), 0)
            for camera in info.cameras
            if camera.video
        }
        yield Noted(number, length, _place(info, "data_path", fields), videos, _side(info, number))


def _of_tables(info: Info) -> Iterator[Noted]:
    """v3: one row per episode; several episodes share a file."""
    folder = info.folder / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} contains no chunk-000/file-000.parquet; {AGAIN}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows.extend(read_rows(path, lambda name: not name.startswith("stats/")))
        if len(rows) > _EPISODES:
            raise UserError(f"{path}: there are more than {_EPISODES:,} episodes; split the data set")
    for row in sorted(rows, key=lambda row: _whole(info, row, "episode_index")):
        number, length = (_whole(info, row, name) for name in ("episode_index", "length"))
        fields = {name: _whole(info, row, f"data/{name}") for name in ("chunk_index", "file_index")}
        videos = {camera.key: _video(info, row, camera) for camera in info.cameras if camera.video}
        yield Noted(number, length, _place(info, "data_path", fields), videos, _side(info, number))


def _video(info: Info, row: Mapping[str, Any], camera: CameraFeature) -> tuple[Path, int]:
    begin = f"videos/{camera.key}/"
    fields = {name: _whole(info, row, begin + name) for name in ("chunk_index", "file_index")}
    first = row.get(f"{begin}from_timestamp")
    if not isinstance(first, (int, float)) or not 0 <= first < 1e9:
        raise UserError(f"{info.folder}, episode {row['episode_index']}: {begin}from_timestamp is {first!r}; {AGAIN}")
    return _place(info, "video_path", fields | {"video_key": camera.key}), round(first * info.rate)


def _whole(info: Info, row: Mapping[str, Any], name: str) -> int:
    found = row.get(name)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 1 << 40:
        raise UserError(f"{info.folder}/meta has the {name} {found!r} for an episode; {AGAIN}")
    return found


def _place(info: Info, name: str, fields: Mapping[str, Any]) -> Path:
    """The path of a file. The pattern comes from the folder, so it is expanded by hand and must stay inside it."""
    pattern = info.raw.get(name)
    if not isinstance(pattern, str):
        raise UserError(f"{info.folder / INFO} has no {name}; {AGAIN}")

    def filled(found: re.Match[str]) -> str:
        if found[1] not in fields:
            raise UserError(f"{info.folder / INFO}: {name} has the field {found[1]!r}; {nearest(found[1], fields)}")
        return str(fields[found[1]]).rjust(int(found[2] or 0), "0")

    path = PurePosixPath(_FIELD.sub(filled, pattern))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path):
        raise UserError(f"{info.folder / INFO}: {name} {pattern!r} is outside the folder; use paths inside it")
    return info.folder / path


def _side(info: Info, number: int) -> int:
    """The split of an episode; 0 if the folder has only one split, so that headway splits it."""
    said = info.raw.get("splits")
    splits = said if isinstance(said, dict) and len(said) > 1 else {}
    for name, text in splits.items():
        side, found = named_side(name), _RANGE.fullmatch(str(text))
        if side is not None and found and int(found[1]) <= number < int(found[2]):
            return side_number(side)
    return 0


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with sound(path, "JSON lines"):
        rows = [parse_json(line) for line in _text(path).splitlines() if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path} has a line that is not an object; {AGAIN}")
        yield row


def _text(path: Path) -> str:
    _check_small(path)
    with opened(path) as file:
        return file.read(_SMALL).decode("utf-8")


def _check_small(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no {path}; {AGAIN}")
    if path.stat().st_size > _SMALL:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for metadata; {AGAIN}")
