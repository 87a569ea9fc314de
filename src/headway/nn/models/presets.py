"""Published architectures by name, each with its exact number of parameters (asserted in the tests)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from headway.codecs.chess_boards import FEN_TOKENS, MOVES
from headway.errors import ConfigError, nearest
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models.agents import ConvolutionsConfig, StateVectorConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.board import BoardEmbedConfig, FromToHeadConfig, SquaresHeadConfig
from headway.nn.models.embeds import TokenEmbedConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig
from headway.nn.models.frames import FramesEmbedConfig, SpectrogramEmbedConfig
from headway.nn.models.heads import HeadConfig, TransformConfig, VocabularyHeadConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.pooled import DistilledHeadConfig, PooledHeadConfig, ProbeHeadConfig
from headway.nn.models.score_biases import SmolgenConfig
from headway.nn.models.seq2seq_presets import gru_2014, lstm_2014, rnnenc, rnnsearch
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.trajectories import StepHeadConfig, TrajectoryEmbedConfig, step_heads
from headway.nn.models.transformer import ModelConfig, TransformerConfig
from headway.nn.models.two_tower import HEAD, TwoTowerConfig
from headway.nn.parts.feedforward import GatedConfig, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig, NormConfig, RMSNormConfig
from headway.nn.parts.positions import LearnedConfig, RotaryConfig, SinusoidalConfig
from headway.visibility import Causal, Full, Local, Pattern

Sizes = tuple[int, int, int]  # width, depth, heads


def clip(
    image_sizes: Sizes,
    text_sizes: Sizes,
    shared_width: int,
    patch: int,
    size: int = 224,
    vocab_size: int = 49408,
    context: int = 77,
    dropout: float = 0.0,
) -> TwoTowerConfig:
    """Radford et al. 2021, section 2.4: a vision transformer with a norm before its stack, and a causal text tower
    pooled at the end-of-text token, the last in the vocabulary.
    """
    norm = LayerNormConfig(1e-5)
    embed = PatchEmbedConfig((patch, patch), (size, size), bias=False, norm=norm, dropout=dropout)
    image_head = PooledHeadConfig(shared_width, bias=False)
    text_head = PooledHeadConfig(shared_width, pool="last", bias=False)
    return TwoTowerConfig(
        TransformerConfig(
            image_sizes[0],
            0,
            None,
            _stack(image_sizes, Full(), "quick_gelu", norm, dropout),
            embed,
            _head(image_head),
            "none",
        ),
        TransformerConfig(
            text_sizes[0],
            vocab_size,
            context,
            _stack(text_sizes, Causal(), "quick_gelu", norm, dropout),
            TokenEmbedConfig(LearnedConfig(), dropout=dropout),
            _head(text_head),
            "none",
        ),
        end=vocab_size - 1,
    )


def siglip(
    sizes: Sizes, patch: int = 16, size: int = 224, vocab_size: int = 32000, context: int = 64
) -> TwoTowerConfig:
    """Zhai et al. 2023: both towers are bidirectional. A probe pools the image; the text is pooled at its last token,
    which is mostly padding.
    """
    norm, activation = LayerNormConfig(1e-6), "gelu_tanh"
    embed = PatchEmbedConfig((patch, patch), (size, size), tokens=0)
    probe = ProbeHeadConfig(sizes[2], MLPConfig(activation=activation), norm)
    stack, last = _stack(sizes, Full(), activation, norm), PooledHeadConfig(sizes[0], pool="last")
    return TwoTowerConfig(
        TransformerConfig(sizes[0], 0, None, stack, embed, _head(probe), "none"),
        TransformerConfig(sizes[0], vocab_size, context, stack, TokenEmbedConfig(LearnedConfig()), _head(last), "none"),
        scale=math.log(10),
        bias=-10.0,
        filler=1,
    )


def _stack(sizes: Sizes, pattern: Pattern, activation: str, norm: NormConfig, dropout: float = 0.0) -> StackConfig:
    _, depth, heads = sizes
    feed = MLPConfig(activation=activation)  # type: ignore[arg-type]
    block = BlockConfig(AttentionConfig(heads, pattern=pattern), None, feed, norm, dropout=dropout)
    return StackConfig(cycle((block,), depth), norm)


def _head(head: HeadConfig) -> dict[str, HeadConfig]:
    return {HEAD: head}


BINS = 128  # bins for the value of a move or a state


def searchless(width: int, depth: int, heads: int, outputs: int = BINS) -> TransformerConfig:
    """Ruoss et al. 2024, table A1: a BOS token, the 77 tokens of a FEN and a move, in one vocabulary of 1,968; the
    last position predicts the move's value in bins.
    """
    mixer = AttentionConfig(heads, pattern=Full(), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(ratio=4.0))
    return TransformerConfig(
        width,
        len(MOVES),
        FEN_TOKENS + 2,
        StackConfig(cycle((block,), depth)),
        TokenEmbedConfig(positions=LearnedConfig(), scaled=True),
        {"value": PooledHeadConfig(outputs, pool="last")},
        tie="none",
    )


def squares(width: int, depth: int, heads: int, hidden: int | None = None, history: int = 1) -> TransformerConfig:
    """One token per square, as in Leela Chess Zero's transformers (Monroe and Chalmers 2024): every layer sees all
    squares, with a bias generated from the position. Heads: moves from square to square; win, draw and loss.
    """
    mixer = AttentionConfig(heads, pattern=Full(), qkv_bias=False, out_bias=False, bias="smolgen")
    feed = MLPConfig(hidden, ratio=2.0, activation="relu_squared", bias=False)
    block = BlockConfig(mixer, None, feed, RMSNormConfig(weight=False))  # weights would take a fifth of a step's time
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), LayerNormConfig(), {"smolgen": SmolgenConfig(heads)}),
        embed=BoardEmbedConfig(history),
        heads={"policy": FromToHeadConfig(), "value": SquaresHeadConfig(3)},
        tie="none",
        init=InitConfig(matrices="fan_in", residual="zero", embedding=0.1),
    )


def decision_gym(
    states: int = 1,
    actions: int = 1,
    *,
    discrete: bool = False,
    width: int = 128,
    depth: int = 3,
    heads: int = 1,
    timesteps: int = 1000,
    dropout: float = 0.1,
    extra: bool = False,
) -> TransformerConfig:
    """Decision transformer for OpenAI Gym: GPT-2's blocks with ReLU, timesteps as the only positions. `extra` adds the
    heads that predict the next state and return, which the paper did not train.
    """
    mixer, feed = AttentionConfig(heads, dropout=dropout), MLPConfig(activation="relu")
    block = BlockConfig(mixer, None, feed, LayerNormConfig(), dropout=dropout)
    embed = TrajectoryEmbedConfig(StateVectorConfig(states), actions, discrete, timesteps=timesteps, dropout=dropout)
    prediction_heads = step_heads(embed, states=extra, returns=extra)
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), LayerNormConfig()),
        embed=embed,
        heads=prediction_heads,
        tie="none",
    )


def decision_atari(
    choices: int = 4, steps: int = 30, timesteps: int = 10_000, dropout: float = 0.1
) -> TransformerConfig:
    """Decision transformer for Atari, by default with Breakout's four actions: convolutions over frames, token
    positions, the timestep of a row's first step, tanh after each map, GELU.
    """
    block = BlockConfig(
        AttentionConfig(8, dropout=dropout), None, MLPConfig(activation="gelu"), LayerNormConfig(), dropout=dropout
    )
    embed = TrajectoryEmbedConfig(
        ConvolutionsConfig(),
        choices,
        discrete=True,
        timesteps=timesteps,
        anchored=True,
        activation="tanh",
        positions=LearnedConfig(),
        norm=None,
        dropout=dropout,
    )
    return TransformerConfig(
        128,
        context=steps * embed.tokens,
        stack=StackConfig(cycle((block,), 6), LayerNormConfig()),
        embed=embed,
        heads={"actions": StepHeadConfig(choices, 1, embed.tokens, bias=False)},
        tie="none",
    )


def vit(width: int, depth: int, heads: int, patch: int, classes: int = 1000, size: int = 224) -> TransformerConfig:
    """Dosovitskiy et al. 2021, table 1, and the smaller models of Touvron et al. 2021: pre-norm, a class token."""
    norm = LayerNormConfig(1e-6)
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), norm)
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), norm),
        embed=PatchEmbedConfig((patch, patch), (size, size)),
        heads={"classes": PooledHeadConfig(classes)},
        tie="none",
        init=InitConfig(residual="same", head="zero"),
    )


def deit(width: int, depth: int, heads: int, patch: int, classes: int = 1000, size: int = 224) -> TransformerConfig:
    """Touvron et al. 2021, distilled: a second token learns a teacher's predictions."""
    embed, head = PatchEmbedConfig((patch, patch), (size, size), tokens=2), DistilledHeadConfig(classes)
    return replace(vit(width, depth, heads, patch, classes, size), embed=embed, heads={"classes": head})


