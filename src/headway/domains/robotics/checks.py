"""What is looked at before a policy is trained: the model, and what it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.data.demonstrations import Demonstrations
from headway.domains.robotics.codec import RobotCodec
from headway.errors import ConfigError, UserError
from headway.models import ModelConfig, RobotPolicyConfig


def check_model(model: ModelConfig, execute: int) -> RobotPolicyConfig:
    """ConfigError for a model that says no chunks, or shorter ones than are executed."""
    if not isinstance(model, RobotPolicyConfig):
        raise ConfigError(
            f"this task needs a model of chunks of actions (act), and this is {type(model).__name__}; take that of the "
            "recipe"
        )
    if execute > model.chunk:
        raise ConfigError(
            f"task.execute is {execute}, and a chunk has {model.chunk} actions; execute at most so many, or raise "
            "model.chunk"
        )
    return model


def check_known(codec: RobotCodec, data: Demonstrations) -> None:
    """UserError for demonstrations of another robot than the one that a policy knows."""
    pairs = {
        "states of {} numbers": (codec.recorded, data.states.shape[1]),
        "actions of {} numbers": (len(codec.scale), data.actions.shape[1]),
    }
    for what, (theirs, own) in pairs.items():
        if theirs != own:
            raise UserError(
                f"the policy knows {what.format(theirs)}, and the data have {what.format(own)}; give demonstrations of "
                "its robot"
            )
    for camera in codec.cameras:
        if camera.name not in data.cameras:
            told = ", ".join(data.cameras) or "none"
            raise UserError(
                f"the policy has the camera {camera.name!r}, and the data have {told}; give demonstrations of its robot"
            )


def check_settings(codec: RobotCodec, settings: Mapping[str, Any]) -> None:
    """ConfigError for settings of the task (None: not set) that a policy which goes on does not have."""
    theirs = {"state": len(codec.mean), "cameras": codec.camera_names, "text": bool(codec.words)}
    if codec.cameras:
        theirs["size"] = codec.size
    for name, wanted in settings.items():
        if wanted is not None and wanted != theirs.get(name, wanted):
            raise ConfigError(
                f"task.{name} is {wanted}, and the policy that goes on has {theirs[name]}; leave task.{name} out"
            )


def check_start(model: RobotPolicyConfig, codec: RobotCodec, start: str | None) -> None:
    """ConfigError for a policy that is started from whose weights read other states, pictures or words than its codec
    says.
    """
    if start is None:
        return
    seen = model.observation
    sizes = [tuple(camera.read) for camera in codec.cameras]
    own = (len(codec.mean), len(codec.scale), sizes, codec.symbols)
    if own != (seen.states, model.actions, [tuple(size) for size in seen.cameras], model.words):
        raise ConfigError(
            f"{start} reads other states, pictures or words than lie beside it, or none lie there; start from a run of "
            "the recipes robotics or metaworld"
        )
