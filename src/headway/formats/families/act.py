"""ACT (Zhao et al. 2023) as in LeRobot: DETR layers (Carion et al. 2020), which add positions only to queries and
keys, and a ResNet for images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from headway.errors import UserError
from headway.formats.lerobot import Features, feature_settings, read_features, read_scales, write_scales
from headway.formats.setting_table import ACTIVATION, SettingTable, flag
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    ChannelsLast,
    Family,
    FlattenedRows,
    Fused,
    ProcessorFiles,
    TensorRule,
    Unsplit,
    block_rules,
    expect,
    linear,
    linears,
    prefixed,
    rule,
)
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import ActConfig, BlockConfig, RegressionConfig, SceneEmbedConfig, StackConfig
from headway.nn.models.act import GridsConfig
from headway.nn.models.resnet import ResNetDepth, block_channels, list_blocks
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import SinusoidalConfig
from headway.visibility import Full

BACKBONES: dict[str, ResNetDepth] = {"resnet18": 18, "resnet34": 34}
_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
BATCH_NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
_STATE_PROJECTIONS = {"latent": "latent", "robot": "robot_state", "surroundings": "env_state"}


@dataclass(frozen=True)
class _WithSinusoids:
    """Sinusoids for `length` positions, [1, length, D], which the file stores and headway computes."""

    length: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        sinusoids = SinusoidalConfig().build(tensor.shape[-1], None)
        return [tensor, sinusoids(Layout.full(1, self.length, device=tensor.device), tensor.float())]


def _stack(cross: CrossAttentionConfig | None = None) -> StackConfig:
    return StackConfig((BlockConfig(AttentionConfig(pattern=Full(), placed=True), cross),), norm=None)


_STACKS = "{encoder,decoder,posterior}.block"
TABLE = SettingTable(
    ActConfig(
        observation=SceneEmbedConfig(surroundings=1),
        encoder=_stack(),
        decoder=_stack(CrossAttentionConfig(placed=True)),
        posterior=_stack(),
    ),
    {
        "n_obs_steps": ("", 1),
        "input_features": ("", dict),
        "output_features": ("", dict),
        "chunk_size": ("chunk", 100),
        "n_action_steps": ("", 100),
        "vision_backbone": ("", "resnet18"),
        "pretrained_backbone_weights": ("", str),
        "replace_final_stride_with_dilation": ("", bool),
        "pre_norm": (f"{_STACKS}.placement", False, flag("pre", "post")),
        "dim_model": ("width", 512),
        "n_heads": (f"{_STACKS}.mixer.heads decoder.block.cross.heads", 8),
        "dim_feedforward": (f"{_STACKS}.feed_forward.hidden", 3200),
        "feedforward_activation": (f"{_STACKS}.feed_forward.activation", "relu", ACTIVATION),
        "n_encoder_layers": ("encoder.depth", 4),
        "n_decoder_layers": ("decoder.depth", 1),
        "use_vae": ("", True),
        "latent_dim": ("observation.latent", 32),
        "n_vae_encoder_layers": ("posterior.depth", 4),
        "dropout": (
            f"{_STACKS}.dropout {_STACKS}.mixer.dropout {_STACKS}.feed_forward.dropout decoder.block.cross.dropout",
            0.1,
        ),
        "kl_weight": ("head.beta", 10.0),
    },
)


def read(settings: Settings, names: Collection[str]) -> ActConfig:
    settings.require("n_obs_steps", 1)
    settings.require("vision_backbone", *BACKBONES)
    settings.require("replace_final_stride_with_dilation", False, 0)
    settings.require("feedforward_activation", "relu", "gelu")
    features = read_features(settings)
    if features.actions < 1 or not (features.cameras or features.surroundings):
        raise UserError(f"{settings.source}: a policy needs actions, and images or the environment's state; add them")
    inferred = settings.get("use_vae", bool)
    before = settings.get("pre_norm", bool)
    config = TABLE.read(
        settings,
        {
            "actions": features.actions,
            "observation.robot": features.robot,
            "observation.surroundings": features.surroundings,
            "observation.cameras": tuple(features.cameras.values()),
            "observation.depth": BACKBONES[settings.get("vision_backbone", str)] if features.cameras else 18,
            "encoder.norm": LayerNormConfig() if before else None,
            "decoder.norm": LayerNormConfig(),
            "decoder.positions": GridsConfig(settings.get("chunk_size", int)),
            "posterior.norm": LayerNormConfig() if before else None,
            "posterior.positions": SinusoidalConfig(),
            "head.latent": settings.get("latent_dim", int) if inferred else 0,
        },
    )
    encoder = replace(config.encoder, positions=config.observation.grid_positions)
    return replace(config, encoder=encoder, posterior=config.posterior if inferred else StackConfig())


def write(config: ActConfig) -> dict[str, Any]:
    scene, head = expect(config.observation, SceneEmbedConfig), expect(config.head, RegressionConfig)
    cameras = {f"observation.images.{index}": size for index, size in enumerate(scene.cameras)}
    others = {
        "n_obs_steps": 1,
        **feature_settings(Features(scene.robot, scene.surroundings, config.actions, cameras)),
        "vision_backbone": f"resnet{scene.depth}",
        "pretrained_backbone_weights": None,  # included in the weights: LeRobot need not download others
        "replace_final_stride_with_dilation": False,
        "use_vae": bool(head.size),
        "n_vae_encoder_layers": len(config.posterior.blocks) or TABLE.defaults["n_vae_encoder_layers"],
    }
    return {"type": "act", **TABLE.write(config, others)}


def rules(config: ActConfig) -> list[TensorRule]:
    scene = cast(SceneEmbedConfig, config.observation)
    embed, embed_config = "trunk.encoder.embed", config.encoder_decoder.encoder.embed
    states = [name for name in _STATE_PROJECTIONS if getattr(embed_config, name)]
    tensor_rules = [
        *linears(
            {f"{embed}.numbers.{name}": f"model.encoder_{_STATE_PROJECTIONS[name]}_input_proj" for name in states}
        ),
        rule("trunk.encoder.stack.positions.table", "model.encoder_1d_feature_pos_embed.weight"),
        *_stack_rules(config.encoder, "trunk.encoder", "model.encoder"),
        rule("trunk.decoder.stack.positions.table", "model.decoder_pos_embed.weight"),
        *_stack_rules(config.decoder, "trunk.decoder", "model.decoder"),
        *linear("trunk.decoder.heads.actions.project", "model.action_head"),
    ]
    if scene.cameras:
        tensor_rules += residual_network(
            f"{embed}.eye", [f"model.backbone.{name}" for name in _PARTS], scene.depth, BATCH_NORM
        )
        project = "model.encoder_img_feat_input_proj"
        tensor_rules.append(rule(f"{embed}.project.weight", f"{project}.weight", transform=FlattenedRows((-1, 1, 1))))
        tensor_rules.append(rule(f"{embed}.project.bias", f"{project}.bias"))
    if config.head.size:
        robot, target, source = bool(scene.robot), "posterior", "model.vae_encoder"
        positions = _WithSinusoids(1 + robot + config.chunk)
        tensor_rules += [
            rule(f"{target}.embed.first.table", f"{source}_cls_embed.weight", f"{source}_pos_enc", transform=positions),
            *(linear(f"{target}.embed.states", f"{source}_robot_state_input_proj") if robot else []),
            *linear(f"{target}.embed.actions", f"{source}_action_input_proj"),
            *_stack_rules(config.posterior, target, source),
            *linear(f"{target}.heads.latent.project", f"{source}_latent_output_proj"),
        ]
    return tensor_rules


def _stack_rules(stack: StackConfig, target: str, source: str) -> list[TensorRule]:
    def layer(block: BlockConfig) -> Iterator[TensorRule]:
        norm, has_cross = "before" if block.placement == "pre" else "last", block.cross is not None
        yield rule("mixer.qkv.weight", "self_attn.in_proj_weight", transform=Unsplit())
        yield rule("mixer.qkv.bias", "self_attn.in_proj_bias", transform=Unsplit())
        names = {
            "mixer.out": "self_attn.out_proj",
            f"mix.{norm}": "norm1",
            "feed_forward.up": "linear1",
            "feed_forward.down": "linear2",
            f"feed.{norm}": "norm3" if has_cross else "norm2",
        }
        yield from linears({**names, **({f"read.{norm}": "norm2"} if has_cross else {})})
        if has_cross:
            for part, stored in (("q", "q"), ("kv", "{k,v}")):
                for end in ("weight", "bias"):
                    yield rule(f"cross.{part}.{end}", f"multihead_attn.{stored}_{end}")
            yield from linear("cross.out", "multihead_attn.out_proj")

    last = linear(f"{target}.stack.norm", f"{source}.norm") if stack.norm is not None else []
    return [*block_rules(stack, f"{source}.layers.{{}}.", layer, f"{target}.stack"), *last]


def residual_network(
    target: str, sources: Sequence[str], depth: ResNetDepth, norm_names: Mapping[str, str]
) -> list[TensorRule]:
    """Rules for a ResNet whose first convolution, its norm and four layers are named `sources`; `norm_names` maps
    headway's names for a norm's tensors to the file's.
    """

    def norm(target: str, source: str) -> list[TensorRule]:
        return [rule(f"{target}.{name}", f"{source}.{stored}") for name, stored in norm_names.items()]

    stem, stem_norm, *parts = sources
    tensor_rules = [_kernel(f"{target}.stem", stem, 7, 3), *norm(f"{target}.stem_norm", stem_norm)]
    for layer, block, around in list_blocks(depth):
        channels, width = block_channels(layer, block)
        block_rules = [
            _kernel("first", "conv1", 3, channels),
            *norm("first_norm", "bn1"),
            _kernel("second", "conv2", 3, width),
            *norm("second_norm", "bn2"),
        ]
        if around:
            block_rules += [_kernel("around", "downsample.0", 1, channels), *norm("around_norm", "downsample.1")]
        tensor_rules += prefixed(block_rules, f"{target}.layers.{layer}.{block}.", f"{parts[layer]}.{block}.")
    return tensor_rules


def _kernel(target: str, source: str, taps: int, channels: int) -> TensorRule:
    return rule(f"{target}.product.weight", f"{source}.weight", transform=ChannelsLast(taps, channels))


FAMILY = Family(
    "act",
    read,
    write,
    rules,
    skipped=(r"^(un)?normalize_(inputs|targets|outputs)\.",),  # statistics in older files
    defaults=TABLE.defaults,
    fused=(Fused("multihead_attn.in_proj_", tuple(f"multihead_attn.{name}_" for name in "qkv")),),
    processor_files=ProcessorFiles(read_scales, write_scales),
)
