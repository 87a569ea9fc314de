"""Published architectures by name, each with its exact number of parameters (asserted in
tests/unit/test_presets.py).
"""

from __future__ import annotations

from collections.abc import Callable

from headway.errors import ConfigError, nearest
from headway.mixers import AttentionConfig, CrossAttentionConfig
from headway.models import ancestors, decisions, sight
from headway.models.block import BlockConfig
from headway.models.chess import searchless
from headway.models.clip import clip
from headway.models.embeds import TokenEmbedConfig
from headway.models.encoder_decoder import EncoderDecoderConfig
from headway.models.heads import HeadConfig, TransformConfig, VocabularyHeadConfig
from headway.models.pooled import PooledHeadConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import ModelConfig, TransformerConfig
from headway.models.whisper import whisper
from headway.parts.feedforward import GatedConfig, MLPConfig
from headway.parts.init import InitConfig
from headway.parts.norm import LayerNormConfig, RMSNormConfig
from headway.parts.positions import LearnedConfig, SinusoidalConfig
from headway.parts.rotary import RotaryConfig
from headway.visibility import Full, Local, Pattern


def transformer_2017(
    width: int, depth: int, heads: int, hidden: int, symbols: int = 37000, dropout: float = 0.1
) -> EncoderDecoderConfig:
    """Vaswani et al. 2017, table 3: post-norm, sinusoids, one table for source, target and head, no last norm."""
    feed = MLPConfig(hidden=hidden, activation="relu")
    embed = TokenEmbedConfig(positions=SinusoidalConfig(), scaled=True, dropout=dropout)

    def stack(block: BlockConfig) -> StackConfig:
        return StackConfig(blocks=cycle((block,), depth), norm=None)

    encoder = BlockConfig(AttentionConfig(heads, pattern=Full()), None, feed, placement="post", dropout=dropout)
    decoder = BlockConfig(AttentionConfig(heads), CrossAttentionConfig(heads), feed, placement="post", dropout=dropout)
    init = InitConfig(matrices="xavier", residual="same", embedding=None)
    return EncoderDecoderConfig(
        encoder=TransformerConfig(width, symbols, None, stack(encoder), embed, heads={}),
        decoder=TransformerConfig(width, symbols, None, stack(decoder), embed),
        init=init,
    )


def marian(width: int, depth: int, heads: int, hidden: int, symbols: int) -> EncoderDecoderConfig:
    """Junczys-Dowmunt et al. 2018, as the OPUS-MT models have it: the transformer of 2017, with SiLU, and with sines
    before cosines in its positions.
    """
    embed = TokenEmbedConfig(positions=SinusoidalConfig(interleaved=False), scaled=True, dropout=0.1)

    def side(block: BlockConfig, heads: dict[str, HeadConfig]) -> TransformerConfig:
        return TransformerConfig(width, symbols, 512, StackConfig(cycle((block,), depth), norm=None), embed, heads)

    feed = MLPConfig(hidden=hidden, activation="silu")
    encoder = BlockConfig(AttentionConfig(heads, pattern=Full()), None, feed, placement="post", dropout=0.1)
    decoder = BlockConfig(AttentionConfig(heads), CrossAttentionConfig(heads), feed, placement="post", dropout=0.1)
    return EncoderDecoderConfig(
        side(encoder, {}), side(decoder, {"vocabulary": VocabularyHeadConfig(bias=True)}), "all"
    )


def gpt(
    width: int,
    depth: int,
    heads: int,
    symbols: int = 50257,
    context: int = 1024,
    placement: str = "pre",
    dropout: float = 0.1,
) -> TransformerConfig:
    """Radford et al. 2018 (post-norm, no last norm) and 2019 (pre-norm); Brown et al. 2020, without its sparse
    layers.
    """
    block = BlockConfig(
        AttentionConfig(heads),
        None,
        MLPConfig(activation="gelu_tanh"),
        placement="post" if placement == "post" else "pre",
        dropout=dropout,
    )
    norm = None if placement == "post" else LayerNormConfig()
    embed = TokenEmbedConfig(positions=LearnedConfig(), dropout=dropout)
    return TransformerConfig(width, symbols, context, StackConfig(cycle((block,), depth), norm), embed)


