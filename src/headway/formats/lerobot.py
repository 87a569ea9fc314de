"""The files next to the weights of LeRobot's policies: their observations and actions, and the normalisation. Both
ways.

Newer folders have pipelines of steps (policy_preprocessor.json, policy_postprocessor.json) with statistics in separate
files; older ones store the statistics among the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.config import from_dict, to_dict
from headway.errors import UserError, nearest
from headway.formats.durable import read_json, write_json, write_tensors
from headway.formats.settings import Settings
from headway.formats.tensorfile import TensorFile
from headway.formats.weights import Weights

POLICIES = ("act", "diffusion")  # families of such policies
ROBOT, SURROUNDINGS, ACTION = "observation.state", "observation.environment_state", "action"
BEFORE, AFTER = "policy_preprocessor", "policy_postprocessor"
NORMALISER, BACK = "normalizer_processor", "unnormalizer_processor"
_PLAIN = ("rename_observations_processor", "to_batch_processor", "device_processor")  # they do not change values
_INPUTS, _OUTPUTS = "normalize_inputs.buffer_", "unnormalize_outputs.buffer_"  # of older files
_EPS = 1e-8
_RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_CHANNELS = 3


class Features(NamedTuple):
    """Observations and actions of a policy: the sizes of the robot's state, of the environment's state and of an
    action, and the size (height, width) of each camera's images, by LeRobot's names.
    """

    robot: int
    surroundings: int
    actions: int
    cameras: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Shifted:
    """Values minus `shift`, divided by `scale`."""

    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True)
class SeenCamera:
    """`name` is LeRobot's; `size` is (height, width); pixels are 0 to 1 before they are scaled."""

    name: str
    size: tuple[int, int]
    scale: Shifted

    @property
    def short(self) -> str:
        """The name that LeRobot's users write: top for observation.images.top."""
        return self.name.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class Scales:
    """Normalisation and execution settings of a policy. It predicts a new chunk every `execute` actions; `ensemble` is
    the m of temporal ensembling, None to disable it.
    """

    robot: Shifted
    surroundings: Shifted
    actions: Shifted
    cameras: tuple[SeenCamera, ...]
    execute: int
    ensemble: float | None = None


def read_features(settings: Settings) -> Features:
    """UserError for features that are not a state, an image or an action."""
    robot = surroundings = actions = 0
    cameras: dict[str, tuple[int, int]] = {}
    for name, feature in _features(settings, "input_features"):
        kind, shape = feature.get("type", str), tuple(feature.get("shape", list[int]))
        if kind == "VISUAL" and len(shape) == 3 and shape[0] == _CHANNELS:
            cameras[name] = shape[1:]  # type: ignore[assignment]
        elif name == ROBOT and len(shape) == 1:
            robot = shape[0]
        elif name == SURROUNDINGS and len(shape) == 1:
            surroundings = shape[0]
        else:
            raise UserError(
                f"{feature.source} is {kind} of shape {list(shape)}; use {ROBOT} and {SURROUNDINGS} of shape [size] "
                f"and VISUAL of shape [{_CHANNELS}, height, width]"
            )
    for name, feature in _features(settings, "output_features"):
        shape = feature.get("shape", list[int])
        if name != ACTION or len(shape) != 1:
            raise UserError(f"{feature.source} has shape {shape}; the output should be {ACTION} of shape [size]")
        actions = shape[0]
    return Features(robot, surroundings, actions, cameras)


def _features(settings: Settings, name: str) -> list[tuple[str, Settings]]:
    part = settings.part(name)
    return [(key, part.part(key)) for key in part.values]


def written_features(found: Features) -> dict[str, Any]:
    """Return the settings for config.json; the reverse of `read_features`."""
    seen: dict[str, Any] = {name: _feature("VISUAL", _CHANNELS, *size) for name, size in found.cameras.items()}
    if found.robot:
        seen[ROBOT] = _feature("STATE", found.robot)
    if found.surroundings:
        seen[SURROUNDINGS] = _feature("ENV", found.surroundings)
    return {"input_features": seen, "output_features": {ACTION: _feature("ACTION", found.actions)}}


