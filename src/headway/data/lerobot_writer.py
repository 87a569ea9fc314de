"""Write demonstrations as a LeRobotDataset folder (v3.0), which LeRobot reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.array_store import output_errors
from headway.data.containers import import_av
from headway.data.demonstrations import Demonstrations
from headway.data.lerobot_info import ACTION_FEATURE, HEADWAY_PATH, INFO_PATH, STATE_FEATURES
from headway.data.parquet import import_parquet
from headway.data.video import Frames, VideoWriter
from headway.errors import UserError
from headway.temporary_files import temporary_path

_FILE_PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_PATH, _VIDEO_PATH = f"data/{_FILE_PATTERN}.parquet", f"videos/{{video_key}}/{_FILE_PATTERN}.mp4"
_FIRST_FILE = {"chunk_index": 0, "file_index": 0}
_KEYFRAME_INTERVAL = 2  # frames
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_SAMPLED_IMAGES = 200  # images sampled for statistics


def check_lerobot_packages(folder: Path, videos: bool) -> None:
    """UserError if a package for writing a folder (or videos, if `videos` is set) is missing."""
    import_parquet(folder, "robotics")
    if videos:
        import_av()


def write_lerobot(folder: Path, demonstrations: Demonstrations, robot_size: int | None = None) -> None:
    """Write a folder whose episodes are read back unchanged, except for losses of the video codec.

    The first `robot_size` values of a state are the robot's own state and become observation.state, the others
    observation.environment_state; None puts all into observation.state. The folder is built under a temporary name,
    then renamed. Raises UserError if it cannot be written or the rate is unknown.
    """
    if demonstrations.rate is None:
        raise UserError(f"{folder} needs the steps per second, which are unknown; write an .npz file instead")
    part = temporary_path(folder)
    try:
        with output_errors(folder):
            part.mkdir(parents=True)
            _write(part, demonstrations, robot_size)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, demonstrations: Demonstrations, robot_size: int | None) -> None:
    rate = max(1, round(demonstrations.rate or 1))
    number_columns = _number_columns(demonstrations, robot_size)
    cameras = {f"observation.images.{name}": frames for name, frames in demonstrations.cameras.items()}
    index_columns = _index_columns(demonstrations, rate)
    _write_rows(folder / _DATA_PATH.format(**_FIRST_FILE), demonstrations, number_columns | index_columns)
    for key, frames in cameras.items():
        _write_video(folder / _VIDEO_PATH.format(video_key=key, **_FIRST_FILE), frames, rate)
    _write_episodes(
        folder / f"meta/episodes/{_FILE_PATTERN.format(**_FIRST_FILE)}.parquet", demonstrations, list(cameras), rate
    )
    _write_tasks(folder / "meta/tasks.parquet", demonstrations.task_names)
    features = {name: _feature(values) for name, values in (number_columns | index_columns).items()}
    _write_json(folder / INFO_PATH, _dataset_info(demonstrations, features | _image_features(cameras, rate), rate))
    stats = {name: _stats(values) for name, values in (number_columns | index_columns).items()}
    _write_json(folder / "meta/stats.json", stats | {key: _image_stats(images) for key, images in cameras.items()})
    _write_json(
        folder / HEADWAY_PATH, {"environments": dict(zip(demonstrations.task_names, demonstrations.environments))}
    )


def _number_columns(demonstrations: Demonstrations, robot_size: int | None) -> dict[str, np.ndarray]:
    """States and actions by feature name."""
    count = demonstrations.states.shape[1] if robot_size is None else min(robot_size, demonstrations.states.shape[1])
    parts = zip(STATE_FEATURES, (demonstrations.states[:, :count], demonstrations.states[:, count:]))
    return {name: part for name, part in parts if part.shape[1]} | {ACTION_FEATURE: demonstrations.actions}


def _index_columns(demonstrations: Demonstrations, rate: int) -> dict[str, np.ndarray]:
    """The index columns that LeRobot needs in each row."""
    episodes = np.repeat(np.arange(len(demonstrations)), demonstrations.lengths)
    steps = np.arange(len(episodes)) - demonstrations.starts[episodes]
    return {
        "timestamp": (steps / rate).astype(np.float32),
        "frame_index": steps,
        "episode_index": episodes,
        "index": np.arange(len(episodes)),
        "task_index": demonstrations.tasks[episodes],
    }


def _write_rows(path: Path, demonstrations: Demonstrations, columns: Mapping[str, np.ndarray]) -> None:
    """One row group per episode, so that each can be read alone."""
    import pyarrow

    parquet = import_parquet(path, "robotics")
    path.parent.mkdir(parents=True)
    arrays = {name: _arrow(pyarrow, values) for name, values in columns.items()}
    table = pyarrow.table(arrays)
    with parquet.ParquetWriter(path, table.schema) as writer:
        for start, length in zip(demonstrations.starts.tolist(), demonstrations.lengths.tolist()):
            writer.write_table(table.slice(start, length))


def _arrow(pyarrow: Any, values: np.ndarray) -> Any:
    """An Arrow array: fixed-size lists for several numbers per step, plain numbers for one."""
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    wide = values.ndim == 2 and values.shape[1] > 1
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if wide else flat


def _write_video(path: Path, frames: Frames, rate: int) -> None:
    path.parent.mkdir(parents=True)
    with VideoWriter(path, rate, _KEYFRAME_INTERVAL) as writer:
        for step in range(len(frames)):
            writer.add(frames.read(np.array([step]))[0])


def _write_episodes(path: Path, demonstrations: Demonstrations, videos: list[str], rate: int) -> None:
    import pyarrow

    starts, ends, zeros = demonstrations.starts.tolist(), demonstrations.ends.tolist(), [0] * len(demonstrations)
    columns: dict[str, list[Any]] = {
        "episode_index": list(range(len(demonstrations))),
        "tasks": [[demonstrations.task_names[number]] for number in demonstrations.tasks.tolist()],
        "length": demonstrations.lengths.tolist(),
        "dataset_from_index": starts,
        "dataset_to_index": ends,
    }
    for prefix in ("meta/episodes", "data", *(f"videos/{key}" for key in videos)):
        columns |= {f"{prefix}/{name}": zeros for name in _FIRST_FILE}
    for key in videos:
        columns[f"videos/{key}/from_timestamp"] = [start / rate for start in starts]
        columns[f"videos/{key}/to_timestamp"] = [end / rate for end in ends]
    path.parent.mkdir(parents=True)
    import_parquet(path, "robotics").write_table(pyarrow.table(columns), path)


def _write_tasks(path: Path, names: tuple[str, ...]) -> None:
    """Write the table as pandas does with the task as its index."""
    import pyarrow

    table = pyarrow.table({"task_index": np.arange(len(names)), "task": list(names)})
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    metadata = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, kind, stored in kinds
        ],
    }
    import_parquet(path, "robotics").write_table(table.replace_schema_metadata({"pandas": json.dumps(metadata)}), path)


def _dataset_info(demonstrations: Demonstrations, features: dict[str, Any], rate: int) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(demonstrations),
        "total_frames": len(demonstrations.actions),
        "total_tasks": len(demonstrations.task_names),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": rate,
        "splits": {"train": f"0:{len(demonstrations)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH if demonstrations.cameras else None,
        "features": features,
    }


def _feature(values: np.ndarray) -> dict[str, Any]:
    shape = [values.shape[1]] if values.ndim == 2 else [1]
    return {"dtype": str(values.dtype), "shape": shape, "names": None}


def _image_features(cameras: Mapping[str, Frames], rate: int) -> dict[str, Any]:
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
    statistics = {name: getattr(flat, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    quantiles = {f"q{round(100 * share):02d}": np.quantile(flat, share, axis=0).tolist() for share in _QUANTILES}
    return statistics | {"count": [len(flat)]} | quantiles


def _image_stats(frames: Frames) -> dict[str, Any]:
    """The same statistics per colour channel, scaled to 0..1, as [3, 1, 1]."""
    steps = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_IMAGES).astype(np.int64))
    statistics = _stats(frames.read(steps).reshape(-1, 3) / 255)
    return {name: value if name == "count" else [[[number]] for number in value] for name, value in statistics.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