def gpt3(width: int, depth: int, heads: int, size: int) -> TransformerConfig:
    """Brown et al. 2020, table 2.1; `size` is the head size, which is not width / heads in every row."""
    config = gpt(width, depth, heads, context=2048)
    if heads * size == width:
        return config
    block = config.stack.blocks[0]
    mixer = AttentionConfig(heads, head_size=size)
    blocks = cycle((BlockConfig(mixer, None, block.feed_forward, dropout=block.dropout),), depth)
    return TransformerConfig(width, config.symbols, config.context, StackConfig(blocks), config.embed)


def decoder(
    width: int,
    depth: int,
    heads: int,
    kv_heads: int,
    hidden: int | None,
    symbols: int,
    context: int = 2048,
    tie: bool = True,
) -> TransformerConfig:
    """A modern decoder (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped heads, no biases."""
    mixer = AttentionConfig(heads, kv_heads=kv_heads, rotary=RotaryConfig(), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(hidden=hidden), RMSNormConfig(1e-5))
    return TransformerConfig(
        width,
        symbols,
        context,
        StackConfig(cycle((block,), depth), RMSNormConfig(1e-5)),
        TokenEmbedConfig(),
        {"vocabulary": VocabularyHeadConfig()},
        "head" if tie else "none",
    )


def bert(
    width: int,
    depth: int,
    heads: int,
    symbols: int = 30522,
    types: int = 2,
    offset: int = 0,
    eps: float = 1e-12,
    dropout: float = 0.1,
) -> TransformerConfig:
    """Devlin et al. 2019: an encoder with its pooler. RoBERTa (Liu et al. 2019) counts positions from 2 and has one
    type of tokens. The vocabulary head comes with the task of pre-training.
    """
    norm, feed = LayerNormConfig(eps), MLPConfig(activation="gelu")
    mixer = AttentionConfig(heads, pattern=Full(), dropout=dropout)
    block = BlockConfig(mixer, None, feed, norm, placement="post", dropout=dropout)
    embed = TokenEmbedConfig(LearnedConfig(offset), norm, types=types, dropout=dropout)
    stack, init = StackConfig(cycle((block,), depth), norm=None), InitConfig(residual="same")
    pooler = PooledHeadConfig(dense=True, activation="tanh")
    return TransformerConfig(width, symbols, 512, stack, embed, {"pooled": pooler}, init=init)


