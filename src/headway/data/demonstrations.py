"""Robot demonstrations: states, actions and camera images, as concatenated arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.episodes import Episodes, Recorded
from headway.data.files import File, find_files
from headway.data.recordings import KINDS, episode_lengths, read_recording
from headway.data.splits import named_side, side_number
from headway.data.video import Frames, JoinedFrames
from headway.errors import UserError
from headway.received import place_of


@dataclass(frozen=True)
class Demonstrations(Recorded):
    """E episodes with N steps in total: a robot's observations and actions.

    `states` float32 [N, S], where S may be 0 if there are cameras; `actions` float32 [N, A]; `ends` int64 [E], the end
    of each episode; `cameras` by name, {} for states alone; `tasks` int64 [E], each episode's index in `task_names`;
    `named_splits` uint8 [E], the split that the file's name states; `environments`, the simulation of each task, "" if
    unknown; `rate` in steps per second.
    """

    states: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    cameras: Mapping[str, Frames]
    tasks: np.ndarray
    names: tuple[str, ...]
    named: np.ndarray
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
    for given in paths:
        path = place_of(given)
        folders = _folders(path, is_lerobot)
        for folder in folders:
            parts.append((_sided(read_lerobot(folder, cache, size, cameras), _side(folder, path)), str(folder)))
        for file in find_files(path, KINDS, apart=folders):
            parts.append((_of_episodes(read_recording(file), file), str(file)))
    return join_demonstrations([part for part, _ in parts], [source for _, source in parts])


class Outline(NamedTuple):
    """A summary of demonstrations from metadata alone: the steps of each episode, int64 [E], and height and width of
    each camera's images.
    """

    lengths: np.ndarray
    cameras: dict[str, tuple[int, int]]


def outline(paths: Sequence[Path | str]) -> Outline:
    """Summarize what `read_demonstrations` reads from these paths, without reading states or images."""
    from headway.data.lerobot import is_lerobot
    from headway.data.lerobot_info import read_episodes_noted, read_info_file

    lengths: list[int] = []
    cameras: dict[str, tuple[int, int]] = {}
    for given in paths:
        path = place_of(given)
        folders = _folders(path, is_lerobot)
        for info in map(read_info_file, folders):
            lengths += [episode.length for episode in read_episodes_noted(info)]
            cameras |= {camera.name: camera.size for camera in info.cameras}
        for file in find_files(path, KINDS, apart=folders):
            lengths += episode_lengths(file)
    return Outline(np.array(lengths, np.int64), cameras)


def task_of(environment: str) -> str:
    """The name of a task from its environment's name: "door open" for metaworld/door-open-v3."""
    return re.sub(r"[-_:]+", " ", re.sub(r"-v\d+$", "", environment.rpartition("/")[2])).strip()


def check_numbers(values: np.ndarray, ends: np.ndarray, name: str, source: str) -> None:
    """UserError for the first value in [N, K] that is not finite, with its episode and step."""
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place, column = wrong[0].tolist()
        episode = int(np.searchsorted(ends, place, side="right"))
        step = place - (int(ends[episode - 1]) if episode else 0)
        raise UserError(
            f"{source}, episode {episode}, step {step}: {name} contain {values[place, column]}, which is not a finite "
            "number; remove the episode"
        )


def _folders(path: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """The accepted folders in a folder tree, sorted, without hidden ones, ones inside another, and duplicates through
    links.
    """
    found, seen = list[Path](), set[str]()
    for above, names, _ in os.walk(path, followlinks=True):
        folder, place = Path(above), os.path.realpath(above)
        again = place in seen  # links may form a cycle
        seen.add(place)
        if not again and wanted(folder):
            found.append(folder)
        ends = again or folder in found
        names[:] = [] if ends else sorted(name for name in names if not name.startswith("."))
    return found


def _side(folder: Path, given: Path) -> str | None:
    """The split that the nearest name states, from a folder up to `root`."""
    names = (given.name, *folder.relative_to(given).parts)
    return next(filter(None, map(named_side, reversed(names))), None)


def _sided(found: Demonstrations, side: str | None) -> Demonstrations:
    """Use the split that the folder's name states, if the folder's own metadata states none."""
    if side is None or found.named.any():
        return found
    return replace(found, named=np.full(len(found), side_number(side), np.uint8))


def _of_episodes(episodes: Episodes, file: File) -> Demonstrations:
    if episodes.discrete:
        raise UserError(f"{file} has discrete actions, but robots need real-valued ones; use the recipe trajectories")
    if episodes.states.ndim != 2:
        raise UserError(f"{file} has images as states; pass images in a LeRobotDataset folder")
    name = task_of(episodes.environment) or file.path.stem
    return Demonstrations(
        episodes.states,
        episodes.actions,
        episodes.ends,
        {},
        np.zeros(len(episodes), np.int64),
        (name,),
        episodes.named,
        (episodes.environment,),
        None,
    )


def join_demonstrations(parts: Sequence[Demonstrations], sources: Sequence[str]) -> Demonstrations:
    """Concatenate the demonstrations of several sources; tasks with the same name are one task."""
    first = parts[0]
    for part, source in zip(parts, sources):
        _check_alike(first, part, sources[0], source)
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    places = {name: place for part in reversed(parts) for name, place in zip(part.names, part.environments) if place}
    numbers = [np.array([names.index(name) for name in part.names], np.int64)[part.tasks] for part in parts]
    offsets = np.cumsum([0, *(len(part.actions) for part in parts[:-1])])
    named = np.concatenate([part.named for part in parts])
    if not (named <= side_number("train")).any():  # split names count only if something is left to train on
        named = np.zeros_like(named)
    return Demonstrations(
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets)]),
        {camera: JoinedFrames([part.cameras[camera] for part in parts]) for camera in first.cameras},
        np.concatenate(numbers),
        tuple(names),
        named,
        tuple(places.get(name, "") for name in names),
        next((part.rate for part in parts if part.rate), None),
    )


def _check_alike(one: Demonstrations, other: Demonstrations, first: str, source: str) -> None:
    for what in ("states", "actions"):
        sizes = [getattr(each, what).shape[1] for each in (one, other)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{source} has {what} of size {sizes[1]}, but {first} has size {sizes[0]}; pass data of one robot"
            )
    seen = [{name: frames.size for name, frames in each.cameras.items()} for each in (one, other)]
    if seen[0] != seen[1]:
        raise UserError(
            f"{source} has {_told(seen[1])}, but {first} has {_told(seen[0])}; pass data with equal cameras"
        )
    if one.rate and other.rate and one.rate != other.rate:
        raise UserError(
            f"{source} has {other.rate:g} steps per second, but {first} has {one.rate:g}; pass data with one rate"
        )


def _told(cameras: Mapping[str, tuple[int, int]]) -> str:
    """Cameras with their sizes, for messages."""
    told = ", ".join(f"{name} ({height} x {width})" for name, (height, width) in cameras.items())
    return f"the cameras {told}" if told else "no cameras"
