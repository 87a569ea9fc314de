"""Diffusion Policy (Chi et al. 2023) as in LeRobot: a U-Net over time, conditioned on keypoints and state vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from headway.errors import UserError
from headway.formats.families.act import BACKBONES, BATCH, residual_network
from headway.formats.lerobot import Features, read_features, read_scales, write_scales, written_features
from headway.formats.rules import Beside, Family, Flat, TensorRule, expect, linear, rule
from headway.formats.settings import Settings
from headway.nn.models import DiffusionConfig, KeypointsConfig, UNetConfig, UNetPolicyConfig
from headway.nn.models.unet_policy import places

_SCHEDULE = "squaredcos_cap_v2"
_SAYS: dict[str, Literal["noise", "sample"]] = {"epsilon": "noise", "sample": "sample"}
_SAMPLERS: dict[str, Literal["ddim", "ddpm"]] = {"DDPM": "ddpm", "DDIM": "ddim"}
_LAYERS = ("0", "1", "4", "5", "6", "7")  # indices of the network's parts; 2 and 3 are an activation and a pooling


@dataclass(frozen=True)
class _BesidePlaces:
    """A 1 x 1 convolution that the file stores with the coordinates of its `grid`, [S, 2], which are computed here."""

    grid: tuple[int, int]

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1)]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole[:, :, None, None], places(self.grid)]


class _Doubling:
    """The kernels [C, D, taps] of a transposed convolution, whose rows are [D, taps], flattened, here."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1).T]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole.T.unflatten(1, (-1, 4))]


def read(settings: Settings, names: Collection[str]) -> UNetPolicyConfig:
    settings.refuse("vision_backbone", *BACKBONES)
    settings.refuse("beta_schedule", _SCHEDULE)
    settings.refuse("prediction_type", *_SAYS)
    settings.refuse("noise_scheduler_type", *_SAMPLERS)
    found = read_features(settings)
    if found.actions < 1 or not found.robot or not (found.cameras or found.surroundings):
        raise UserError(
            f"{settings.source}: a diffusion policy needs actions, the robot's state, and images or the environment's "
            "state; add them"
        )
    steps = settings.get("num_train_timesteps", int)
    return UNetPolicyConfig(
        settings.get("horizon", int),
        settings.get("n_obs_steps", int),
        found.actions,
        observation=_observation(settings, found),
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
            _SAYS[settings.get("prediction_type", str)],
            settings.get("clip_sample_range", float) if settings.get("clip_sample", bool) else None,
            _SAMPLERS[settings.get("noise_scheduler_type", str)],
            "leading",
        ),
    )


def _observation(settings: Settings, found: Features) -> KeypointsConfig:
    if not found.cameras:
        return KeypointsConfig(found.robot, found.surroundings)
    resized, crop = (_size(settings, name) for name in ("resize_shape", "crop_shape"))
    ratio = settings.get("crop_ratio", float)
    if resized is not None:
        crop = (int(resized[0] * ratio), int(resized[1] * ratio)) if ratio < 1 else None
    return KeypointsConfig(
        found.robot,
        found.surroundings,
        tuple(found.cameras.values()),
        resized,
        crop,
        settings.get("spatial_softmax_num_keypoints", int),
        BACKBONES[settings.get("vision_backbone", str)],
        "group" if settings.get("use_group_norm", bool) else "frozen",
        settings.get("use_separate_rgb_encoder_per_camera", bool),
    )


def _size(settings: Settings, name: str) -> tuple[int, int] | None:
    found = settings.optional(name, list[int])
    if found is not None and len(found) != 2:
        raise UserError(f"{settings.source}: {name} is {found}; it should be [height, width]")
    return None if found is None else (found[0], found[1])


def write(config: UNetPolicyConfig) -> dict[str, Any]:
    seen, net, head = expect(config.observation, KeypointsConfig), config.net, expect(config.head, DiffusionConfig)
    cameras = {f"observation.images.{place}": size for place, size in enumerate(seen.cameras)}
    says = {ours: theirs for theirs, ours in _SAYS.items()}
    samplers = {ours: theirs for theirs, ours in _SAMPLERS.items()}
    ratio = 1.0  # cropped size / resized size, from which LeRobot computes the crop
    if seen.resized is not None and seen.crop is not None:
        pairs = list(zip(seen.crop, seen.resized))
        ratio = (max(part / whole for part, whole in pairs) + min((part + 1) / whole for part, whole in pairs)) / 2
    return {
        "type": "diffusion",
        "n_obs_steps": config.history,
        "horizon": config.horizon,
        **written_features(Features(seen.robot, seen.surroundings, config.actions, cameras)),
        "vision_backbone": f"resnet{seen.depth}",
        "pretrained_backbone_weights": None,  # included in the weights: LeRobot need not download others
        "resize_shape": None if seen.resized is None else list(seen.resized),
        "crop_ratio": ratio,
        "crop_shape": None if seen.crop is None else list(seen.crop),
        "use_group_norm": seen.norm == "group",
        "spatial_softmax_num_keypoints": seen.points,
        "use_separate_rgb_encoder_per_camera": seen.apart,
        "down_dims": list(net.widths),
        "kernel_size": net.taps,
        "n_groups": net.groups,
        "diffusion_step_embed_dim": net.step,
        "use_film_scale_modulation": net.scaled,
        "noise_scheduler_type": samplers[head.sampler],
        "num_train_timesteps": head.steps,
        "num_inference_steps": head.sampled,
        "beta_schedule": _SCHEDULE,
        "prediction_type": says[head.says],
        "clip_sample": head.clip is not None,
        "clip_sample_range": head.clip or _DEFAULTS["clip_sample_range"],
    }