def modernbert(width: int, depth: int, heads: int, hidden: int, symbols: int = 50368) -> TransformerConfig:
    """Warner et al. 2024, with its masked language model: every third layer sees all tokens, the others near ones."""
    norm, feed = LayerNormConfig(1e-5, bias=False), GatedConfig(hidden=hidden, activation="gelu")

    def block(pattern: Pattern, theta: float, first: bool = False) -> BlockConfig:
        mixer = AttentionConfig(heads, pattern=pattern, rotary=RotaryConfig(theta), qkv_bias=False, out_bias=False)
        return BlockConfig(mixer, None, feed, norm, mixer_norm=not first)

    whole, near = block(Full(), 160000.0), block(Local(64), 10000.0)
    blocks = (block(Full(), 160000.0, first=True), *cycle((near, near, whole), depth - 1))
    head = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm, bias=False))
    return TransformerConfig(
        width, symbols, 8192, StackConfig(blocks, norm), TokenEmbedConfig(norm=norm), {"vocabulary": head}
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "transformer-base": lambda: transformer_2017(512, 6, 8, 2048),
    "transformer-big": lambda: transformer_2017(1024, 6, 16, 4096, dropout=0.3),
    "marian-base": lambda: marian(512, 6, 8, 2048, 32000),
    "seq2seq-lstm-2014": ancestors.lstm_2014,
    "seq2seq-gru-2014": ancestors.gru_2014,
    "seq2seq-gru-2014-full": lambda: ancestors.gru_2014(symbols=15_000, full_rank=True),
    "seq2seq-gru-rnnenc": ancestors.rnnenc,
    "seq2seq-gru-rnnsearch": ancestors.rnnsearch,
    "gpt1": lambda: gpt(768, 12, 12, symbols=40478, context=512, placement="post"),
    "gpt2": lambda: gpt(768, 12, 12),
    "gpt2-medium": lambda: gpt(1024, 24, 16),
    "gpt2-large": lambda: gpt(1280, 36, 20),
    "gpt2-xl": lambda: gpt(1600, 48, 25),
    "gpt3-small": lambda: gpt3(768, 12, 12, 64),
    "gpt3-medium": lambda: gpt3(1024, 24, 16, 64),
    "gpt3-large": lambda: gpt3(1536, 24, 16, 96),
    "gpt3-xl": lambda: gpt3(2048, 24, 24, 128),
    "gpt3-2.7b": lambda: gpt3(2560, 32, 32, 80),
    "gpt3-6.7b": lambda: gpt3(4096, 32, 32, 128),
    "gpt3-13b": lambda: gpt3(5140, 40, 40, 128),
    "gpt3-175b": lambda: gpt3(12288, 96, 96, 128),
    "llama-135m": lambda: decoder(576, 30, 9, 3, 1536, 49152),
    "llama-1.1b": lambda: decoder(2048, 22, 32, 4, 5632, 32000, tie=False),
    "bert-base": lambda: bert(768, 12, 12),
    "bert-large": lambda: bert(1024, 24, 16),
    "roberta-base": lambda: bert(768, 12, 12, symbols=50265, types=1, offset=2, eps=1e-5),
    "modernbert-base": lambda: modernbert(768, 22, 12, 1152),
    "vit-ti16": lambda: sight.vit(192, 12, 3, 16),
    "vit-s16": lambda: sight.vit(384, 12, 6, 16),
    "vit-b16": lambda: sight.vit(768, 12, 12, 16),
    "vit-b32": lambda: sight.vit(768, 12, 12, 32),
    "vit-l16": lambda: sight.vit(1024, 24, 16, 16),
    "vit-h14": lambda: sight.vit(1280, 32, 16, 14),
    "deit-ti16": lambda: sight.deit(192, 12, 3, 16),
    "deit-s16": lambda: sight.deit(384, 12, 6, 16),
    "deit-b16": lambda: sight.deit(768, 12, 12, 16),
    "whisper-tiny": lambda: whisper(384, (4, 4), 6),
    "whisper-base": lambda: whisper(512, (6, 6), 8),
    "whisper-small": lambda: whisper(768, (12, 12), 12),
    "whisper-medium": lambda: whisper(1024, (24, 24), 16),
    "whisper-large-v2": lambda: whisper(1280, (32, 32), 20),
    "whisper-large-v3": lambda: whisper(1280, (32, 32), 20, 51866, 128),
    "whisper-turbo": lambda: whisper(1280, (32, 4), 20, 51866, 128),
    "clip-b32": lambda: clip((768, 12, 12), (512, 12, 8), 512, 32),
    "clip-b16": lambda: clip((768, 12, 12), (512, 12, 8), 512, 16),
    "clip-l14": lambda: clip((1024, 24, 16), (768, 12, 12), 768, 14),
    "decision-hopper": lambda: decisions.decision_gym(11, 3, extra=True),
    "decision-atari": decisions.decision_atari,
    "chess-9m": lambda: searchless(256, 8, 8),
    "chess-136m": lambda: searchless(1024, 8, 8),
    "chess-270m": lambda: searchless(1024, 16, 8),
    "gpt-1m": lambda: gpt(128, 4, 4, symbols=65, context=64),
    "gpt-10m": lambda: gpt(384, 6, 6, symbols=65, context=256),
    "gpt-30m": lambda: gpt(384, 6, 6, symbols=50304, context=256),
}


def preset(name: str) -> ModelConfig:
    """The configuration of a published architecture."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]()
