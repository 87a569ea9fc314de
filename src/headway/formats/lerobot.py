"""The files next to the weights of LeRobot policies: their observations and actions, and the normalisation. Both
ways.

Newer folders have pipelines of steps (policy_preprocessor.json, policy_postprocessor.json) with statistics in separate
files; older ones store the statistics among the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.config import from_dict, to_dict
from headway.data.affine_scale import AffineScale
from headway.errors import UserError, nearest
from headway.formats.settings import Settings
from headway.formats.tensorfile import TensorFile, write_tensors
from headway.formats.weights import Weights
from headway.io.durable import read_json, write_json

POLICIES = ("act", "diffusion")  # policy families
ROBOT_STATE, ENVIRONMENT_STATE, ACTION = "observation.state", "observation.environment_state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
NORMALISER, UNNORMALISER = "normalizer_processor", "unnormalizer_processor"
_NEUTRAL_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")  # keep the values
_INPUTS, _OUTPUTS = "normalize_inputs.buffer_", "unnormalize_outputs.buffer_"  # of older files
_EPS = 1e-8
_RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_CHANNELS = 3


class Features(NamedTuple):
    """A policy's observations and actions: the sizes of the robot state, the environment state and an
    action, and the size (height, width) of each camera's images, by LeRobot's names.
    """

    robot: int
    surroundings: int
    actions: int
    cameras: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class PolicyCamera:
    """`name` is LeRobot's; `size` is (height, width); pixels are 0 to 1 before they are scaled."""

    name: str
    size: tuple[int, int]
    scale: AffineScale

    @property
    def short(self) -> str:
        """The name that LeRobot users write: top for observation.images.top."""
        return self.name.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class Scales:
    """A policy's normalisation and execution settings. It predicts a new chunk every `execute` actions; `ensemble` is
    the m of temporal ensembling, None to disable it.
    """

    robot: AffineScale
    surroundings: AffineScale
    actions: AffineScale
    cameras: tuple[PolicyCamera, ...]
    execute: int
    ensemble: float | None = None


def read_features(settings: Settings) -> Features:
    """UserError for features that are not a state, an image or an action."""
    robot = surroundings = actions = 0
    cameras: dict[str, tuple[int, int]] = {}
    inputs, outputs = settings.part("input_features"), settings.part("output_features")
    for name, feature in ((name, inputs.part(name)) for name in inputs.values):
        kind, shape = feature.get("type", str), tuple(feature.get("shape", list[int]))
        if kind == "VISUAL" and len(shape) == 3 and shape[0] == _CHANNELS:
            cameras[name] = shape[1:]  # type: ignore[assignment]
        elif name == ROBOT_STATE and len(shape) == 1:
            robot = shape[0]
        elif name == ENVIRONMENT_STATE and len(shape) == 1:
            surroundings = shape[0]
        else:
            raise UserError(
                f"{feature.source} is {kind} of shape {list(shape)}; use {ROBOT_STATE} and {ENVIRONMENT_STATE} of "
                f"shape [size] and VISUAL of shape [{_CHANNELS}, height, width]"
            )
    for name, feature in ((name, outputs.part(name)) for name in outputs.values):
        shape = feature.get("shape", list[int])
        if name != ACTION or len(shape) != 1:
            raise UserError(f"{feature.source} has shape {shape}; the output should be {ACTION} of shape [size]")
        actions = shape[0]
    return Features(robot, surroundings, actions, cameras)


def feature_settings(features: Features) -> dict[str, Any]:
    """Return the settings for config.json; the reverse of `read_features`."""
    states = ((ROBOT_STATE, "STATE", features.robot), (ENVIRONMENT_STATE, "ENV", features.surroundings))
    images = {name: {"type": "VISUAL", "shape": [_CHANNELS, *size]} for name, size in features.cameras.items()}
    return {
        "input_features": images | {name: {"type": kind, "shape": [size]} for name, kind, size in states if size},
        "output_features": {ACTION: {"type": "ACTION", "shape": [features.actions]}},
    }