# With the usual std of 0.02, a small model's audio features start at a twentieth of the size of its positions.
_INIT = InitConfig(matrices="fan_in", head="zero")


def ast(
    width: int, depth: int, heads: int, classes: int = 527, frames: int = 1024, bands: int = 128
) -> TransformerConfig:
    """Audio spectrogram transformer (Gong et al. 2021): DeiT over patches of 16 x 16, one every 10 x 10."""
    norm = LayerNormConfig(1e-6)
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), norm)
    embed = SpectrogramEmbedConfig(frames, bands, (16, 16), (10, 10), tokens=2)
    stack = StackConfig(cycle((block,), depth), norm)
    return TransformerConfig(
        width, stack=stack, embed=embed, heads={"classes": DistilledHeadConfig(classes)}, tie="none", init=_INIT
    )


def kwt(
    width: int, depth: int, heads: int, classes: int = 35, frames: int = 98, bands: int = 40, dropout: float = 0.0
) -> TransformerConfig:
    """Keyword transformer (Berg et al. 2021): each frame is a token, post-norm. The paper's frames are 40 MFCCs."""
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), placement="post", dropout=dropout
    )
    embed = SpectrogramEmbedConfig(frames, bands, (1, bands), (1, bands))
    stack = StackConfig(cycle((block,), depth), None)
    return TransformerConfig(
        width, stack=stack, embed=embed, heads={"classes": PooledHeadConfig(classes)}, tie="none", init=_INIT
    )


