"""What a LeRobotDataset folder says of itself in meta/: features, episodes and tasks, of v2.0, v2.1 and v3.0."""

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
OWN = "meta/headway.json"  # beside LeRobot's files, where the tasks can be played
VERSIONS = ("v2.0", "v2.1", "v3.0")
STATES, ACTION = ("observation.state", "observation.environment_state"), "action"
_SMALL = 1 << 28  # bytes of a file of notes that are read
_SIDE, _NUMBERS, _EPISODES = 16384, 100_000, 10_000_000  # the most of what a sound folder holds
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_RANGE = re.compile(r"(\d+):(\d+)")
AGAIN = "fetch the data set again"


@dataclass(frozen=True)
class CameraFeature:
    """A feature of pictures: its column or the key of its videos, and height and width."""

    key: str
    size: tuple[int, int]
    video: bool

    @property
    def name(self) -> str:
        """As LeRobot's users call it: corner2 for observation.images.corner2."""
        return self.key.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class Noted:
    """An episode as meta/ describes it: its rows lie in `data`; of each camera the video, and the first frame there."""

    number: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, int]]
    side: int


@dataclass(frozen=True)
class Info:
    """info.json, checked. `numbers` are the columns of numbers that are read, with their sizes."""

    folder: Path
    version: str
    rate: float
    numbers: Mapping[str, int]
    cameras: tuple[CameraFeature, ...]
    raw: Mapping[str, Any]


def read_info_file(folder: Path) -> Info:
    """Raises UserError for a folder whose version or features are not known."""
    path = folder / INFO
    raw = read_json(path)
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(f"{path}: codebase_version is {version!r}; give a folder of {', '.join(VERSIONS)}")
    rate = raw.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 100_000:
        raise UserError(f"{path}: fps is {rate!r}; give the steps of a second")
    features = raw.get("features")
    if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
        raise UserError(f"{path} has no features; {AGAIN}")
    if ACTION not in features:
        raise UserError(f"{path} has no feature {ACTION!r}; {nearest(ACTION, features)}")
    numbers = {name: _numbers(path, name, features[name]) for name in (*STATES, ACTION) if name in features}
    cameras = tuple(_camera(path, key, each) for key, each in features.items() if _shows(each))
    if len(numbers) == 1 and not cameras:
        raise UserError(f"{path} has neither {STATES[0]!r} nor cameras, so nothing to act by; add one of them")
    return Info(folder, version, float(rate), numbers, cameras, raw)


def read_episodes_noted(info: Info) -> list[Noted]:
    """The episodes of a folder, in their order. Raises UserError where there is none, or one of 0 steps."""
    found = list(_of_lines(info) if info.version < "v3" else _of_tables(info))
    if not found:
        raise UserError(f"{info.folder} holds 0 episodes; record some (headway data collect), or leave it out")
    for number, episode in enumerate(found):
        where = f"{info.folder}, episode {episode.number}"
        if episode.number != number:
            raise UserError(f"{where} stands where {number} is expected; {AGAIN}")
        if episode.length <= 0:
            raise UserError(f"{where} has {episode.length} steps; leave it out")
    return found


def read_tasks(info: Info) -> dict[int, str]:
    """What each task is called, by its number."""
    if info.version < "v3":
        rows = list(_lines(info.folder / "meta/tasks.jsonl"))
    else:
        rows = read_rows(info.folder / "meta/tasks.parquet")
        for row in rows:  # the text is pandas' index, whose name depends on the version
            row["task"] = next((value for value in row.values() if isinstance(value, str)), None)
    found = {}
    for row in rows:
        number, text = row.get("task_index"), row.get("task")
        if not isinstance(number, int) or not isinstance(text, str):
            raise UserError(f"{info.folder}/meta has the task {str(row)[:80]}, without task_index or text; {AGAIN}")
        found[number] = text
    return found


def read_environments(folder: Path) -> dict[str, str]:
    """Where each task can be played, by its text, which `headway data collect` notes."""
    path = folder / OWN
    if not path.is_file():
        return {}
    said = read_json(path).get("environments")
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise UserError(f"{path} has no environments by task; remove it, or collect anew")
    return said


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; UserError for another one."""
    with sound(path, "JSON"):
        found = parse_json(_text(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object; {AGAIN}")
    return found


def read_rows(path: Path, columns: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    """The wanted columns of a small Parquet file, row by row."""
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
                    raise UserError(f"{path} repeats long texts under {name!r}; {AGAIN}")
        return file.read(names).to_pylist()


@contextmanager
def sound(path: Path, kind: str) -> Iterator[None]:
    """What a library says of a damaged file, in any of its many exceptions, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
        raise UserError(f"{path} is damaged or no {kind} ({reason}); {AGAIN}") from error


def _shows(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is pictures; maps of depth are none."""
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
        raise UserError(f"{path}: {name!r} is of shape {shape}; give sizes of 1 to {_NUMBERS:,} numbers a step")
    return size


def _camera(path: Path, key: str, feature: Mapping[str, Any]) -> CameraFeature:
    """Pictures are said as [H, W, C] or [C, H, W]."""
    shape = feature.get("shape")
    sides = shape if isinstance(shape, list) and len(shape) == 3 else [0, 0, 0]
    size = sides[1:] if sides[0] == 3 and sides[2] != 3 else sides[:2]
    if 3 not in (sides[0], sides[2]) or not all(isinstance(side, int) and 0 < side <= _SIDE for side in size):
        raise UserError(f"{path}: {key!r} is of shape {shape}; give pictures of [height, width, 3]")
    return CameraFeature(key, (size[0], size[1]), feature["dtype"] == "video")


def _of_lines(info: Info) -> Iterator[Noted]:
    """v2: a line an episode, whose data and videos are files of its own."""
    chunk = info.raw.get("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk <= 0:
        raise UserError(f"{info.folder / INFO}: chunks_size is {chunk!r}; give the episodes of a folder")
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
    """v3: a row an episode; several of them share a file."""
    folder = info.folder / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no chunk-000/file-000.parquet; {AGAIN}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows.extend(read_rows(path, lambda name: not name.startswith("stats/")))
        if len(rows) > _EPISODES:
            raise UserError(f"{path}: there are more than {_EPISODES:,} episodes; divide the data set")
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
        raise UserError(f"{info.folder}/meta says the {name} {found!r} of an episode; {AGAIN}")
    return found


def _place(info: Info, name: str, fields: Mapping[str, Any]) -> Path:
    """Where a file lies. The pattern comes from the folder, so it is filled in by hand and may not lead out of it."""
    pattern = info.raw.get(name)
    if not isinstance(pattern, str):
        raise UserError(f"{info.folder / INFO} has no {name}; {AGAIN}")

    def filled(found: re.Match[str]) -> str:
        if found[1] not in fields:
            raise UserError(f"{info.folder / INFO}: {name} has the field {found[1]!r}; {nearest(found[1], fields)}")
        return str(fields[found[1]]).rjust(int(found[2] or 0), "0")

    path = PurePosixPath(_FIELD.sub(filled, pattern))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path):
        raise UserError(f"{info.folder / INFO}: {name} {pattern!r} leads out of the folder; name files inside it")
    return info.folder / path


def _side(info: Info, number: int) -> int:
    """The split of an episode; a folder whose episodes are all for training leaves it to others."""
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
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for notes; {AGAIN}")
