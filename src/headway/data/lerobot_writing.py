"""Write demonstrations as a LeRobotDataset folder (v3.0), which LeRobot reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.containers import packaged_av
from headway.data.demonstrations import Demonstrations
from headway.data.lerobot_info import ACTION, INFO, OWN, STATES
from headway.data.parquet import packaged_parquet
from headway.data.store import taking
from headway.data.video import Film, Frames
from headway.drafts import draft_of
from headway.errors import UserError

_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _VIDEOS = f"data/{_FILE}.parquet", f"videos/{{video_key}}/{_FILE}.mp4"
_PLACE = {"chunk_index": 0, "file_index": 0}
_JUMPS = 2  # keyframe interval
_SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
_SAMPLED = 200  # images sampled for statistics


def check_lerobot(folder: Path, films: bool) -> None:
    """UserError if a package for writing a folder, with videos if `videos`, is missing."""
    packaged_parquet(folder, "robotics")
    if films:
        packaged_av()


def write_lerobot(folder: Path, found: Demonstrations, robot: int | None = None) -> None:
    """Write a folder whose episodes are read back unchanged, except for losses of the video codec.

    The first `robot_size` values of a state are the robot's own state and become observation.state, the others
    observation.environment_state; None puts all into observation.state. The folder is built under a temporary name,
    then renamed. Raises UserError if it cannot be written or the rate is unknown.
    """
    if found.rate is None:
        raise UserError(f"{folder} needs the steps per second, which are unknown; write an .npz file instead")
    part = draft_of(folder)
    try:
        with taking(folder):
            part.mkdir(parents=True)
            _write(part, found, robot)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, found: Demonstrations, robot: int | None) -> None:
    rate = max(1, round(found.rate or 1))
    numbers = _numbers(found, robot)
    cameras = {f"observation.images.{name}": frames for name, frames in found.cameras.items()}
    index = _index(found, rate)
    _write_rows(folder / _DATA.format(**_PLACE), found, numbers | index)
    for key, frames in cameras.items():
        _write_video(folder / _VIDEOS.format(video_key=key, **_PLACE), frames, rate)
    _write_episodes(folder / f"meta/episodes/{_FILE.format(**_PLACE)}.parquet", found, list(cameras), rate)
    _write_tasks(folder / "meta/tasks.parquet", found.names)
    features = {name: _feature(values) for name, values in (numbers | index).items()}
    _write_json(folder / INFO, _info(found, features | _shown(cameras, rate), rate))
    stats = {name: _stats(values) for name, values in (numbers | index).items()}
    _write_json(folder / "meta/stats.json", stats | {key: _picture_stats(each) for key, each in cameras.items()})
    _write_json(folder / OWN, {"environments": dict(zip(found.names, found.environments))})


def _numbers(found: Demonstrations, robot: int | None) -> dict[str, np.ndarray]:
    """States and actions by feature name."""
    count = found.states.shape[1] if robot is None else min(robot, found.states.shape[1])
    parts = zip(STATES, (found.states[:, :count], found.states[:, count:]))
    return {name: part for name, part in parts if part.shape[1]} | {ACTION: found.actions}


def _index(found: Demonstrations, rate: int) -> dict[str, np.ndarray]:
    """The index columns that LeRobot needs in each row."""
    episodes = np.repeat(np.arange(len(found)), found.lengths)
    steps = np.arange(len(episodes)) - found.starts[episodes]
    return {
        "timestamp": (steps / rate).astype(np.float32),
        "frame_index": steps,
        "episode_index": episodes,
        "index": np.arange(len(episodes)),
        "task_index": found.tasks[episodes],
    }


def _write_rows(path: Path, found: Demonstrations, columns: Mapping[str, np.ndarray]) -> None:
    """One row group per episode, so that each can be read alone."""
    import pyarrow

    parquet = packaged_parquet(path, "robotics")
    path.parent.mkdir(parents=True)
    arrays = {name: _arrow(pyarrow, values) for name, values in columns.items()}
    table = pyarrow.table(arrays)
    with parquet.ParquetWriter(path, table.schema) as writer:
        for start, length in zip(found.starts.tolist(), found.lengths.tolist()):
            writer.write_table(table.slice(start, length))


def _arrow(pyarrow: Any, values: np.ndarray) -> Any:
    """An Arrow array: fixed-size lists for several numbers per step, plain numbers for one."""
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    wide = values.ndim == 2 and values.shape[1] > 1
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if wide else flat


def _write_video(path: Path, frames: Frames, rate: int) -> None:
    path.parent.mkdir(parents=True)
    with Film(path, rate, _JUMPS) as film:
        for step in range(len(frames)):
            film.add(frames.read(np.array([step]))[0])


def _write_episodes(path: Path, found: Demonstrations, videos: list[str], rate: int) -> None:
    import pyarrow

    starts, ends, zeros = found.starts.tolist(), found.ends.tolist(), [0] * len(found)
    columns: dict[str, list[Any]] = {
        "episode_index": list(range(len(found))),
        "tasks": [[found.names[number]] for number in found.tasks.tolist()],
        "length": found.lengths.tolist(),
        "dataset_from_index": starts,
        "dataset_to_index": ends,
    }
    for begin in ("meta/episodes", "data", *(f"videos/{key}" for key in videos)):
        columns |= {f"{begin}/{name}": zeros for name in _PLACE}
    for key in videos:
        columns[f"videos/{key}/from_timestamp"] = [start / rate for start in starts]
        columns[f"videos/{key}/to_timestamp"] = [end / rate for end in ends]
    path.parent.mkdir(parents=True)
    packaged_parquet(path, "robotics").write_table(pyarrow.table(columns), path)


def _write_tasks(path: Path, names: tuple[str, ...]) -> None:
    """Write the table as pandas does with the task as its index."""
    import pyarrow

    table = pyarrow.table({"task_index": np.arange(len(names)), "task": list(names)})
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    notes = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, kind, stored in kinds
        ],
    }
    packaged_parquet(path, "robotics").write_table(table.replace_schema_metadata({"pandas": json.dumps(notes)}), path)


def _info(found: Demonstrations, features: dict[str, Any], rate: int) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(found),
        "total_frames": len(found.actions),
        "total_tasks": len(found.names),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": rate,
        "splits": {"train": f"0:{len(found)}"},
        "data_path": _DATA,
        "video_path": _VIDEOS if found.cameras else None,
        "features": features,
    }


def _feature(values: np.ndarray) -> dict[str, Any]:
    shape = [values.shape[1]] if values.ndim == 2 else [1]
    return {"dtype": str(values.dtype), "shape": shape, "names": None}


def _shown(cameras: Mapping[str, Frames], rate: int) -> dict[str, Any]:
    return {
        key: {
            "dtype": "video",
            "shape": [*frames.size, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": frames.size[0],
                "video.width": frames.size[1],
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": rate,
                "video.channels": 3,
                "has_audio": False,
            },
        }
        for key, frames in cameras.items()
    }


def _stats(values: np.ndarray) -> dict[str, Any]:
    """Statistics that LeRobot normalises with."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    found = {name: getattr(flat, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    shares = {f"q{round(100 * share):02d}": np.quantile(flat, share, axis=0).tolist() for share in _SHARES}
    return found | {"count": [len(flat)]} | shares


def _picture_stats(frames: Frames) -> dict[str, Any]:
    """The same statistics for each colour channel, scaled to 0..1, as [3, 1, 1]."""
    steps = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED).astype(np.int64))
    found = _stats(frames.read(steps).reshape(-1, 3) / 255)
    return {name: value if name == "count" else [[[each]] for each in value] for name, value in found.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