def whisper_classifier(
    width: int, depth: int, heads: int, classes: int, context: int = 1500, bands: int = 80, dropout: float = 0.0
) -> TransformerConfig:
    """Whisper's encoder, whose convolutions suit small data, with mean pooling. `context` counts steps of 20 ms."""
    block = BlockConfig(AttentionConfig(heads, pattern=Full()), None, MLPConfig(activation="gelu"), dropout=dropout)
    stack = StackConfig(cycle((block,), depth))
    return TransformerConfig(
        width,
        0,
        context,
        stack,
        FramesEmbedConfig(bands),
        {"classes": PooledHeadConfig(classes, "mean")},
        "none",
        _INIT,
    )


NO_KEY_BIAS = (True, False, True)  # a key bias would add the same to all scores of a query, so keys have none


def whisper(
    width: int, depth: tuple[int, int], heads: int, vocab_size: int = 51865, bands: int = 80
) -> EncoderDecoderConfig:
    """Whisper for windows of 30 s; `depth` is (encoder, decoder)."""

    def stack(pattern: Pattern, blocks: int) -> StackConfig:
        cross = CrossAttentionConfig(heads, kv_bias=NO_KEY_BIAS[1:]) if pattern.causal else None
        mixer = AttentionConfig(heads, pattern=pattern, qkv_bias=NO_KEY_BIAS)
        return StackConfig(cycle((BlockConfig(mixer, cross, MLPConfig(activation="gelu")),), blocks))

    return EncoderDecoderConfig(
        TransformerConfig(width, 0, 1500, stack(Full(), depth[0]), FramesEmbedConfig(bands), {}),
        TransformerConfig(width, vocab_size, 448, stack(Causal(), depth[1]), TokenEmbedConfig(LearnedConfig())),
        "head",
    )