def rules(config: UNetPolicyConfig) -> list[TensorRule]:
    seen, found = config.observation, _net(config.net, config.actions)
    held = BATCH if seen.norm == "frozen" else {"weight": "weight", "bias": "bias"}
    count = (len(seen.cameras) if seen.apart else 1) if seen.cameras else 0
    for number in range(count):
        ours, theirs = f"glimpses.eyes.{number}", "diffusion.rgb_encoder" + (f".{number}" if seen.apart else "")
        maps, pool = f"{ours}.points.maps", f"{theirs}.pool"
        found += [
            *residual_network(f"{ours}.net", [f"{theirs}.backbone.{name}" for name in _LAYERS], seen.depth, held),
            rule(f"{maps}.weight", f"{pool}.nets.weight", f"{pool}.pos_grid", form=_BesidePlaces(seen.grid)),
            rule(f"{maps}.bias", f"{pool}.nets.bias"),
            *linear(f"{ours}.out", f"{theirs}.out"),
        ]
    return found


def _net(net: UNetConfig, actions: int) -> list[TensorRule]:
    theirs, widths = "diffusion.unet", net.widths
    found = [
        *linear("net.up", f"{theirs}.diffusion_step_encoder.1"),
        *linear("net.down", f"{theirs}.diffusion_step_encoder.3"),
    ]
    for number, (before, width) in enumerate(zip((actions, *widths), widths)):
        own, other = f"net.descent.{number}", f"{theirs}.down_modules.{number}"
        found += [
            *_layer(f"{own}.0", f"{other}.0", net.taps, before != width),
            *_layer(f"{own}.1", f"{other}.1", net.taps, False),
        ]
        if number < len(widths) - 1:
            found += _taps(f"net.halving.{number}", f"{other}.2", 3)
    for number in range(2):
        found += _layer(f"net.middle.{number}", f"{theirs}.mid_modules.{number}", net.taps, False)
    for number, (narrower, width) in enumerate(list(pairwise(widths))[::-1]):
        own, other = f"net.ascent.{number}", f"{theirs}.up_modules.{number}"
        found += [
            *_layer(f"{own}.0", f"{other}.0", net.taps, 2 * width != narrower),
            *_layer(f"{own}.1", f"{other}.1", net.taps, False),
        ]
        found.append(rule(f"net.doubling.{number}.product.weight", f"{other}.2.weight", form=_Doubling()))
        found.append(rule(f"net.doubling.{number}.bias", f"{other}.2.bias"))
    last = f"{theirs}.final_conv"
    return [
        *found,
        *_taps("net.last", f"{last}.0.block.0", net.taps),
        *linear("net.last_norm", f"{last}.0.block.1"),
        *_map("net.out", f"{last}.1"),
    ]


def _layer(ours: str, theirs: str, taps: int, around: bool) -> list[TensorRule]:
    found = []
    for own, other in (("first", "conv1"), ("second", "conv2")):
        found += _taps(f"{ours}.{own}", f"{theirs}.{other}.block.0", taps)
        found += linear(f"{ours}.{own}_norm", f"{theirs}.{other}.block.1")
    found += linear(f"{ours}.modulate", f"{theirs}.cond_encoder.1")
    return found + (_map(f"{ours}.around", f"{theirs}.residual_conv") if around else [])


def _taps(ours: str, theirs: str, taps: int) -> list[TensorRule]:
    """A convolution over time."""
    weight = rule(f"{ours}.product.weight", f"{theirs}.weight", form=Flat((-1, taps)))
    return [weight, rule(f"{ours}.product.bias", f"{theirs}.bias")]


def _map(ours: str, theirs: str) -> list[TensorRule]:
    """A convolution of one tap, equivalent to a linear map."""
    return [rule(f"{ours}.weight", f"{theirs}.weight", form=Flat((-1, 1))), rule(f"{ours}.bias", f"{theirs}.bias")]


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
    beside=Beside(read_scales, write_scales),
)
