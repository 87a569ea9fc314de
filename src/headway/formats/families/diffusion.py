"""Diffusion Policy (Chi et al. 2023) as in LeRobot: a U-Net over time, conditioned on keypoints and state vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from headway.errors import UserError
from headway.formats.families.act import BACKBONES, BATCH_NORM, residual_network
from headway.formats.lerobot import Features, feature_settings, read_features, read_scales, write_scales
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, FlattenedRows, ProcessorFiles, TensorRule, expect, linear, rule
from headway.nn.models import DiffusionConfig, KeypointsConfig, UNetConfig, UNetPolicyConfig
from headway.nn.models.unet_policy import grid_coordinates

_SCHEDULE = "squaredcos_cap_v2"
_PREDICTION_TYPES: dict[str, Literal["noise", "sample"]] = {"epsilon": "noise", "sample": "sample"}
_SAMPLERS: dict[str, Literal["ddim", "ddpm"]] = {"DDPM": "ddpm", "DDIM": "ddim"}
_LAYERS = ("0", "1", "4", "5", "6", "7")  # indices of the network's parts; 2 and 3 are an activation and a pooling


@dataclass(frozen=True)
class _WithGrid:
    """A 1 x 1 convolution that the file stores with the coordinates of its `grid`, [S, 2]; headway computes those."""

    grid: tuple[int, int]

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor[:, :, None, None], grid_coordinates(self.grid)]


class _TransposedConvolution:
    """The kernels [C, D, taps] of a transposed convolution; headway's rows are [D, taps], flattened."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1).T]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.T.unflatten(1, (-1, 4))]


def read(settings: Settings, names: Collection[str]) -> UNetPolicyConfig:
    settings.require("vision_backbone", *BACKBONES)
    settings.require("beta_schedule", _SCHEDULE)
    settings.require("prediction_type", *_PREDICTION_TYPES)
    settings.require("noise_scheduler_type", *_SAMPLERS)
    features = read_features(settings)
    if features.actions < 1 or not features.robot or not (features.cameras or features.surroundings):
        raise UserError(
            f"{settings.source}: a diffusion policy needs actions, the robot's state, and images or the environment's "
            "state; add them"
        )
    steps = settings.get("num_train_timesteps", int)
    return UNetPolicyConfig(
        settings.get("horizon", int),
        settings.get("n_obs_steps", int),
        features.actions,
        observation=_observation(settings, features),
        net=UNetConfig(
            tuple(settings.get("down_dims", list[int])),
            settings.get("kernel_size", int),
            settings.get("n_groups", int),
            settings.get("diffusion_step_embed_dim", int),
            settings.get("use_film_scale_modulation", bool),
        ),
        head=DiffusionConfig(
            steps,
            settings.optional("num_inference_steps", int) or steps,
            _PREDICTION_TYPES[settings.get("prediction_type", str)],
            settings.get("clip_sample_range", float) if settings.get("clip_sample", bool) else None,
            _SAMPLERS[settings.get("noise_scheduler_type", str)],
            "leading",
        ),
    )


def _observation(settings: Settings, features: Features) -> KeypointsConfig:
    if not features.cameras:
        return KeypointsConfig(features.robot, features.surroundings)
    resized, crop = (_size(settings, name) for name in ("resize_shape", "crop_shape"))
    ratio = settings.get("crop_ratio", float)
    if resized is not None:
        crop = (int(resized[0] * ratio), int(resized[1] * ratio)) if ratio < 1 else None
    return KeypointsConfig(
        features.robot,
        features.surroundings,
        tuple(features.cameras.values()),
        resized,
        crop,
        settings.get("spatial_softmax_num_keypoints", int),
        BACKBONES[settings.get("vision_backbone", str)],
        "group" if settings.get("use_group_norm", bool) else "frozen",
        settings.get("use_separate_rgb_encoder_per_camera", bool),
    )


def _size(settings: Settings, name: str) -> tuple[int, int] | None:
    size = settings.optional(name, list[int])
    if size is not None and len(size) != 2:
        raise UserError(f"{settings.source}: {name} is {size}; it should be [height, width]")
    return None if size is None else (size[0], size[1])


def write(config: UNetPolicyConfig) -> dict[str, Any]:
    observation, net, head = (
        expect(config.observation, KeypointsConfig),
        config.net,
        expect(config.head, DiffusionConfig),
    )
    cameras = {f"observation.images.{index}": size for index, size in enumerate(observation.cameras)}
    prediction_types = {name: published for published, name in _PREDICTION_TYPES.items()}
    samplers = {name: published for published, name in _SAMPLERS.items()}
    ratio = 1.0  # cropped size / resized size, from which LeRobot computes the crop
    if observation.resized is not None and observation.crop is not None:
        pairs = list(zip(observation.crop, observation.resized))
        ratio = (max(part / full for part, full in pairs) + min((part + 1) / full for part, full in pairs)) / 2
    return {
        "type": "diffusion",
        "n_obs_steps": config.history,
        "horizon": config.horizon,
        **feature_settings(Features(observation.robot, observation.surroundings, config.actions, cameras)),
        "vision_backbone": f"resnet{observation.depth}",
        "pretrained_backbone_weights": None,  # included in the weights: LeRobot need not download others
        "resize_shape": None if observation.resized is None else list(observation.resized),
        "crop_ratio": ratio,
        "crop_shape": None if observation.crop is None else list(observation.crop),
        "use_group_norm": observation.norm == "group",
        "spatial_softmax_num_keypoints": observation.points,
        "use_separate_rgb_encoder_per_camera": observation.apart,
        "down_dims": list(net.widths),
        "kernel_size": net.taps,
        "n_groups": net.groups,
        "diffusion_step_embed_dim": net.step,
        "use_film_scale_modulation": net.scaled,
        "noise_scheduler_type": samplers[head.sampler],
        "num_train_timesteps": head.steps,
        "num_inference_steps": head.sampled,
        "beta_schedule": _SCHEDULE,
        "prediction_type": prediction_types[head.predicts],
        "clip_sample": head.clip is not None,
        "clip_sample_range": head.clip or _DEFAULTS["clip_sample_range"],
    }


