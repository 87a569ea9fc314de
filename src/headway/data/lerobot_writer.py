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
from headway.data.episodes import Episodes
from headway.data.lerobot import ACTION_FEATURE, HEADWAY_PATH, INFO_PATH, STATE_FEATURES
from headway.data.parquet import import_parquet
from headway.data.video import Frames, VideoWriter
from headway.errors import UserError
from headway.io.containers import import_av
from headway.io.durable import temporary_path

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


def write_lerobot(folder: Path, episodes: Episodes, robot_size: int | None = None) -> None:
    """Write a folder whose episodes are read back unchanged, except that pixels may differ by 2 of 255.

    The first `robot_size` values of a state are the robot's own state and become observation.state, the others
    observation.environment_state; None puts all into observation.state. The folder is built under a temporary name,
    then renamed. Raises UserError if it cannot be written or the rate is unknown.
    """
    if episodes.rate is None:
        raise UserError(f"{folder} needs the steps per second, which are unknown; write an .npz file instead")
    part = temporary_path(folder)
    try:
        with output_errors(folder):
            part.mkdir(parents=True)
            _write(part, episodes, max(1, round(episodes.rate)), robot_size)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, episodes: Episodes, rate: int, robot_size: int | None) -> None:
    owners = np.repeat(np.arange(len(episodes)), episodes.lengths)
    steps = np.arange(len(owners)) - episodes.starts[owners]
    split = episodes.states.shape[1] if robot_size is None else min(robot_size, episodes.states.shape[1])
    parts = zip(STATE_FEATURES, (episodes.states[:, :split], episodes.states[:, split:]))
    columns = {
        **{name: part for name, part in parts if part.shape[1]},
        ACTION_FEATURE: episodes.actions,
        "timestamp": (steps / rate).astype(np.float32),
        "frame_index": steps,
        "episode_index": owners,
        "index": np.arange(len(owners)),
        "task_index": episodes.tasks[owners],
    }
    _write_rows(folder / _DATA_PATH.format(**_FIRST_FILE), episodes, columns)
    features: dict[str, Any] = {}
    for name, values in columns.items():
        shape = [values.shape[1]] if values.ndim == 2 else [1]
        features[name] = {"dtype": str(values.dtype), "shape": shape, "names": None}
    statistics = {name: _statistics(values) for name, values in columns.items()}
    for name, frames in episodes.cameras.items():
        key = f"observation.images.{name}"
        path = folder / _VIDEO_PATH.format(video_key=key, **_FIRST_FILE)
        path.parent.mkdir(parents=True)
        # Small objects would lose their colour in 4:2:0 videos.
        with VideoWriter(path, rate, _KEYFRAME_INTERVAL, lossless=True) as writer:
            for step in range(len(frames)):
                writer.add(frames.read(np.array([step]))[0])
        features[key] = _video_feature(frames, rate, writer.pixel_format)
        sampled = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_IMAGES).astype(np.int64))
        channels = _statistics(frames.read(sampled).reshape(-1, 3) / 255)  # per colour, as [3, 1, 1]
        statistics[key] = {
            name: value if name == "count" else [[[number]] for number in value] for name, value in channels.items()
        }
    _write_metadata(folder, episodes, rate)
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": len(episodes.actions),
        "total_tasks": len(episodes.task_names),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": rate,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH if episodes.cameras else None,
        "features": features,
    }
    environments = {"environments": dict(zip(episodes.task_names, episodes.environments))}
    for name, content in ((INFO_PATH, info), ("meta/stats.json", statistics), (HEADWAY_PATH, environments)):
        with open(folder / name, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())


def _write_rows(path: Path, episodes: Episodes, columns: Mapping[str, np.ndarray]) -> None:
    """One row group per episode, so that each can be read alone. Several numbers per step are fixed-size lists."""
    import pyarrow

    parquet = import_parquet(path, "robotics")
    path.parent.mkdir(parents=True)
    arrays = {}
    for name, values in columns.items():
        flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
        is_list = values.ndim == 2 and values.shape[1] > 1
        arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]) if is_list else flat
    table = pyarrow.table(arrays)
    with parquet.ParquetWriter(path, table.schema) as writer:
        for start, length in zip(episodes.starts.tolist(), episodes.lengths.tolist()):
            writer.write_table(table.slice(start, length))


def _write_metadata(folder: Path, episodes: Episodes, rate: int) -> None:
    """The tables of episodes and of tasks, the latter as pandas writes it with the task as its index."""
    import pyarrow

    starts, ends = episodes.starts.tolist(), episodes.ends.tolist()
    columns: dict[str, list[Any]] = {
        "episode_index": list(range(len(episodes))),
        "tasks": [[episodes.task_names[number]] for number in episodes.tasks.tolist()],
        "length": episodes.lengths.tolist(),
        "dataset_from_index": starts,
        "dataset_to_index": ends,
    }
    videos = [f"videos/observation.images.{name}" for name in episodes.cameras]
    for prefix in ("meta/episodes", "data", *videos):
        columns |= {f"{prefix}/{name}": [0] * len(episodes) for name in _FIRST_FILE}
    for prefix in videos:
        columns[f"{prefix}/from_timestamp"] = [start / rate for start in starts]
        columns[f"{prefix}/to_timestamp"] = [end / rate for end in ends]
    path = folder / f"meta/episodes/{_FILE_PATTERN.format(**_FIRST_FILE)}.parquet"
    path.parent.mkdir(parents=True)
    parquet = import_parquet(path, "robotics")
    parquet.write_table(pyarrow.table(columns), path)
    names = episodes.task_names
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, kind, stored in kinds
        ],
    }
    tasks = pyarrow.table({"task_index": np.arange(len(names)), "task": list(names)})
    parquet.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}), folder / "meta/tasks.parquet")


def _video_feature(frames: Frames, rate: int, pixel_format: str) -> dict[str, Any]:
    height, width = frames.size
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": pixel_format,
            "video.is_depth_map": False,
            "video.fps": rate,
            "video.channels": 3,
            "has_audio": False,
        },
    }


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Statistics that LeRobot normalises with."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    moments = {name: getattr(flat, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    quantiles = {f"q{round(100 * share):02d}": np.quantile(flat, share, axis=0).tolist() for share in _QUANTILES}
    return moments | {"count": [len(flat)]} | quantiles
