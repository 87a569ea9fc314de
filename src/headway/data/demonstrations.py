"""Robot demonstrations from LeRobotDataset folders and episode files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.episode_files import EPISODE_KINDS, episode_lengths, read_recording
from headway.data.episodes import Episodes, concatenate_episodes
from headway.data.input_files import File, find_files
from headway.data.lerobot import is_lerobot, read_episode_entries, read_info_file, read_lerobot
from headway.data.splits import split_code, split_from_name
from headway.errors import UserError
from headway.io.files import user_path


def read_demonstrations(
    paths: Sequence[Path | str],
    cache: Path,
    size: tuple[int, int] | None = None,
    cameras: Sequence[str] | None = None,
) -> Episodes:
    """Read demonstrations from LeRobotDataset folders, from the output of `headway data collect`, and from episode
    files. Any other folder is searched recursively, without hidden entries.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. An episode file is a task of its own, named after its environment or its file. A UserError names any source
    that cannot be read or does not match the others.
    """
    if not paths:
        raise UserError("no demonstrations; pass a LeRobotDataset folder (headway data collect records them)")
    parts: list[Episodes] = []
    sources = list(_find_sources(paths))
    for source, root in sources:
        if isinstance(source, File):
            part = read_recording(source)
            if part.discrete:
                raise UserError(
                    f"{source} has discrete actions, but robots need real-valued ones; use the trajectories recipe"
                )
            if part.states.ndim != 2:
                raise UserError(f"{source} has images as states; pass images in a LeRobotDataset folder")
        else:
            part = read_lerobot(source, cache, size, cameras)
            names = (root.name, *source.relative_to(root).parts)
            split = next(filter(None, map(split_from_name, reversed(names))), None)  # of the nearest folder
            if split is not None and not part.named_splits.any():
                part = replace(part, named_splits=np.full(len(part), split_code(split), np.uint8))
        parts.append(part)
    return concatenate_episodes(parts, [str(source) for source, _ in sources], one_environment=False)


class DemonstrationSummary(NamedTuple):
    """A summary of demonstrations from metadata only: the steps of each episode, int64 [E], and the height and width of
    each camera's images.
    """

    lengths: np.ndarray
    cameras: dict[str, tuple[int, int]]


def summarize_demonstrations(paths: Sequence[Path | str]) -> DemonstrationSummary:
    """Summarize what `read_demonstrations` reads from these paths, without reading states or images."""
    lengths: list[int] = []
    cameras: dict[str, tuple[int, int]] = {}
    for source, _ in _find_sources(paths):
        if isinstance(source, File):
            lengths += episode_lengths(source)
        else:
            info = read_info_file(source)
            lengths += [entry.length for entry in read_episode_entries(info)]
            cameras |= {camera.name: camera.size for camera in info.cameras}
    return DemonstrationSummary(np.array(lengths, np.int64), cameras)


def _find_sources(paths: Sequence[Path | str]) -> Iterator[tuple[Path | File, Path]]:
    """The LeRobotDataset folders and the episode files at each path, sorted, with that path. Skips hidden folders,
    folders inside another, and duplicates through links.
    """
    for raw_path in paths:
        path = user_path(raw_path)
        folders, visited = list[Path](), set[str]()
        for parent, names, _ in os.walk(path, followlinks=True):
            folder, real_path = Path(parent), os.path.realpath(parent)
            is_repeated = real_path in visited  # links can form a cycle
            visited.add(real_path)
            if not is_repeated and is_lerobot(folder):
                folders.append(folder)
            is_leaf = is_repeated or folder in folders
            names[:] = [] if is_leaf else sorted(name for name in names if not name.startswith("."))
        yield from ((folder, path) for folder in folders)
        yield from ((file, path) for file in find_files(path, EPISODE_KINDS, excluded=folders))
