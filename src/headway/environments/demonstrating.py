"""Demonstrations of several tasks, as they are recorded: their pictures wait on disk until all is written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headway.data.demonstrations import Demonstrations, join_demonstrations, task_of
from headway.data.frames import Frames, JoinedFrames, MappedFrames
from headway.data.store import Columns, taking
from headway.data.video import FASTEST
from headway.environments.making import METAWORLD
from headway.environments.recording import Recorder
from headway.errors import UserError

ROBOT = 4  # numbers of a state of Meta-World's that say where the hand is, and how far the gripper is open


class Shots:
    """Pictures of finished episodes, in files of a folder that is gone afterwards: `with Shots(beside) as shots:`"""

    def __init__(self, beside: Path) -> None:
        """Raises UserError where the folder `beside`, to which all is written in the end, cannot be."""
        self._beside = beside
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> Shots:
        with taking(self._beside):
            self._beside.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=".pictures.", dir=self._beside)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def keep(self, task: int, number: int, pictures: dict[str, np.ndarray]) -> None:
        """The pictures of an episode of a task: of each camera uint8 [T, H, W, 3]."""
        if not pictures:
            return
        files = {_file(task, number, camera): each for camera, each in pictures.items()}
        with Columns(Path(self._folder.name), dict.fromkeys(files, np.uint8)) as columns:
            for name, each in files.items():
                self._size = (each.shape[1], each.shape[2])
                columns.append(name, each)

    def frames(self, task: int, lengths: dict[int, int], camera: str) -> Frames:
        """What a camera saw in episodes of a task, whose numbers and lengths are given, one after the other."""
        folder = Path(self._folder.name)
        files = {_file(task, number, camera): length for number, length in lengths.items()}
        return JoinedFrames([KeptFrames(folder, name, length, self._size) for name, length in files.items()])


class KeptFrames:
    """The N pictures of an episode in a file of `Shots`, mapped only while they are read: each map holds a file open,
    and a recording has more of them than a process may open.
    """

    def __init__(self, folder: Path, name: str, count: int, size: tuple[int, int]) -> None:
        self.size = self.recorded = size
        self._folder, self._name, self._count = folder, name, count

    def __len__(self) -> int:
        return self._count

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return MappedFrames(self._folder, self._name, self._count, self.size).read(steps)


def _file(task: int, number: int, camera: str) -> str:
    return f"{task}-{number}-{camera}"


def demonstrations(recorders: Sequence[Recorder], cameras: Sequence[str], shots: Shots | None) -> Demonstrations:
    """What has been finished, task after task."""
    parts = []
    for task, recorder in enumerate(recorders):
        if not recorder.finished:
            continue
        episodes, name = recorder.episodes(), recorder.copies.name
        lengths = {number: len(recorder.finished[number].rewards) for number in sorted(recorder.finished)}
        parts.append(
            Demonstrations(
                episodes.states,
                episodes.actions,
                episodes.ends,
                {camera: shots.frames(task, lengths, camera) for camera in cameras} if shots else {},
                np.zeros(len(episodes), np.int64),
                (task_of(name),),
                np.zeros(len(episodes), np.uint8),
                (name,),
                recorder.copies.frame_rate,
            )
        )
    return join_demonstrations(parts, [recorder.copies.name for recorder in recorders if recorder.finished])


def robot_numbers(environments: Sequence[str]) -> int | None:
    """How many leading numbers of a state say how the robot stands, where that is known of all."""
    return ROBOT if all(name.startswith(METAWORLD) for name in environments) else None


def check_together(recorders: Sequence[Recorder]) -> None:
    """UserError for environments that one folder does not hold, as their sizes or rates differ."""
    first = recorders[0].copies
    for copies in (recorder.copies for recorder in recorders[1:]):
        for what, own, theirs in (
            ("states of {} numbers", copies.spaces.shape[0], first.spaces.shape[0]),
            ("actions of {} numbers", copies.spaces.numbers, first.spaces.numbers),
            ("{} steps a second", copies.frame_rate, first.frame_rate),
        ):
            if own != theirs:
                raise UserError(
                    f"{copies.name!r} has {what.format(own)}, and {first.name!r} {what.format(theirs)}; record them "
                    "into folders of their own"
                )


def check_demonstrable(recorder: Recorder) -> None:
    """UserError for an environment whose episodes a LeRobotDataset folder does not hold."""
    copies = recorder.copies
    if copies.spaces.choices is not None or copies.spaces.image:
        what = "states are images" if copies.spaces.image else f"actions are {copies.spaces.told}"
        raise UserError(
            f"a folder holds states and actions of numbers, and {what} in {copies.name!r}; name an .npz file"
        )
    if copies.frame_rate is None:
        raise UserError(
            f"a folder says how many steps are a second, and {copies.name!r} does not; name an .npz file, or let the "
            "environment's metadata say render_fps"
        )
    if copies.frame_rate > FASTEST:
        raise UserError(
            f"{copies.name!r} has {copies.frame_rate:g} steps a second, and videos {FASTEST} at most; name an .npz file"
        )