def _feature(kind: str, *shape: int) -> dict[str, Any]:
    return {"type": kind, "shape": list(shape)}


def read_scales(directory: Path, settings: Settings, weights: Weights) -> dict[str, Any]:
    """Return `Scales` of a folder as plain data. UserError for missing statistics."""
    features = read_features(settings)
    inputs, outputs = _sources(directory, settings, weights)
    cameras = tuple(
        SeenCamera(name, size, inputs.scale(name, "VISUAL", _CHANNELS)) for name, size in features.cameras.items()
    )
    execute, chunk = settings.get("n_action_steps", int), _chunk(settings)
    if not 1 <= execute <= chunk:
        raise UserError(f"{settings.source}: n_action_steps is {execute}; choose 1 to {chunk}, a chunk's length")
    found = Scales(
        inputs.scale(ROBOT, "STATE", features.robot),
        inputs.scale(SURROUNDINGS, "ENV", features.surroundings),
        outputs.scale(ACTION, "ACTION", features.actions, back=True),
        cameras,
        execute,
        settings.optional("temporal_ensemble_coeff", float),
    )
    return to_dict(found)


def _chunk(settings: Settings) -> int:
    """Return the number of actions per prediction, from the current step."""
    if "horizon" in settings:
        return settings.get("horizon", int) - settings.get("n_obs_steps", int) + 1
    return settings.get("chunk_size", int)


@dataclass(frozen=True)
class _Statistics:
    """The location of statistics: `name(feature, statistic)` names a tensor in `weights`; `modes` are the kinds of
    normalisation by feature type, and `eps` is added to divisors.
    """

    weights: Weights
    name: Callable[[str, str], str]
    modes: Settings
    eps: float

    def scale(self, feature: str, kind: str, size: int, back: bool = False) -> Shifted:
        """Return the scaling of `size` values; with `inverse`, the one that inverts it."""
        mode = self.modes.get(kind, str, "IDENTITY")
        if not size or mode == "IDENTITY":
            return Shifted((0.0,) * size, (1.0,) * size)
        if mode == "MEAN_STD":
            mean, deviation = self._read(feature, "mean", size), self._read(feature, "std", size)
            return _scale(mean, deviation if back else deviation + self.eps)
        if mode not in _RANGES:
            raise UserError(f"{self.modes.source}: {kind} is {mode!r}; {nearest(mode, ['MEAN_STD', *_RANGES])}")
        low, high = (self._read(feature, each, size) for each in _RANGES[mode])
        half = (high - low) / 2
        if back:
            half = torch.where(half == 0, self.eps / 2, half)
            return _scale(low + half, half)
        flat = half == 0  # constant values become -1, as in LeRobot
        return _scale(torch.where(flat, low + 1, low + half), torch.where(flat, 1.0, half))

    def _read(self, feature: str, statistic: str, size: int) -> Tensor:
        name = self.name(feature, statistic)
        if name not in self.weights.names():
            raise UserError(
                f"{self.weights.source} has no {statistic} of {feature} ({name}), needed to scale it; get the "
                "folder again, or convert it with LeRobot's migrate_policy_normalization"
            )
        found = self.weights.get(name).float().flatten()
        if len(found) != size or not bool(torch.isfinite(found).all()):
            raise UserError(
                f"{self.weights.source}: {name} has {len(found)} values, but {size} finite values are needed; "
                "get the folder again"
            )
        return found


def _scale(shift: Tensor, scale: Tensor) -> Shifted:
    return Shifted(tuple(shift.tolist()), tuple(scale.tolist()))


def _sources(directory: Path, settings: Settings, weights: Weights) -> tuple[_Statistics, _Statistics]:
    """Return the statistics of observations and of actions."""
    if (directory / f"{BEFORE}.json").is_file():
        return _of_step(directory, BEFORE, NORMALISER), _of_step(directory, AFTER, BACK)
    modes = settings.part("normalization_mapping")
    if not modes.values:
        raise UserError(
            f"{directory} has neither {BEFORE}.json nor a normalization_mapping in its config.json to scale its values "
            "by; get the folder again"
        )

    def named(prefix: str) -> Callable[[str, str], str]:
        return lambda feature, statistic: f"{prefix}{feature.replace('.', '_')}.{statistic}"

    return _Statistics(weights, named(_INPUTS), modes, _EPS), _Statistics(weights, named(_OUTPUTS), modes, 0.0)