def transformer_2017(
    width: int, depth: int, heads: int, hidden: int, vocab_size: int = 37000, dropout: float = 0.1
) -> EncoderDecoderConfig:
    """Vaswani et al. 2017, table 3: post-norm, sinusoids, one table for source, target and head, no final norm."""
    feed = MLPConfig(hidden=hidden, activation="relu")
    embed = TokenEmbedConfig(positions=SinusoidalConfig(), scaled=True, dropout=dropout)

    def stack(block: BlockConfig) -> StackConfig:
        return StackConfig(blocks=cycle((block,), depth), norm=None)

    encoder = BlockConfig(AttentionConfig(heads, pattern=Full()), None, feed, placement="post", dropout=dropout)
    decoder = BlockConfig(AttentionConfig(heads), CrossAttentionConfig(heads), feed, placement="post", dropout=dropout)
    init = InitConfig(matrices="xavier", residual="same", embedding=None)
    return EncoderDecoderConfig(
        encoder=TransformerConfig(width, vocab_size, None, stack(encoder), embed, heads={}),
        decoder=TransformerConfig(width, vocab_size, None, stack(decoder), embed),
        init=init,
    )


def marian(width: int, depth: int, heads: int, hidden: int, vocab_size: int) -> EncoderDecoderConfig:
    """Junczys-Dowmunt et al. 2018, as in the OPUS-MT models: the transformer of 2017 with SiLU, and with sines before
    cosines in its positions.
    """
    embed = TokenEmbedConfig(positions=SinusoidalConfig(interleaved=False), scaled=True, dropout=0.1)

    def build_part(block: BlockConfig, heads: dict[str, HeadConfig]) -> TransformerConfig:
        return TransformerConfig(width, vocab_size, 512, StackConfig(cycle((block,), depth), norm=None), embed, heads)

    feed = MLPConfig(hidden=hidden, activation="silu")
    encoder = BlockConfig(AttentionConfig(heads, pattern=Full()), None, feed, placement="post", dropout=0.1)
    decoder = BlockConfig(AttentionConfig(heads), CrossAttentionConfig(heads), feed, placement="post", dropout=0.1)
    return EncoderDecoderConfig(
        build_part(encoder, {}), build_part(decoder, {"vocabulary": VocabularyHeadConfig(bias=True)}), "all"
    )


