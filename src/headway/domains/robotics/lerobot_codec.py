"""Build a codec for policies trained with LeRobot."""

from __future__ import annotations

from pathlib import Path

from headway.domains.robotics.robot_codec import FILE, Camera, RobotCodec, read_codec
from headway.formats.lerobot import POLICIES, Scales, parse_scales
from headway.formats.usage import Usage

_ASSUMED_LENGTH = 500  # assumed steps per episode


def load_codec(directory: Path, usage: Usage) -> RobotCodec:
    """Return the codec stored next to a policy or, for a published policy, from its usage. UserError if there is
    none.
    """
    if usage.family in POLICIES and not (directory / FILE).is_file():
        return _from_scales(parse_scales(usage.processor))
    return read_codec(directory)


def known_codec(directory: Path, usage: Usage) -> RobotCodec | None:
    """Like `load_codec`, but None if there is none."""
    return load_codec(directory, usage) if usage.family in POLICIES or (directory / FILE).is_file() else None


def _from_scales(scales: Scales) -> RobotCodec:
    """Build the codec; task names and environments are unknown."""
    states = (scales.robot, scales.surroundings)
    mean, std = (tuple(number for part in states for number in getattr(part, name)) for name in ("shift", "scale"))
    cameras = tuple(
        Camera(part.short, part.size, part.size, part.scale.shift, part.scale.scale) for part in scales.cameras
    )
    actions, execution = scales.actions, (scales.execute, scales.ensemble, _ASSUMED_LENGTH)
    return RobotCodec(
        len(mean), mean, std, actions.shift, actions.scale, (), (), (), cameras, *execution, farthest=None
    )
