"""ACT (Zhao et al. 2023) as in LeRobot: layers of DETR (Carion et al. 2020), which add positions only to queries and
keys, and a ResNet for images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from headway.errors import UserError
from headway.formats.lerobot import Features, read_features, read_scales, write_scales, written_features
from headway.formats.rules import (
    Beside,
    ChannelsLast,
    Family,
    Flat,
    Fused,
    TensorRule,
    Whole,
    expect,
    layers,
    linear,
    rule,
)
from headway.formats.settings import Settings, published_activation
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
from headway.nn.models.resnet import ResNetDepth, blocks_of, channels_of
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import GridsConfig, SinusoidalConfig
from headway.visibility import Full

BACKBONES: dict[str, ResNetDepth] = {"resnet18": 18, "resnet34": 34}
_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
BATCH = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
_NUMBERS = {"latent": "latent", "robot": "robot_state", "surroundings": "env_state"}


@dataclass(frozen=True)
class _BesideSinusoids:
    """A tensor that the file stores with the sinusoids of `length` positions, [1, length, D]; computed here."""

    length: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0]]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        sinusoids = SinusoidalConfig().build(whole.shape[-1], None)
        return [whole, sinusoids(Layout.full(1, self.length), whole.float())]


def read(settings: Settings, names: Collection[str]) -> ActConfig:
    settings.refuse("n_obs_steps", 1)
    settings.refuse("vision_backbone", *BACKBONES)
    settings.refuse("replace_final_stride_with_dilation", False, 0)
    settings.refuse("feedforward_activation", "relu", "gelu")
    found = read_features(settings)
    if found.actions < 1 or not (found.cameras or found.surroundings):
        raise UserError(f"{settings.source}: a policy needs actions, and images or the environment's state; add them")
    latent, inferred = settings.get("latent_dim", int), settings.get("use_vae", bool)
    depth = BACKBONES[settings.get("vision_backbone", str)] if found.cameras else 18
    scene = SceneEmbedConfig(found.robot, found.surroundings, tuple(found.cameras.values()), latent, depth)
    chunk = settings.get("chunk_size", int)
    encoder = _stack(settings, "n_encoder_layers", scene.places)
    return ActConfig(
        settings.get("dim_model", int),
        chunk,
        found.actions,
        observation=scene,
        encoder=encoder,
        decoder=_stack(settings, "n_decoder_layers", GridsConfig(chunk), reads=True),
        posterior=_stack(settings, "n_vae_encoder_layers", SinusoidalConfig()) if inferred else StackConfig(),
        head=RegressionConfig(latent if inferred else 0, settings.get("kl_weight", float)),
    )


def _stack(settings: Settings, depth: str, positions: Any, reads: bool = False) -> StackConfig:
    heads, rate, before = settings.get("n_heads", int), settings.get("dropout", float), settings.get("pre_norm", bool)
    activation = settings.activation("feedforward_activation")
    feed = MLPConfig(hidden=settings.get("dim_feedforward", int), activation=activation, dropout=rate)
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full(), dropout=rate, placed=True),
        CrossAttentionConfig(heads, dropout=rate, placed=True) if reads else None,
        feed,
        placement="pre" if before else "post",
        dropout=rate,
    )
    norm = LayerNormConfig() if before or reads else None
    return StackConfig(cycle((block,), settings.get(depth, int)), norm, positions=positions)


def write(config: ActConfig) -> dict[str, Any]:
    scene, head = expect(config.observation, SceneEmbedConfig), expect(config.head, RegressionConfig)
    block = config.encoder.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    cameras = {f"observation.images.{place}": size for place, size in enumerate(scene.cameras)}
    return {
        "type": "act",
        "n_obs_steps": 1,
        **written_features(Features(scene.robot, scene.surroundings, config.actions, cameras)),
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
    embed, read = "trunk.encoder.embed", config.trunk.encoder.embed
    given = [name for name in _NUMBERS if getattr(read, name)]
    found = [
        *(
            each
            for name in given
            for each in linear(f"{embed}.numbers.{name}", f"model.encoder_{_NUMBERS[name]}_input_proj")
        ),
        rule("trunk.encoder.stack.positions.table", "model.encoder_1d_feature_pos_embed.weight"),
        *_stack_rules(config.encoder, "trunk.encoder", "model.encoder"),
        rule("trunk.decoder.stack.positions.table", "model.decoder_pos_embed.weight"),
        *_stack_rules(config.decoder, "trunk.decoder", "model.decoder"),
        *linear("trunk.decoder.heads.actions.project", "model.action_head"),
    ]
    if scene.cameras:
        found += residual_network(f"{embed}.eye", [f"model.backbone.{name}" for name in _PARTS], scene.depth, BATCH)
        project = "model.encoder_img_feat_input_proj"
        found.append(rule(f"{embed}.project.weight", f"{project}.weight", form=Flat((-1, 1, 1))))
        found.append(rule(f"{embed}.project.bias", f"{project}.bias"))
    if config.head.size:
        robot, ours, theirs = bool(scene.robot), "posterior", "model.vae_encoder"
        places = _BesideSinusoids(1 + robot + config.chunk)
        found += [
            rule(f"{ours}.embed.first.table", f"{theirs}_cls_embed.weight", f"{theirs}_pos_enc", form=places),
            *(linear(f"{ours}.embed.states", f"{theirs}_robot_state_input_proj") if robot else []),
            *linear(f"{ours}.embed.actions", f"{theirs}_action_input_proj"),
            *_stack_rules(config.posterior, ours, theirs),
            *linear(f"{ours}.heads.latent.project", f"{theirs}_latent_output_proj"),
        ]
    return found


def _stack_rules(stack: StackConfig, ours: str, theirs: str) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        own, other, block = f"{ours}.stack.blocks.{i}", f"{theirs}.layers.{i}", stack.blocks[i]
        norm, reads = "before" if block.placement == "pre" else "last", block.cross is not None
        found = [
            rule(f"{own}.mixer.qkv.weight", f"{other}.self_attn.in_proj_weight", form=Whole()),
            rule(f"{own}.mixer.qkv.bias", f"{other}.self_attn.in_proj_bias", form=Whole()),
            *linear(f"{own}.mixer.out", f"{other}.self_attn.out_proj"),
            *linear(f"{own}.mix.{norm}", f"{other}.norm1"),
            *linear(f"{own}.feed_forward.up", f"{other}.linear1"),
            *linear(f"{own}.feed_forward.down", f"{other}.linear2"),
            *linear(f"{own}.feed.{norm}", f"{other}.norm{3 if reads else 2}"),
        ]
        cross = f"{other}.multihead_attn"
        return (
            found
            if not reads
            else [
                *found,
                *linear(f"{own}.read.{norm}", f"{other}.norm2"),
                *(rule(f"{own}.cross.q.{end}", f"{cross}.q_{end}") for end in ("weight", "bias")),
                *(rule(f"{own}.cross.kv.{end}", f"{cross}.k_{end}", f"{cross}.v_{end}") for end in ("weight", "bias")),
                *linear(f"{own}.cross.out", f"{cross}.out_proj"),
            ]
        )

    last = linear(f"{ours}.stack.norm", f"{theirs}.norm") if stack.norm is not None else []
    return [*layers(len(stack.blocks), layer), *last]


def residual_network(
    ours: str, theirs: Sequence[str], depth: ResNetDepth, normed: Mapping[str, str]
) -> list[TensorRule]:
    """Rules of a ResNet whose first convolution, its norm and four layers are named `sources`; `norm_names` maps
    headway's names of a norm's tensors to the file's.
    """

    def norm(own: str, other: str) -> list[TensorRule]:
        return [rule(f"{own}.{name}", f"{other}.{their}") for name, their in normed.items()]

    stem, stem_norm, *parts = theirs
    found = [_kernel(f"{ours}.stem", stem, 7, 3), *norm(f"{ours}.stem_norm", stem_norm)]
    for layer, block, around in blocks_of(depth):
        own, other = f"{ours}.layers.{layer}.{block}", f"{parts[layer]}.{block}"
        channels, width = channels_of(layer, block)
        found += [_kernel(f"{own}.first", f"{other}.conv1", 3, channels), *norm(f"{own}.first_norm", f"{other}.bn1")]
        found += [_kernel(f"{own}.second", f"{other}.conv2", 3, width), *norm(f"{own}.second_norm", f"{other}.bn2")]
        if around:
            found.append(_kernel(f"{own}.around", f"{other}.downsample.0", 1, channels))
            found += norm(f"{own}.around_norm", f"{other}.downsample.1")
    return found


def _kernel(ours: str, theirs: str, taps: int, channels: int) -> TensorRule:
    return rule(f"{ours}.product.weight", f"{theirs}.weight", form=ChannelsLast(taps, channels))


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
    skipped=(r"^(un)?normalize_(inputs|targets|outputs)\.",),  # statistics of older files
    defaults=_DEFAULTS,
    fused=(Fused("multihead_attn.in_proj_", tuple(f"multihead_attn.{name}_" for name in "qkv")),),
    beside=Beside(read_scales, write_scales),
)
