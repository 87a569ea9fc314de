"""Diffusion Policy (Chi et al. 2023) as in LeRobot: a U-Net over time, conditioned on keypoints and state vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from headway.errors import UserError
from headway.formats.families.act import BACKBONES, BATCH_NORM, residual_network
from headway.formats.lerobot import Features, feature_settings, read_features, read_scales, write_scales
from headway.formats.setting_table import SettingKind, SettingTable, flag
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    ProcessorFiles,
    TensorRule,
    expect,
    linear,
    linears,
    prefixed,
    rule,
)
from headway.nn.models import DiffusionConfig, KeypointsConfig, UNetConfig, UNetPolicyConfig
from headway.nn.models.keypoints import grid_coordinates

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


def _read_size(settings: Settings, name: str) -> tuple[int, int] | None:
    size = settings.optional(name, list[int])
    if size is not None and len(size) != 2:
        raise UserError(f"{settings.source}: {name} is {size}; it should be [height, width]")
    return None if size is None else (size[0], size[1])


def _choice(values: Mapping[str, str]) -> SettingKind:
    published = {value: name for name, value in values.items()}
    return SettingKind(lambda settings, name: values[settings.get(name, str)], lambda value: published[value])


_SIZE = SettingKind(_read_size, lambda size: None if size is None else list(size))
_WIDTHS = SettingKind(lambda settings, name: tuple(settings.get(name, list[int])), list)
TABLE = SettingTable(
    UNetPolicyConfig(head=DiffusionConfig(clip=1.0, spacing="leading")),
    {
        "n_obs_steps": ("history", 2),
        "horizon": ("horizon", 16),
        "input_features": ("", dict),
        "output_features": ("", dict),
        "n_action_steps": ("", 8),
        "vision_backbone": ("", "resnet18"),
        "pretrained_backbone_weights": ("", str),
        "resize_shape": ("observation.resized", list, _SIZE),
        "crop_ratio": ("", 1.0),
        "crop_shape": ("observation.crop", list, _SIZE),
        "use_group_norm": ("observation.norm", True, flag("group", "frozen")),
        "spatial_softmax_num_keypoints": ("observation.points", 32),
        "use_separate_rgb_encoder_per_camera": ("observation.apart", False),
        "down_dims": ("net.widths", [512, 1024, 2048], _WIDTHS),
        "kernel_size": ("net.taps", 5),
        "n_groups": ("net.groups", 8),
        "diffusion_step_embed_dim": ("net.step", 128),
        "use_film_scale_modulation": ("net.scaled", True),
        "noise_scheduler_type": ("head.sampler", "DDPM", _choice(_SAMPLERS)),
        "num_train_timesteps": ("head.steps", 100),
        "num_inference_steps": ("", int),
        "beta_schedule": ("", _SCHEDULE),
        "prediction_type": ("head.predicts", "epsilon", _choice(_PREDICTION_TYPES)),
        "clip_sample": ("", True),
        "clip_sample_range": ("", 1.0),
    },
)


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
    fields = {
        "actions": features.actions,
        "head.sampled": settings.optional("num_inference_steps", int) or settings.get("num_train_timesteps", int),
        "head.clip": settings.get("clip_sample_range", float) if settings.get("clip_sample", bool) else None,
    }
    if not features.cameras:
        rows = {name: row for name, row in TABLE.rows.items() if not row[0].startswith("observation.")}
        observation = KeypointsConfig(features.robot, features.surroundings)
        return replace(TABLE, rows=rows).read(settings, {**fields, "observation": observation})
    fields |= {
        "observation.robot": features.robot,
        "observation.surroundings": features.surroundings,
        "observation.cameras": tuple(features.cameras.values()),
        "observation.depth": BACKBONES[settings.get("vision_backbone", str)],
    }
    resized, ratio = _read_size(settings, "resize_shape"), settings.get("crop_ratio", float)
    if resized is not None:
        fields["observation.crop"] = (int(resized[0] * ratio), int(resized[1] * ratio)) if ratio < 1 else None
    return TABLE.read(settings, fields)


def write(config: UNetPolicyConfig) -> dict[str, Any]:
    observation, head = expect(config.observation, KeypointsConfig), expect(config.head, DiffusionConfig)
    cameras = {f"observation.images.{index}": size for index, size in enumerate(observation.cameras)}
    ratio = 1.0  # cropped size / resized size, from which LeRobot computes the crop
    if observation.resized is not None and observation.crop is not None:
        pairs = list(zip(observation.crop, observation.resized))
        ratio = (max(part / full for part, full in pairs) + min((part + 1) / full for part, full in pairs)) / 2
    others = {
        **feature_settings(Features(observation.robot, observation.surroundings, config.actions, cameras)),
        "vision_backbone": f"resnet{observation.depth}",
        "pretrained_backbone_weights": None,  # included in the weights: LeRobot need not download others
        "crop_ratio": ratio,
        "num_inference_steps": head.sampled,
        "beta_schedule": _SCHEDULE,
        "clip_sample": head.clip is not None,
        "clip_sample_range": head.clip or TABLE.defaults["clip_sample_range"],
    }
    return {"type": "diffusion", **TABLE.write(config, others)}


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
    tensor_rules = linears(
        {"net.up": f"{source}.diffusion_step_encoder.1", "net.down": f"{source}.diffusion_step_encoder.3"}
    )
    for index, (before, width) in enumerate(zip((actions, *widths), widths)):
        stored = f"{source}.down_modules.{index}"
        tensor_rules += _layers(f"net.descent.{index}", stored, net.taps, before != width)
        if index < len(widths) - 1:
            tensor_rules += _taps(f"net.halving.{index}", f"{stored}.2", 3)
    tensor_rules += _layers("net.middle", f"{source}.mid_modules", net.taps, False)
    for index, (narrower, width) in enumerate(list(pairwise(widths))[::-1]):
        stored, doubling = f"{source}.up_modules.{index}", f"net.doubling.{index}"
        tensor_rules += _layers(f"net.ascent.{index}", stored, net.taps, 2 * width != narrower)
        tensor_rules.append(
            rule(f"{doubling}.product.weight", f"{stored}.2.weight", transform=_TransposedConvolution())
        )
        tensor_rules.append(rule(f"{doubling}.bias", f"{stored}.2.bias"))
    last = f"{source}.final_conv"
    return [
        *tensor_rules,
        *_taps("net.last", f"{last}.0.block.0", net.taps),
        *linear("net.last_norm", f"{last}.0.block.1"),
        *_map("net.out", f"{last}.1"),
    ]


def _layers(target: str, source: str, taps: int, around: bool) -> list[TensorRule]:
    """Two layers; `around` is whether the first changes the width, which takes a map around it."""
    tensor_rules = []
    for index, has_map in enumerate((around, False)):
        layer_rules = []
        for conv, stored_conv in (("first", "conv1"), ("second", "conv2")):
            layer_rules += _taps(conv, f"{stored_conv}.block.0", taps)
            layer_rules += linear(f"{conv}_norm", f"{stored_conv}.block.1")
        layer_rules += linear("modulate", "cond_encoder.1")
        layer_rules += _map("around", "residual_conv") if has_map else []
        tensor_rules += prefixed(layer_rules, f"{target}.{index}.", f"{source}.{index}.")
    return tensor_rules


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


FAMILY = Family(
    "diffusion",
    read,
    write,
    rules,
    skipped=(r"^(un)?normalize_(inputs|targets|outputs)\.", r"\.num_batches_tracked$"),
    defaults=TABLE.defaults,
    processor_files=ProcessorFiles(read_scales, write_scales),
)