def rules(config: UNetPolicyConfig) -> list[TensorRule]:
    observation, tensor_rules = config.observation, _net(config.net, config.actions)
    norm_names = BATCH_NORM if observation.norm == "frozen" else {"weight": "weight", "bias": "bias"}
    count = (len(observation.cameras) if observation.apart else 1) if observation.cameras else 0
    for index in range(count):
        target, source = f"glimpses.eyes.{index}", "diffusion.rgb_encoder" + (f".{index}" if observation.apart else "")
        maps, pool = f"{target}.points.maps", f"{source}.pool"
        tensor_rules += [
            *residual_network(
                f"{target}.net", [f"{source}.backbone.{name}" for name in _LAYERS], observation.depth, norm_names
            ),
            rule(f"{maps}.weight", f"{pool}.nets.weight", f"{pool}.pos_grid", transform=_WithGrid(observation.grid)),
            rule(f"{maps}.bias", f"{pool}.nets.bias"),
            *linear(f"{target}.out", f"{source}.out"),
        ]
    return tensor_rules


def _net(net: UNetConfig, actions: int) -> list[TensorRule]:
    source, widths = "diffusion.unet", net.widths
    tensor_rules = [
        *linear("net.up", f"{source}.diffusion_step_encoder.1"),
        *linear("net.down", f"{source}.diffusion_step_encoder.3"),
    ]
    for index, (before, width) in enumerate(zip((actions, *widths), widths)):
        block_target, block_source = f"net.descent.{index}", f"{source}.down_modules.{index}"
        tensor_rules += [
            *_layer(f"{block_target}.0", f"{block_source}.0", net.taps, before != width),
            *_layer(f"{block_target}.1", f"{block_source}.1", net.taps, False),
        ]
        if index < len(widths) - 1:
            tensor_rules += _taps(f"net.halving.{index}", f"{block_source}.2", 3)
    for index in range(2):
        tensor_rules += _layer(f"net.middle.{index}", f"{source}.mid_modules.{index}", net.taps, False)
    for index, (narrower, width) in enumerate(list(pairwise(widths))[::-1]):
        block_target, block_source = f"net.ascent.{index}", f"{source}.up_modules.{index}"
        tensor_rules += [
            *_layer(f"{block_target}.0", f"{block_source}.0", net.taps, 2 * width != narrower),
            *_layer(f"{block_target}.1", f"{block_source}.1", net.taps, False),
        ]
        tensor_rules.append(
            rule(f"net.doubling.{index}.product.weight", f"{block_source}.2.weight", transform=_TransposedConvolution())
        )
        tensor_rules.append(rule(f"net.doubling.{index}.bias", f"{block_source}.2.bias"))
    last = f"{source}.final_conv"
    return [
        *tensor_rules,
        *_taps("net.last", f"{last}.0.block.0", net.taps),
        *linear("net.last_norm", f"{last}.0.block.1"),
        *_map("net.out", f"{last}.1"),
    ]


def _layer(target: str, source: str, taps: int, around: bool) -> list[TensorRule]:
    tensor_rules = []
    for conv, stored_conv in (("first", "conv1"), ("second", "conv2")):
        tensor_rules += _taps(f"{target}.{conv}", f"{source}.{stored_conv}.block.0", taps)
        tensor_rules += linear(f"{target}.{conv}_norm", f"{source}.{stored_conv}.block.1")
    tensor_rules += linear(f"{target}.modulate", f"{source}.cond_encoder.1")
    return tensor_rules + (_map(f"{target}.around", f"{source}.residual_conv") if around else [])


def _taps(target: str, source: str, taps: int) -> list[TensorRule]:
    """A convolution over time."""
    weight = rule(f"{target}.product.weight", f"{source}.weight", transform=FlattenedRows((-1, taps)))
    return [weight, rule(f"{target}.product.bias", f"{source}.bias")]


def _map(target: str, source: str) -> list[TensorRule]:
    """A convolution of one tap, equivalent to a linear map."""
    return [
        rule(f"{target}.weight", f"{source}.weight", transform=FlattenedRows((-1, 1))),
        rule(f"{target}.bias", f"{source}.bias"),
    ]


_DEFAULTS: dict[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 16,
    "n_action_steps": 8,
    "vision_backbone": "resnet18",
    "crop_ratio": 1.0,
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": 32,
    "use_separate_rgb_encoder_per_camera": False,
    "down_dims": [512, 1024, 2048],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 100,
    "beta_schedule": _SCHEDULE,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
FAMILY = Family(
    "diffusion",
    read,
    write,
    rules,
    skipped=(r"^(un)?normalize_(inputs|targets|outputs)\.", r"\.num_batches_tracked$"),
    defaults=_DEFAULTS,
    processor_files=ProcessorFiles(read_scales, write_scales),
)