def _of_step(directory: Path, pipeline: str, wanted: str) -> _Statistics:
    """Return the statistics of a pipeline's normalisation step. UserError for unknown steps."""
    path = directory / f"{pipeline}.json"
    if not path.is_file():
        raise UserError(f"{directory} has no {path.name}, needed to scale its values; get the folder again")
    values = read_json(path)
    steps = values.get("steps") if isinstance(values, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{path} has no list of steps; get the folder again")
    found = None
    for place, step in enumerate(steps):
        name = step.get("registry_name")
        if name == wanted:
            found = Settings(step, f"{path}: steps.{place}")
        elif name not in _PLAIN:
            raise UserError(
                f"{path} has the unknown step {str(name or step.get('class'))[:80]!r}; steps may be "
                f"{wanted}, {', '.join(_PLAIN)}"
            )
    if found is None:
        raise UserError(f"{path} has no step {wanted}, needed to scale its values; get the folder again")
    config, file = found.part("config"), found.get("state_file", str)
    if Path(file).name != file or not (directory / file).is_file():
        raise UserError(f"{path} names the statistics {file[:80]!r}, which are not a file in its folder; get it again")
    held = TensorFile(directory / file)
    return _Statistics(held, "{}.{}".format, config.part("norm_map"), config.get("eps", float, _EPS))


def scales_of(said: Mapping[str, Any]) -> Scales:
    """Parse the output of `read_scales`, which `Usage.processor` stores."""
    return from_dict(Scales, said, "scales")


def write_scales(directory: Path, settings: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Write both pipelines and their statistics; return `settings` with the names of the cameras, and without keys that
    LeRobot does not read. All features are written as scaled by mean and deviation. UserError without scales.
    """
    if not said:
        raise UserError(
            "this policy has no scales for its observations and actions; export one that was imported or trained"
        )
    scales = scales_of(said)
    robot, surroundings, actions = (len(each.scale) for each in (scales.robot, scales.surroundings, scales.actions))
    features = written_features(
        Features(robot, surroundings, actions, {each.name: each.size for each in scales.cameras})
    )
    modes = dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "MEAN_STD")
    seen, done = features["input_features"], features["output_features"]
    tensors = {}
    for name, scale, eps in (
        (ROBOT, scales.robot, _EPS),
        (SURROUNDINGS, scales.surroundings, _EPS),
        (ACTION, scales.actions, 0.0),
        *((each.name, each.scale, _EPS) for each in scales.cameras),
    ):
        if scale.scale:
            shape = (-1, 1, 1) if seen.get(name, {}).get("type") == "VISUAL" else (-1,)
            tensors[f"{name}.mean"] = torch.tensor(scale.shift).reshape(shape)
            tensors[f"{name}.std"] = (torch.tensor(scale.scale) - eps).reshape(shape)
    before = {"eps": _EPS, "features": {**seen, **done}, "norm_map": modes}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    plain = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
    ]
    _write_pipeline(directory, BEFORE, [*plain, {"registry_name": NORMALISER, "config": before}], tensors)
    after = {"eps": _EPS, "features": done, "norm_map": modes}
    _write_pipeline(directory, AFTER, [{"registry_name": BACK, "config": after}, device], tensors)
    return {**_known(settings, ("dtype",)), **features, "normalization_mapping": modes}


def _known(settings: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in left_out}


def _write_pipeline(directory: Path, name: str, steps: Sequence[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    said = []
    for place, step in enumerate(steps):
        if step["registry_name"] in (NORMALISER, BACK):
            file = f"{name}_step_{place}_{step['registry_name']}.safetensors"
            write_tensors(directory / file, tensors, {})
            step = {**step, "state_file": file}
        said.append(step)
    write_json(directory / f"{name}.json", {"name": name, "steps": said})