def read_scales(directory: Path, settings: Settings, weights: Weights) -> dict[str, Any]:
    """Return `Scales` of a folder as plain data. UserError for missing statistics."""
    features = read_features(settings)
    inputs, outputs = _sources(directory, settings, weights)
    cameras = tuple(
        PolicyCamera(name, size, inputs.scale(name, "VISUAL", _CHANNELS)) for name, size in features.cameras.items()
    )
    execute = settings.get("n_action_steps", int)
    if "horizon" in settings:  # from the first observed step on
        chunk = settings.get("horizon", int) - settings.get("n_obs_steps", int) + 1
    else:
        chunk = settings.get("chunk_size", int)
    if not 1 <= execute <= chunk:
        raise UserError(f"{settings.source}: n_action_steps is {execute}; choose 1 to {chunk}, the chunk length")
    scales = Scales(
        inputs.scale(ROBOT_STATE, "STATE", features.robot),
        inputs.scale(ENVIRONMENT_STATE, "ENV", features.surroundings),
        outputs.scale(ACTION, "ACTION", features.actions, inverse=True),
        cameras,
        execute,
        settings.optional("temporal_ensemble_coeff", float),
    )
    return to_dict(scales)


@dataclass(frozen=True)
class _Statistics:
    """The location of statistics: `name(feature, statistic)` names a tensor in `weights`; `modes` are the kinds of
    normalisation by feature type, and `eps` is added to divisors.
    """

    weights: Weights
    name: Callable[[str, str], str]
    modes: Settings
    eps: float

    def scale(self, feature: str, kind: str, size: int, inverse: bool = False) -> AffineScale:
        """Return the scaling of `size` values; with `inverse`, the one that inverts it."""
        mode = self.modes.get(kind, str, "IDENTITY")
        if not size or mode == "IDENTITY":
            return AffineScale((0.0,) * size, (1.0,) * size)
        if mode == "MEAN_STD":
            shift, scale = self._read(feature, "mean", size), self._read(feature, "std", size)
            scale = scale if inverse else scale + self.eps
        elif mode not in _RANGES:
            raise UserError(f"{self.modes.source}: {kind} is {mode!r}; {nearest(mode, ['MEAN_STD', *_RANGES])}")
        else:
            low, high = (self._read(feature, statistic, size) for statistic in _RANGES[mode])
            half = (high - low) / 2
            if inverse:
                scale = torch.where(half == 0, self.eps / 2, half)
                shift = low + scale
            else:
                is_constant = half == 0  # such values become -1, as in LeRobot
                shift = torch.where(is_constant, low + 1, low + half)
                scale = torch.where(is_constant, 1.0, half)
        return AffineScale(tuple(shift.tolist()), tuple(scale.tolist()))

    def _read(self, feature: str, statistic: str, size: int) -> Tensor:
        name = self.name(feature, statistic)
        if name not in self.weights.names():
            raise UserError(
                f"{self.weights.source} has no {statistic} for {feature} ({name}), needed to scale it; get the "
                "folder again, or convert it with LeRobot's migrate_policy_normalization"
            )
        tensor = self.weights.get(name).float().flatten()
        if len(tensor) != size or not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{self.weights.source}: {name} has {len(tensor)} values, but {size} finite values are needed; "
                "get the folder again"
            )
        return tensor


def _sources(directory: Path, settings: Settings, weights: Weights) -> tuple[_Statistics, _Statistics]:
    """Return the statistics of observations and of actions."""
    if (directory / f"{PREPROCESSOR}.json").is_file():
        steps = ((PREPROCESSOR, NORMALISER), (POSTPROCESSOR, UNNORMALISER))
        before, after = (_step_statistics(directory, pipeline, step) for pipeline, step in steps)
        return before, after
    modes = settings.part("normalization_mapping")
    if not modes.values:
        raise UserError(
            f"{directory} has neither {PREPROCESSOR}.json nor a normalization_mapping in its config.json to scale its "
            "values by; get the folder again"
        )

    def named(prefix: str) -> Callable[[str, str], str]:
        return lambda feature, statistic: f"{prefix}{feature.replace('.', '_')}.{statistic}"

    return _Statistics(weights, named(_INPUTS), modes, _EPS), _Statistics(weights, named(_OUTPUTS), modes, 0.0)


