"""Robot demonstrations: states, actions and camera images, as concatenated arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.episode_files import EPISODE_KINDS, episode_lengths, read_recording
from headway.data.episodes import Episodes, RecordedEpisodes
from headway.data.input_files import File, find_files
from headway.data.splits import split_code, split_from_name
from headway.data.video import Frames, JoinedFrames
from headway.errors import UserError
from headway.safe_io import user_path


@dataclass(frozen=True)
class Demonstrations(RecordedEpisodes):
    """E episodes with N steps in total: a robot's observations and actions.

    `states` float32 [N, S], where S may be 0 if there are cameras; `actions` float32 [N, A]; `ends` int64 [E], the end
    of each episode; `cameras` by name, may be {}; `tasks` int64 [E], each episode's index in `task_names`;
    `named_splits` uint8 [E], the split that the file's name states; `environments`, the simulation of each task, "" if
    unknown; `rate` in steps per second.
    """

    states: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    cameras: Mapping[str, Frames]
    tasks: np.ndarray
    task_names: tuple[str, ...]
    named_splits: np.ndarray
    environments: tuple[str, ...]
    rate: float | None


def read_demonstrations(
    paths: Sequence[Path | str],
    cache: Path,
    size: tuple[int, int] | None = None,
    cameras: Sequence[str] | None = None,
) -> Demonstrations:
    """Read demonstrations from LeRobotDataset folders, from the output of `headway data collect`, and from episode
    files. Any other folder is searched recursively, without hidden entries.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. An episode file is a task of its own, named after its environment or its file. A UserError names any source
    that cannot be read or does not match the others.
    """
    from headway.data.lerobot import is_lerobot, read_lerobot  # imports this module

    if not paths:
        raise UserError("no demonstrations; pass a LeRobotDataset folder (headway data collect records them)")
    parts: list[tuple[Demonstrations, str]] = []
    for raw_path in paths:
        path = user_path(raw_path)
        folders = _find_folders(path, is_lerobot)
        for folder in folders:
            parts.append(
                (_with_split(read_lerobot(folder, cache, size, cameras), _split_of_folder(folder, path)), str(folder))
            )
        for file in find_files(path, EPISODE_KINDS, excluded=folders):
            parts.append((_from_episodes(read_recording(file), file), str(file)))
    return concatenate_demonstrations([part for part, _ in parts], [source for _, source in parts])


class DemonstrationSummary(NamedTuple):
    """A summary of demonstrations from metadata only: the steps of each episode, int64 [E], and the height and width of
    each camera's images.
    """

    lengths: np.ndarray
    cameras: dict[str, tuple[int, int]]


def summarize_demonstrations(paths: Sequence[Path | str]) -> DemonstrationSummary:
    """Summarize what `read_demonstrations` reads from these paths, without reading states or images."""
    from headway.data.lerobot import is_lerobot
    from headway.data.lerobot_info import read_episode_entries, read_info_file

    lengths: list[int] = []
    cameras: dict[str, tuple[int, int]] = {}
    for raw_path in paths:
        path = user_path(raw_path)
        folders = _find_folders(path, is_lerobot)
        for info in map(read_info_file, folders):
            lengths += [episode.length for episode in read_episode_entries(info)]
            cameras |= {camera.name: camera.size for camera in info.cameras}
        for file in find_files(path, EPISODE_KINDS, excluded=folders):
            lengths += episode_lengths(file)
    return DemonstrationSummary(np.array(lengths, np.int64), cameras)


def task_name(environment: str) -> str:
    """The name of a task from its environment's name: "door open" for metaworld/door-open-v3."""
    return re.sub(r"[-_:]+", " ", re.sub(r"-v\d+$", "", environment.rpartition("/")[2])).strip()


def check_finite(values: np.ndarray, ends: np.ndarray, name: str, source: str) -> None:
    """UserError for the first value in [N, K] that is not finite, with its episode and step."""
    invalid = np.argwhere(~np.isfinite(values))
    if len(invalid):
        row, column = invalid[0].tolist()
        episode = int(np.searchsorted(ends, row, side="right"))
        step = row - (int(ends[episode - 1]) if episode else 0)
        raise UserError(
            f"{source}, episode {episode}, step {step}: {name} contain {values[row, column]}, which is not a finite "
            "number; remove the episode"
        )


