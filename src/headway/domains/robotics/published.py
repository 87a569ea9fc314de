"""Build a codec for policies that LeRobot trained."""

from __future__ import annotations

from pathlib import Path

from headway.domains.robotics.codec import FILE, Camera, RobotCodec, read_codec
from headway.formats.lerobot import POLICIES, Scales, scales_of
from headway.formats.usage import Usage

_LONGEST = 500  # assumed steps of an episode


def codec_of(directory: Path, usage: Usage) -> RobotCodec:
    """Return the codec next to a policy, or of a published one from its usage. UserError if there is none."""
    if usage.family in POLICIES and not (directory / FILE).is_file():
        return _scaled(scales_of(usage.processor))
    return read_codec(directory)


def known_codec(directory: Path, usage: Usage) -> RobotCodec | None:
    """Like `load_codec`, but None if there is none."""
    return codec_of(directory, usage) if usage.family in POLICIES or (directory / FILE).is_file() else None


def _scaled(scales: Scales) -> RobotCodec:
    """Build the codec; task names and environments are unknown."""
    seen = (scales.robot, scales.surroundings)
    mean, std = (tuple(number for each in seen for number in getattr(each, name)) for name in ("shift", "scale"))
    cameras = tuple(
        Camera(each.short, each.size, each.size, each.scale.shift, each.scale.scale) for each in scales.cameras
    )
    said, how = scales.actions, (scales.execute, scales.ensemble, _LONGEST)
    return RobotCodec(len(mean), mean, std, said.shift, said.scale, (), (), (), cameras, *how, farthest=None)