def gpt(
    width: int,
    depth: int,
    heads: int,
    vocab_size: int = 50257,
    context: int = 1024,
    placement: str = "pre",
    dropout: float = 0.1,
) -> TransformerConfig:
    """Radford et al. 2018 (post-norm, no final norm) and 2019 (pre-norm); Brown et al. 2020, without its sparse
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
    return TransformerConfig(width, vocab_size, context, StackConfig(cycle((block,), depth), norm), embed)


def gpt3(width: int, depth: int, heads: int, size: int) -> TransformerConfig:
    """Brown et al. 2020, table 2.1; `size` is the head size, which is not width / heads in every row."""
    config = gpt(width, depth, heads, context=2048)
    if heads * size == width:
        return config
    block = config.stack.blocks[0]
    mixer = AttentionConfig(heads, head_size=size)
    blocks = cycle((BlockConfig(mixer, None, block.feed_forward, dropout=block.dropout),), depth)
    return TransformerConfig(width, config.vocab_size, config.context, StackConfig(blocks), config.embed)


def decoder(
    width: int,
    depth: int,
    heads: int,
    kv_heads: int,
    hidden: int | None,
    vocab_size: int,
    context: int = 2048,
    tie: bool = True,
    theta: float = 10000.0,
) -> TransformerConfig:
    """A modern decoder (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped heads, no biases."""
    mixer = AttentionConfig(heads, kv_heads=kv_heads, rotary=RotaryConfig(theta), qkv_bias=False, out_bias=False)
    block = BlockConfig(mixer, None, GatedConfig(hidden=hidden), RMSNormConfig(1e-5))
    return TransformerConfig(
        width,
        vocab_size,
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
    vocab_size: int = 30522,
    types: int = 2,
    offset: int = 0,
    eps: float = 1e-12,
    dropout: float = 0.1,
) -> TransformerConfig:
    """Devlin et al. 2019: an encoder with its pooler. RoBERTa (Liu et al. 2019) counts positions from 2 and has one
    token type. The pre-training task adds the vocabulary head.
    """
    norm, feed = LayerNormConfig(eps), MLPConfig(activation="gelu")
    mixer = AttentionConfig(heads, pattern=Full(), dropout=dropout)
    block = BlockConfig(mixer, None, feed, norm, placement="post", dropout=dropout)
    embed = TokenEmbedConfig(LearnedConfig(offset), norm, types=types, dropout=dropout)
    stack, init = StackConfig(cycle((block,), depth), norm=None), InitConfig(residual="same")
    pooler = PooledHeadConfig(dense=True, activation="tanh")
    return TransformerConfig(width, vocab_size, 512, stack, embed, {"pooled": pooler}, init=init)


def modernbert(width: int, depth: int, heads: int, hidden: int, vocab_size: int = 50368) -> TransformerConfig:
    """Warner et al. 2024, as a masked language model: every third layer sees all tokens, the others a local window."""
    norm, feed = LayerNormConfig(1e-5, bias=False), GatedConfig(hidden=hidden, activation="gelu")

    def block(pattern: Pattern, theta: float, first: bool = False) -> BlockConfig:
        mixer = AttentionConfig(heads, pattern=pattern, rotary=RotaryConfig(theta), qkv_bias=False, out_bias=False)
        return BlockConfig(mixer, None, feed, norm, mixer_norm=not first)

    global_block, local_block = block(Full(), 160000.0), block(Local(64), 10000.0)
    blocks = (block(Full(), 160000.0, first=True), *cycle((local_block, local_block, global_block), depth - 1))
    head = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm, bias=False))
    return TransformerConfig(
        width, vocab_size, 8192, StackConfig(blocks, norm), TokenEmbedConfig(norm=norm), {"vocabulary": head}
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "transformer-base": lambda: transformer_2017(512, 6, 8, 2048),
    "transformer-big": lambda: transformer_2017(1024, 6, 16, 4096, dropout=0.3),
    "marian-base": lambda: marian(512, 6, 8, 2048, 32000),
    "seq2seq-lstm-2014": lstm_2014,
    "seq2seq-gru-2014": gru_2014,
    "seq2seq-gru-2014-full": lambda: gru_2014(vocab_size=15_000, full_rank=True),
    "seq2seq-gru-rnnenc": rnnenc,
    "seq2seq-gru-rnnsearch": rnnsearch,
    "gpt1": lambda: gpt(768, 12, 12, vocab_size=40478, context=512, placement="post"),
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
    "llama-8b": lambda: decoder(4096, 32, 32, 8, 14336, 128256, 8192, False, 500_000.0),
    "bert-base": lambda: bert(768, 12, 12),
    "bert-large": lambda: bert(1024, 24, 16),
    "roberta-base": lambda: bert(768, 12, 12, vocab_size=50265, types=1, offset=2, eps=1e-5),
    "modernbert-base": lambda: modernbert(768, 22, 12, 1152),
    "vit-ti16": lambda: vit(192, 12, 3, 16),
    "vit-s16": lambda: vit(384, 12, 6, 16),
    "vit-b16": lambda: vit(768, 12, 12, 16),
    "vit-b32": lambda: vit(768, 12, 12, 32),
    "vit-l16": lambda: vit(1024, 24, 16, 16),
    "vit-h14": lambda: vit(1280, 32, 16, 14),
    "deit-ti16": lambda: deit(192, 12, 3, 16),
    "deit-s16": lambda: deit(384, 12, 6, 16),
    "deit-b16": lambda: deit(768, 12, 12, 16),
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
    "decision-hopper": lambda: decision_gym(11, 3, extra=True),
    "decision-atari": decision_atari,
    "chess-9m": lambda: searchless(256, 8, 8),
    "chess-136m": lambda: searchless(1024, 8, 8),
    "chess-270m": lambda: searchless(1024, 16, 8),
    "gpt-1m": lambda: gpt(128, 4, 4, vocab_size=65, context=64),
    "gpt-10m": lambda: gpt(384, 6, 6, vocab_size=65, context=256),
    "gpt-30m": lambda: gpt(384, 6, 6, vocab_size=50304, context=256),
}


def preset(name: str) -> ModelConfig:
    """The configuration of a published architecture."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]()