def _find_folders(path: Path, accept: Callable[[Path], bool]) -> list[Path]:
    """The accepted folders in a folder tree, sorted, without hidden ones, ones inside another, and duplicates through
    links.
    """
    matches, visited = list[Path](), set[str]()
    for parent, names, _ in os.walk(path, followlinks=True):
        folder, real_path = Path(parent), os.path.realpath(parent)
        is_repeated = real_path in visited  # links can form a cycle
        visited.add(real_path)
        if not is_repeated and accept(folder):
            matches.append(folder)
        is_leaf = is_repeated or folder in matches
        names[:] = [] if is_leaf else sorted(name for name in names if not name.startswith("."))
    return matches


def _split_of_folder(folder: Path, root: Path) -> str | None:
    """The split in the nearest folder name, from a folder up to `root`."""
    names = (root.name, *folder.relative_to(root).parts)
    return next(filter(None, map(split_from_name, reversed(names))), None)


def _with_split(demonstrations: Demonstrations, split: str | None) -> Demonstrations:
    """Use the split in the folder's name if its metadata has none."""
    if split is None or demonstrations.named_splits.any():
        return demonstrations
    return replace(demonstrations, named_splits=np.full(len(demonstrations), split_code(split), np.uint8))


def _from_episodes(episodes: Episodes, file: File) -> Demonstrations:
    if episodes.discrete:
        raise UserError(f"{file} has discrete actions, but robots need real-valued ones; use the trajectories recipe")
    if episodes.states.ndim != 2:
        raise UserError(f"{file} has images as states; pass images in a LeRobotDataset folder")
    name = task_name(episodes.environment) or file.path.stem
    return Demonstrations(
        episodes.states,
        episodes.actions,
        episodes.ends,
        {},
        np.zeros(len(episodes), np.int64),
        (name,),
        episodes.named_splits,
        (episodes.environment,),
        None,
    )


def concatenate_demonstrations(parts: Sequence[Demonstrations], sources: Sequence[str]) -> Demonstrations:
    """Concatenate the demonstrations of several sources; tasks with the same name are one task."""
    first = parts[0]
    for part, source in zip(parts, sources):
        _check_compatible(first, part, sources[0], source)
    names = list(dict.fromkeys(name for part in parts for name in part.task_names))
    environments = {
        name: environment
        for part in reversed(parts)
        for name, environment in zip(part.task_names, part.environments)
        if environment
    }
    task_indices = [np.array([names.index(name) for name in part.task_names], np.int64)[part.tasks] for part in parts]
    offsets = np.cumsum([0, *(len(part.actions) for part in parts[:-1])])
    named_splits = np.concatenate([part.named_splits for part in parts])
    if not (named_splits <= split_code("train")).any():  # split names count only if something is left to train on
        named_splits = np.zeros_like(named_splits)
    return Demonstrations(
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets)]),
        {camera: JoinedFrames([part.cameras[camera] for part in parts]) for camera in first.cameras},
        np.concatenate(task_indices),
        tuple(names),
        named_splits,
        tuple(environments.get(name, "") for name in names),
        next((part.rate for part in parts if part.rate), None),
    )


def _check_compatible(reference: Demonstrations, part: Demonstrations, reference_source: str, source: str) -> None:
    for name in ("states", "actions"):
        sizes = [getattr(recording, name).shape[1] for recording in (reference, part)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{source} has {name} of size {sizes[1]}, but {reference_source} has size {sizes[0]}; pass data from "
                "one robot"
            )
    cameras = [{name: frames.size for name, frames in recording.cameras.items()} for recording in (reference, part)]
    if cameras[0] != cameras[1]:
        raise UserError(
            f"{source} has {_format_cameras(cameras[1])}, but {reference_source} has {_format_cameras(cameras[0])}; "
            "pass data with the same cameras"
        )
    if reference.rate and part.rate and reference.rate != part.rate:
        raise UserError(
            f"{source} has {part.rate:g} steps per second, but {reference_source} has {reference.rate:g}; pass data "
            "recorded at one rate"
        )


def _format_cameras(cameras: Mapping[str, tuple[int, int]]) -> str:
    """Cameras with their sizes, for messages."""
    listing = ", ".join(f"{name} ({height} x {width})" for name, (height, width) in cameras.items())
    return f"the cameras {listing}" if listing else "no cameras"