def _step_statistics(directory: Path, pipeline: str, wanted: str) -> _Statistics:
    """Return the statistics of a pipeline's normalisation step. UserError for unknown steps."""
    path = directory / f"{pipeline}.json"
    if not path.is_file():
        raise UserError(f"{directory} has no {path.name}, needed to scale its values; get the folder again")
    values = read_json(path)
    steps = values.get("steps") if isinstance(values, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{path} has no list of steps; get the folder again")
    step_settings = None
    for index, step in enumerate(steps):
        name = step.get("registry_name")
        if name == wanted:
            step_settings = Settings(step, f"{path}: steps.{index}")
        elif name not in _NEUTRAL_STEPS:
            raise UserError(
                f"{path} has the unknown step {str(name or step.get('class'))[:80]!r}; steps may be "
                f"{wanted}, {', '.join(_NEUTRAL_STEPS)}"
            )
    if step_settings is None:
        raise UserError(f"{path} has no step {wanted}, needed to scale its values; get the folder again")
    config, file = step_settings.part("config"), step_settings.get("state_file", str)
    if Path(file).name != file or not (directory / file).is_file():
        raise UserError(f"{path} names the statistics {file[:80]!r}, which are not a file in its folder; get it again")
    statistics = TensorFile(directory / file)
    return _Statistics(statistics, "{}.{}".format, config.part("norm_map"), config.get("eps", float, _EPS))


def parse_scales(data: Mapping[str, Any]) -> Scales:
    """Parse the output of `read_scales`, which `Usage.processor` stores."""
    return from_dict(Scales, data, "scales")


def write_scales(directory: Path, settings: dict[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """Write both pipelines and their statistics; return `settings` with the names of the cameras, and without keys that
    LeRobot does not read. All features are written as scaled by mean and deviation. UserError without scales.
    """
    if not processor:
        raise UserError(
            "this policy has no scales for its observations and actions; export one that was imported or trained"
        )
    scales = parse_scales(processor)
    cameras = {camera.name: camera.size for camera in scales.cameras}
    robot, surroundings, actions = (len(part.scale) for part in (scales.robot, scales.surroundings, scales.actions))
    features = feature_settings(Features(robot, surroundings, actions, cameras))
    modes = dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "MEAN_STD")
    inputs, outputs = features["input_features"], features["output_features"]
    tensors = {}
    for name, scale, eps in (
        (ROBOT_STATE, scales.robot, _EPS),
        (ENVIRONMENT_STATE, scales.surroundings, _EPS),
        (ACTION, scales.actions, 0.0),
        *((feature.name, feature.scale, _EPS) for feature in scales.cameras),
    ):
        if scale.scale:
            shape = (-1, 1, 1) if inputs.get(name, {}).get("type") == "VISUAL" else (-1,)
            tensors[f"{name}.mean"] = torch.tensor(scale.shift).reshape(shape)
            tensors[f"{name}.std"] = (torch.tensor(scale.scale) - eps).reshape(shape)
    before = {"eps": _EPS, "features": {**inputs, **outputs}, "norm_map": modes}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    neutral_steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
    ]
    _write_pipeline(directory, PREPROCESSOR, [*neutral_steps, {"registry_name": NORMALISER, "config": before}], tensors)
    after = {"eps": _EPS, "features": outputs, "norm_map": modes}
    _write_pipeline(directory, POSTPROCESSOR, [{"registry_name": UNNORMALISER, "config": after}, device], tensors)
    kept = {name: value for name, value in settings.items() if name != "dtype"}
    return {**kept, **features, "normalization_mapping": modes}


def _write_pipeline(directory: Path, name: str, steps: Sequence[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    written_steps = []
    for index, step in enumerate(steps):
        if step["registry_name"] in (NORMALISER, UNNORMALISER):
            file = f"{name}_step_{index}_{step['registry_name']}.safetensors"
            write_tensors(directory / file, tensors, {})
            step = {**step, "state_file": file}
        written_steps.append(step)
    write_json(directory / f"{name}.json", {"name": name, "steps": written_steps})
