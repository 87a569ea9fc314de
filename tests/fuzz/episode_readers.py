"""Readers of episodes: .npz of three kinds, and HDF5 of two."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from mutate import damaged
from run import Reader

from headway.data.recordings import read_episodes


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


EPISODES = {
    "episodes": Reader("a.npz", npz_seeds, damaged, read_one),
    "hdf5": Reader("a.hdf5", hdf5_seeds, damaged, read_one),
}
