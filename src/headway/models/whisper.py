"""Speech to text (Radford et al. 2022)."""

from __future__ import annotations

from headway.mixers import AttentionConfig, CrossAttentionConfig
from headway.models.block import BlockConfig
from headway.models.embeds import TokenEmbedConfig
from headway.models.encoder_decoder import EncoderDecoderConfig
from headway.models.frames import FramesEmbedConfig
from headway.models.stack import StackConfig, cycle
from headway.models.transformer import TransformerConfig
from headway.parts.feedforward import MLPConfig
from headway.parts.positions import LearnedConfig
from headway.visibility import Causal, Full, Pattern

WITHOUT_KEYS = (True, False, True)  # a bias of the keys adds the same to all scores of a query, so there is none


def whisper(
    width: int, depth: tuple[int, int], heads: int, symbols: int = 51865, bands: int = 80
) -> EncoderDecoderConfig:
    """Whisper for windows of 30 s; `depth` is that of encoder and decoder."""

    def stack(pattern: Pattern, blocks: int) -> StackConfig:
        cross = CrossAttentionConfig(heads, kv_bias=WITHOUT_KEYS[1:]) if pattern.causal else None
        mixer = AttentionConfig(heads, pattern=pattern, qkv_bias=WITHOUT_KEYS)
        return StackConfig(cycle((BlockConfig(mixer, cross, MLPConfig(activation="gelu")),), blocks))

    return EncoderDecoderConfig(
        TransformerConfig(width, 0, 1500, stack(Full(), depth[0]), FramesEmbedConfig(bands), {}),
        TransformerConfig(width, symbols, 448, stack(Causal(), depth[1]), TokenEmbedConfig(LearnedConfig())),
        "head",
    )
