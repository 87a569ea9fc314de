"""Readers of episodes: .npz of three kinds, HDF5 of two, and the parts of a LeRobotDataset folder."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutate import damaged, damaged_json
from run import Reader

from headway.data.episode_files import read_demonstrations, read_episodes
from headway.data.episodes import Episodes
from headway.data.lerobot_writer import write_lerobot


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    ends = np.array([False, False, True, False, True])
    return {
        "observations": random.normal(size=(5, 3)).astype(np.float32),
        "actions": random.integers(0, 2, 5),
        "rewards": random.normal(size=5),
        "terminals": ends,
        "timeouts": ~ends & False,
    }


def npz_seeds(folder: Path) -> list[bytes]:
    """Flat with marks of each step, flat with ends, and an array for each episode."""
    flat = columns()
    ends = {name: flat[name] for name in ("observations", "actions", "rewards")} | {"ends": np.array([3, 5])}
    each = {f"{name}_{i}": flat[f"{name}s"][:3] for name in ("observation", "action", "reward") for i in (0, 1)}
    return [_npz(flat, False), _npz(ends, True), _npz(each, False)]


def _npz(arrays: dict[str, np.ndarray], compressed: bool) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def hdf5_seeds(folder: Path) -> list[bytes]:
    """D4RL's layout and Minari's."""
    import h5py

    found = []
    for episodes in (False, True):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            place: Any = file.create_group("episode_0") if episodes else file
            for name, values in columns().items():
                place[name] = values
        found.append(out.getvalue())
    return found


def read_one(path: Path) -> None:
    """What can be read can be used."""
    episodes = read_episodes([path])
    episodes.returns_to_go()
    episodes.keys()


class Grey:
    """Pictures in memory."""

    size = (16, 16)

    def __len__(self) -> int:
        return 5

    def read(self, steps: np.ndarray) -> np.ndarray:
        return np.full((len(steps), 16, 16, 3), 99, np.uint8)


def part_of_lerobot(name: str) -> Callable[[Path], list[bytes]]:
    """A whole folder, of which one file is what is damaged."""

    def seeds(folder: Path) -> list[bytes]:
        random = np.random.default_rng(0)
        states, actions = (random.normal(size=(5, width)).astype(np.float32) for width in (3, 2))
        episodes = Episodes(
            states=states,
            actions=actions,
            rewards=np.zeros(5),
            ends=np.array([3, 5]),
            cut=np.zeros(2, bool),
            named_splits=np.zeros(2, np.uint8),
            tasks=np.array([0, 1]),
            task_names=("reach", "push"),
            environments=("", ""),
            cameras={"a": Grey()},
            rate=10.0,
        )
        write_lerobot(folder / "set", episodes)
        return [(folder / "set" / name).read_bytes()]

    return seeds


def read_folder(path: Path) -> None:
    """What can be read can be used."""
    folder = next(parent for parent in path.parents if parent.name == "set")
    try:
        found = read_demonstrations([folder], folder.parent / "cache")
        found.keys()
        for frames in found.cameras.values():
            frames.read(np.arange(len(found.actions)))
    finally:
        shutil.rmtree(folder.parent / "cache", ignore_errors=True)


LEROBOT = {
    "lerobot_info": ("meta/info.json", damaged_json),
    "lerobot_episodes": ("meta/episodes/chunk-000/file-000.parquet", damaged),
    "lerobot_tasks": ("meta/tasks.parquet", damaged),
    "lerobot_rows": ("data/chunk-000/file-000.parquet", damaged),
    "lerobot_video": ("videos/observation.images.a/chunk-000/file-000.mp4", damaged),
}

EPISODES = {
    "episodes": Reader("a.npz", npz_seeds, damaged, read_one),
    "hdf5": Reader("a.hdf5", hdf5_seeds, damaged, read_one),
    **{
        kind: Reader(f"set/{name}", part_of_lerobot(name), damage, read_folder)
        for kind, (name, damage) in LEROBOT.items()
    },
}
