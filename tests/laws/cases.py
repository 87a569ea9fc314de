"""What the laws run over: representative configs of every registered mixer, and models made of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from headway.config_kinds import kinds
from headway.layout import Layout
from headway.nn.mixers import (
    AttentionConfig,
    BidirectionalConfig,
    ConditionalGRUConfig,
    CrossAttentionConfig,
    DeltaConfig,
    DynamicLinksConfig,
    ElmanConfig,
    FastWeightsConfig,
    GatedDeltaConfig,
    GRUConfig,
    LinearAttentionConfig,
    LSTMConfig,
    Mixer,
    MixerConfig,
    MLSTMConfig,
    MultiplicativeConfig,
    PointwiseConfig,
    SigmaPiConfig,
)
from headway.nn.mixers.attention import POSITIONS
from headway.nn.models import (
    BlockConfig,
    BothBridgeConfig,
    EncoderDecoderConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
)
from headway.nn.models.disentangled import DisentangledConfig
from headway.nn.models.heads import VocabularyHeadConfig
from headway.nn.models.score_biases import AlibiConfig, RelativeConfig, SmolgenConfig
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.norm import LayerNormConfig, NormConfig, RMSNormConfig
from headway.nn.parts.positions import LearnedConfig, RotaryConfig, ScalingConfig, SinusoidalConfig
from headway.nn.parts.scaling import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from headway.visibility import Causal, Full, Local, Prefix

WIDTH, HEADS = 16, 4
BIASES: dict[str, BiasConfig] = {"alibi": AlibiConfig(HEADS), "relative": RelativeConfig(HEADS, 8, 16)}
# Biases of encoders, from queries and keys.
CONTENT_BIASES: dict[str, BiasConfig] = {
    "disentangled": DisentangledConfig(HEADS, 4, 7, LayerNormConfig()),
    "disentangled-own": DisentangledConfig(HEADS, 3, None, content_to_position=False, shared=False),
}
# Biases of rows that are whole: made from all tokens of a row at once, which is neither padded nor packed.
WHOLE_BIASES: dict[str, BiasConfig] = {"smolgen": SmolgenConfig(HEADS, 6, 2, 8, 4)}
PLACES = SinusoidalConfig()  # of attention that is placed
_TURN = RotaryConfig(theta=100.0)

MIXERS: dict[str, MixerConfig] = {
    "attention": AttentionConfig(HEADS),
    "attention-grouped": AttentionConfig(HEADS, kv_heads=2, rotary=_TURN, qkv_bias=False),
    "attention-window": AttentionConfig(HEADS, pattern=Causal(window=3), rotary=_TURN),
    "attention-qk-norm": AttentionConfig(HEADS, qk_norm=RMSNormConfig(), rotary=RotaryConfig(fraction=0.5)),
    "attention-each-norm": AttentionConfig(
        HEADS, kv_heads=2, qk_norm=LayerNormConfig(bias=False), qk_norm_over="each", rotary=_TURN
    ),
    "attention-cap": AttentionConfig(HEADS, soft_cap=2.0, scale=0.7),
    "attention-sinks": AttentionConfig(HEADS, sinks=True, kv_heads=1, head_size=6),
    "attention-alibi": AttentionConfig(HEADS, bias="alibi"),
    "attention-relative": AttentionConfig(HEADS, bias="relative", pattern=Causal(window=5)),
    "attention-full": AttentionConfig(HEADS, pattern=Full(), rotary=_TURN),
    "attention-local": AttentionConfig(HEADS, pattern=Local(2)),
    "attention-disentangled": AttentionConfig(HEADS, pattern=Full(), bias="disentangled", scale=0.3),
    "attention-disentangled-own": AttentionConfig(HEADS, pattern=Local(4), bias="disentangled-own"),
    "attention-prefix": AttentionConfig(HEADS, pattern=Prefix(2)),
    "attention-placed": AttentionConfig(HEADS, kv_heads=2, placed=True),
    "attention-placed-window": AttentionConfig(HEADS, placed=True, pattern=Causal(window=3), qk_norm=RMSNormConfig()),
    "pointwise": PointwiseConfig(),
    "elman": ElmanConfig(),
    "elman-logistic": ElmanConfig(cells=12, activation="logistic", learned_start=True),
    "elman-truncated": ElmanConfig(out=False, truncate=True),
    "lstm": LSTMConfig(),
    "lstm-bare": LSTMConfig(out=False, learned_start=True),
    "lstm-1997": LSTMConfig(cells=12, forget_gate=False),
    "lstm-peepholes": LSTMConfig(cells=12, peepholes=True),
    "lstm-stretched": LSTMConfig(peepholes=True, squash="logistic", learned_start=True),
    "gru": GRUConfig(),
    "gru-after": GRUConfig(cells=12, reset_after=True, learned_start=True),
    "sigma-pi": SigmaPiConfig(cells=6),
    "sigma-pi-zero": SigmaPiConfig(cells=5, learned_start=False),
    "multiplicative": MultiplicativeConfig(factors=10),
    "mlstm": MLSTMConfig(cells=12, factors=10),
    "bidirectional": BidirectionalConfig(),
    "bidirectional-sum": BidirectionalConfig(GRUConfig(cells=12), "sum"),
    "bidirectional-attention": BidirectionalConfig(AttentionConfig(HEADS, rotary=_TURN)),
    "linear-attention": LinearAttentionConfig(HEADS, chunk=4),
    "linear-attention-dpfp": LinearAttentionConfig(HEADS, features="dpfp", nu=2, qkv_bias=False),
    "linear-attention-plain": LinearAttentionConfig(2, 6, normalise=False, decay=True, norm=RMSNormConfig(), chunk=3),
    "fast-weights": FastWeightsConfig(HEADS, chunk=4),
    "fast-weights-1992": FastWeightsConfig(1, strength=False, squash="tanh"),
    "delta": DeltaConfig(HEADS, chunk=4),
    "delta-l2": DeltaConfig(HEADS, features="silu", key_norm="l2"),
    "gated-delta": GatedDeltaConfig(HEADS, chunk=3),
    "gated-delta-plain": GatedDeltaConfig(2, 6, norm=None, out_gate=False),
    "dynamic-links": DynamicLinksConfig(chunk=4),
    "dynamic-links-cells": DynamicLinksConfig(cells=12, decay=0.7, rate=2.0),
}
TRUNCATED = {"elman-truncated"}  # learns by what is, on purpose, not the gradient of its output
MIX_NOTHING = {"pointwise"}  # on purpose: the control of experiments, a layer in which tokens do not meet
CAUSAL = sorted(name for name, config in MIXERS.items() if config.causal)

READERS: dict[str, ConditionalGRUConfig] = {  # mixers that read a memory, of 6 numbers a token
    "additive": ConditionalGRUConfig(memory=6),
    "additive-wide": ConditionalGRUConfig(12, out=False, memory=6, alignment=5, shows="before", learned_start=True),
    "additive-after": ConditionalGRUConfig(memory=6, reset_after=True),
    "fixed": ConditionalGRUConfig(context="fixed", memory=6),
    "fixed-wide": ConditionalGRUConfig(12, out=False, context="fixed", memory=6, reset_after=True),
}

SCALINGS: dict[str, ScalingConfig] = {
    "linear": LinearScaling(4.0),
    "dynamic": DynamicScaling(2.0, 16, 64),
    "yarn": YarnScaling(4.0, 16),
    "llama3": Llama3Scaling(8.0, 16),
    "longrope": LongRopeScaling((1.0, 1.5), (2.0, 3.0), 16, 64),
}

FEED_FORWARDS: dict[str, FeedForwardConfig] = {
    "relu": MLPConfig(activation="relu"),
    "gelu": MLPConfig(activation="gelu"),
    "gelu-tanh": MLPConfig(activation="gelu_tanh"),
    "relu-squared": MLPConfig(activation="relu_squared", bias=False),
    "swiglu": GatedConfig(),
    "geglu": GatedConfig(activation="gelu"),
    "clamped": GatedConfig(activation="quick_gelu", bias=True, limit=0.5),
    "experts": ExpertsConfig(4, 2, GatedConfig(ratio=1.0), z_loss=0.01),
    "experts-shared": ExpertsConfig(
        5, 3, MLPConfig(ratio=1.0), normalise=False, shared=GatedConfig(ratio=1.5), shared_gate=True, router_bias=True
    ),
    "experts-sigmoid": ExpertsConfig(5, 2, GatedConfig(ratio=1.0), shared=MLPConfig(), scores="sigmoid", scale=1.5),
}
NORMS: dict[str, NormConfig] = {
    "layer": LayerNormConfig(),
    "layer-plain": LayerNormConfig(weight=False, bias=False),
    "rms": RMSNormConfig(),
    "rms-offset": RMSNormConfig(unit_offset=True),
    "rms-plain": RMSNormConfig(weight=False),
}


def test_every_registered_kind_has_a_case() -> None:
    """A new mixer, feed-forward, norm, scaling or bias is under the laws by being listed here, and must be."""
    for family, cases in (
        (MixerConfig, MIXERS | READERS),
        (FeedForwardConfig, FEED_FORWARDS),
        (NormConfig, NORMS),
        (ScalingConfig, SCALINGS),
        (BiasConfig, BIASES | CONTENT_BIASES | WHOLE_BIASES),
    ):
        missing = set(kinds(family)) - {case.kind for case in cases.values()}  # type: ignore[attr-defined]
        assert not missing, f"{family.__name__}: no law runs over {missing}"


def make_mixer(name: str) -> Mixer:
    """The mixer in float64 with weights large enough that every part matters."""
    biases = nn.ModuleDict({key: bias.build(WIDTH) for key, bias in (BIASES | CONTENT_BIASES).items()})
    biases[POSITIONS] = PLACES.build(WIDTH, None)
    mixer = MIXERS[name].build(WIDTH, biases)
    owner = nn.ModuleList([mixer, biases])
    shake(owner)
    mixer.owner_of_bias = [biases]  # keeps the biases alive without registering them
    return mixer


def make_reader(name: str) -> Mixer:
    reader = READERS[name].build(WIDTH, nn.ModuleDict())
    shake(reader)
    return reader


def shake(module: nn.Module, seed: int = 3) -> None:
    """Draw every parameter: matrices and tables as models do, vectors by noise around their starting values, and
    whatever else a module holds by noise of a matrix's size, so that no parameter hides behind a neutral start.
    """
    module.double()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    initialise(module, InitConfig(std=0.4, residual="same", embedding=0.6), 1, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = 0.3 if parameter.dim() == 1 else 0.4 * torch.equal(parameter, before[name])
        if noise:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * noise)
    frozen = [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])]
    assert not frozen, f"{type(module).__name__}: {frozen} kept their starting values"


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(batch: int, length: int, symbols: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, symbols, (batch, length), generator=torch.Generator().manual_seed(seed))


def hybrid(positions: str = "learned") -> TransformerConfig:
    """A decoder that cycles through every causal mixer, feed-forward, norm and placement."""
    placements = ("pre", "post", "sandwich", "branch", "parallel", "none")
    feeds, norms = list(FEED_FORWARDS.values()), list(NORMS.values())
    blocks = tuple(
        BlockConfig(
            MIXERS[name],
            None,
            feeds[i % len(feeds)],
            norms[i % len(norms)],
            placements[i % len(placements)],  # type: ignore[arg-type]
            layer_scale=0.9 if i % 2 else None,
        )
        for i, name in enumerate(CAUSAL)
    )
    where = LearnedConfig(1) if positions == "learned" else SinusoidalConfig()
    embed = TokenEmbedConfig(where, norm=LayerNormConfig(), scaled=True)
    return TransformerConfig(WIDTH, 11, 64, StackConfig(blocks, RMSNormConfig(), BIASES, PLACES), embed)


def seq2seq(tie: str = "all") -> EncoderDecoderConfig:
    """An encoder over the patterns that see both ways, and a hybrid decoder with a cross-attention in each block."""
    decoder = hybrid("sinusoidal")
    cross = CrossAttentionConfig(HEADS, kv_heads=2, qk_norm=RMSNormConfig())
    blocks = tuple(replace(b, cross=cross) for b in decoder.stack.blocks if b.placement != "parallel")
    both_ways = [name for name, config in MIXERS.items() if not config.causal and not getattr(config, "bias", None)]
    encoder = StackConfig(tuple(BlockConfig(MIXERS[name]) for name in both_ways))
    return EncoderDecoderConfig(
        TransformerConfig(WIDTH, 11, 64, encoder, TokenEmbedConfig(SinusoidalConfig()), {}),
        replace(
            decoder,
            stack=replace(decoder.stack, blocks=blocks),
            heads={"vocabulary": VocabularyHeadConfig(bias=True, scale=0.5)},
        ),
        tie=tie,  # type: ignore[arg-type]
    )


def translator(reader: str, cells: int = 7) -> EncoderDecoderConfig:
    """The models of 2014 in small: without residuals, and as wide as what they show."""
    bare = BlockConfig(feed_forward=None, placement="none", residual=False)
    fixed = READERS[reader].context == "fixed"
    reads = replace(bare, mixer=BidirectionalConfig(GRUConfig(cells, out=False), out=False))
    writes = replace(bare, mixer=replace(READERS[reader], memory=None, learned_start=False))
    again = replace(bare, mixer=LSTMConfig(cells, out=False))
    head = VocabularyHeadConfig(bias=True, maxout=4)
    bridge = BothBridgeConfig(layers="last", project=True, activation="tanh", summary=9 if fixed else None)
    blocks = (again, writes) if fixed else (writes, again)
    return EncoderDecoderConfig(
        TransformerConfig(10, 11, None, StackConfig((reads,), None), TokenEmbedConfig(), {}),
        TransformerConfig(10, 11, None, StackConfig(blocks, None), TokenEmbedConfig(), {"vocabulary": head}),
        tie="none",
        bridge=bridge,
    )


def padded(lengths: list[int], length: int) -> Layout:
    return Layout.padded(lengths, length)
