"""ACT (Zhao et al. 2023) as in LeRobot: DETR layers (Carion et al. 2020), which add positions only to queries and
keys, and a ResNet for images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from headway.errors import UserError
from headway.formats.lerobot import Features, feature_settings, read_features, read_scales, write_scales
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import (
    ChannelsLast,
    Family,
    FlattenedRows,
    Fused,
    ProcessorFiles,
    TensorRule,
    Unsplit,
    expect,
    layers,
    linear,
    rule,
)
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    ActConfig,
    BlockConfig,
    RegressionConfig,
    SceneEmbedConfig,
    StackConfig,
    cycle,
)
from headway.nn.models.act import GridsConfig
from headway.nn.models.resnet import ResNetDepth, block_channels, list_blocks
from headway.nn.parts.feedforward import MLPConfig
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
        return [tensor, sinusoids(Layout.full(1, self.length), tensor.float())]


def read(settings: Settings, names: Collection[str]) -> ActConfig:
    settings.require("n_obs_steps", 1)
    settings.require("vision_backbone", *BACKBONES)
    settings.require("replace_final_stride_with_dilation", False, 0)
    settings.require("feedforward_activation", "relu", "gelu")
    features = read_features(settings)
    if features.actions < 1 or not (features.cameras or features.surroundings):
        raise UserError(f"{settings.source}: a policy needs actions, and images or the environment's state; add them")
    latent, inferred = settings.get("latent_dim", int), settings.get("use_vae", bool)
    depth = BACKBONES[settings.get("vision_backbone", str)] if features.cameras else 18
    scene = SceneEmbedConfig(features.robot, features.surroundings, tuple(features.cameras.values()), latent, depth)
    chunk = settings.get("chunk_size", int)
    encoder = _stack(settings, "n_encoder_layers", scene.grid_positions)
    return ActConfig(
        settings.get("dim_model", int),
        chunk,
        features.actions,
        observation=scene,
        encoder=encoder,
        decoder=_stack(settings, "n_decoder_layers", GridsConfig(chunk), cross_attention=True),
        posterior=_stack(settings, "n_vae_encoder_layers", SinusoidalConfig()) if inferred else StackConfig(),
        head=RegressionConfig(latent if inferred else 0, settings.get("kl_weight", float)),
    )


def _stack(settings: Settings, depth: str, positions: Any, cross_attention: bool = False) -> StackConfig:
    heads, rate, before = settings.get("n_heads", int), settings.get("dropout", float), settings.get("pre_norm", bool)
    activation = settings.activation("feedforward_activation")
    feed = MLPConfig(hidden=settings.get("dim_feedforward", int), activation=activation, dropout=rate)
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full(), dropout=rate, placed=True),
        CrossAttentionConfig(heads, dropout=rate, placed=True) if cross_attention else None,
        feed,
        placement="pre" if before else "post",
        dropout=rate,
    )
    norm = LayerNormConfig() if before or cross_attention else None
    return StackConfig(cycle((block,), settings.get(depth, int)), norm, positions=positions)


def write(config: ActConfig) -> dict[str, Any]:
    scene, head = expect(config.observation, SceneEmbedConfig), expect(config.head, RegressionConfig)
    block = config.encoder.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    cameras = {f"observation.images.{index}": size for index, size in enumerate(scene.cameras)}
    return {
        "type": "act",
        "n_obs_steps": 1,
        **feature_settings(Features(scene.robot, scene.surroundings, config.actions, cameras)),
        "chunk_size": config.chunk,
        "vision_backbone": f"resnet{scene.depth}",
        "pretrained_backbone_weights": None,  # included in the weights: LeRobot need not download others
        "replace_final_stride_with_dilation": False,
        "pre_norm": block.placement == "pre",
        "dim_model": config.width,
        "n_heads": attention.heads,
        "dim_feedforward": feed.hidden,
        "feedforward_activation": published_activation(feed.activation),
        "n_encoder_layers": len(config.encoder.blocks),
        "n_decoder_layers": len(config.decoder.blocks),
        "use_vae": bool(head.size),
        "latent_dim": scene.latent,
        "n_vae_encoder_layers": len(config.posterior.blocks) or _DEFAULTS["n_vae_encoder_layers"],
        "dropout": block.dropout,
        "kl_weight": head.beta,
    }


def rules(config: ActConfig) -> list[TensorRule]:
    scene = cast(SceneEmbedConfig, config.observation)
    embed, embed_config = "trunk.encoder.embed", config.encoder_decoder.encoder.embed
    state_names = [name for name in _STATE_PROJECTIONS if getattr(embed_config, name)]
    tensor_rules = [
        *(
            tensor_rule
            for name in state_names
            for tensor_rule in linear(f"{embed}.numbers.{name}", f"model.encoder_{_STATE_PROJECTIONS[name]}_input_proj")
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
    def layer(i: int) -> list[TensorRule]:
        block_target, block_source, block = f"{target}.stack.blocks.{i}", f"{source}.layers.{i}", stack.blocks[i]
        norm, has_cross = "before" if block.placement == "pre" else "last", block.cross is not None
        tensor_rules = [
            rule(f"{block_target}.mixer.qkv.weight", f"{block_source}.self_attn.in_proj_weight", transform=Unsplit()),
            rule(f"{block_target}.mixer.qkv.bias", f"{block_source}.self_attn.in_proj_bias", transform=Unsplit()),
            *linear(f"{block_target}.mixer.out", f"{block_source}.self_attn.out_proj"),
            *linear(f"{block_target}.mix.{norm}", f"{block_source}.norm1"),
            *linear(f"{block_target}.feed_forward.up", f"{block_source}.linear1"),
            *linear(f"{block_target}.feed_forward.down", f"{block_source}.linear2"),
            *linear(f"{block_target}.feed.{norm}", f"{block_source}.norm{3 if has_cross else 2}"),
        ]
        cross = f"{block_source}.multihead_attn"
        return (
            tensor_rules
            if not has_cross
            else [
                *tensor_rules,
                *linear(f"{block_target}.read.{norm}", f"{block_source}.norm2"),
                *(rule(f"{block_target}.cross.q.{end}", f"{cross}.q_{end}") for end in ("weight", "bias")),
                *(
                    rule(f"{block_target}.cross.kv.{end}", f"{cross}.k_{end}", f"{cross}.v_{end}")
                    for end in ("weight", "bias")
                ),
                *linear(f"{block_target}.cross.out", f"{cross}.out_proj"),
            ]
        )

    last = linear(f"{target}.stack.norm", f"{source}.norm") if stack.norm is not None else []
    return [*layers(len(stack.blocks), layer), *last]


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
        block_target, block_source = f"{target}.layers.{layer}.{block}", f"{parts[layer]}.{block}"
        channels, width = block_channels(layer, block)
        tensor_rules += [
            _kernel(f"{block_target}.first", f"{block_source}.conv1", 3, channels),
            *norm(f"{block_target}.first_norm", f"{block_source}.bn1"),
        ]
        tensor_rules += [
            _kernel(f"{block_target}.second", f"{block_source}.conv2", 3, width),
            *norm(f"{block_target}.second_norm", f"{block_source}.bn2"),
        ]
        if around:
            tensor_rules.append(_kernel(f"{block_target}.around", f"{block_source}.downsample.0", 1, channels))
            tensor_rules += norm(f"{block_target}.around_norm", f"{block_source}.downsample.1")
    return tensor_rules


def _kernel(target: str, source: str, taps: int, channels: int) -> TensorRule:
    return rule(f"{target}.product.weight", f"{source}.weight", transform=ChannelsLast(taps, channels))


_DEFAULTS: dict[str, Any] = {
    "n_obs_steps": 1,
    "chunk_size": 100,
    "n_action_steps": 100,
    "vision_backbone": "resnet18",
    "pre_norm": False,
    "dim_model": 512,
    "n_heads": 8,
    "dim_feedforward": 3200,
    "feedforward_activation": "relu",
    "n_encoder_layers": 4,
    "n_decoder_layers": 1,
    "use_vae": True,
    "latent_dim": 32,
    "n_vae_encoder_layers": 4,
    "dropout": 0.1,
    "kl_weight": 10.0,
}
FAMILY = Family(
    "act",
    read,
    write,
    rules,
    skipped=(r"^(un)?normalize_(inputs|targets|outputs)\.",),  # statistics in older files
    defaults=_DEFAULTS,
    fused=(Fused("multihead_attn.in_proj_", tuple(f"multihead_attn.{name}_" for name in "qkv")),),
    processor_files=ProcessorFiles(read_scales, write_scales),
)
