"""How policies that LeRobot trained see and act, as a codec of ours."""

from __future__ import annotations

from pathlib import Path

from headway.domains.robotics.codec import FILE, Camera, RobotCodec, read_codec
from headway.formats.lerobot import POLICIES, Scales, scales_of
from headway.formats.usage import Usage

_LONGEST = 500  # steps of an episode, where nothing is known of them


def codec_of(directory: Path, usage: Usage) -> RobotCodec:
    """What lies beside a policy, or what a published one says of its use. UserError for a folder that has none."""
    if usage.family in POLICIES and not (directory / FILE).is_file():
        return _scaled(scales_of(usage.processor))
    return read_codec(directory)


def known_codec(directory: Path, usage: Usage) -> RobotCodec | None:
    """The same; None for a folder that has none."""
    return codec_of(directory, usage) if usage.family in POLICIES or (directory / FILE).is_file() else None


def _scaled(scales: Scales) -> RobotCodec:
    """Nothing says what the tasks are called and where they are done."""
    seen = (scales.robot, scales.surroundings)
    mean, std = (tuple(number for each in seen for number in getattr(each, name)) for name in ("shift", "scale"))
    cameras = tuple(
        Camera(each.short, each.size, each.size, each.scale.shift, each.scale.scale) for each in scales.cameras
    )
    said, how = scales.actions, (scales.execute, scales.ensemble, _LONGEST)
    return RobotCodec(len(mean), mean, std, said.shift, said.scale, (), (), (), cameras, *how, farthest=None)
