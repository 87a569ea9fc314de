"""Phi-3 (Abdin et al. 2024): Llama with query, key and value in one tensor, gate and up in another.

Its long variants scale each rotary frequency by a separate factor (longrope): short factors up to the originally
trained length, long ones beyond. headway decides when it builds the model (docs/decisions/0003): it uses the short
factors for the original length, and the long ones if a longer context is requested.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.families.glm import fused_gate
from headway.formats.settings import Settings, published_context
from headway.formats.tensor_rules import TensorRule, Unsplit, expect, linear
from headway.nn.mixers import AttentionConfig
from headway.nn.models import TokenEmbedConfig, TransformerConfig
from headway.nn.parts.scaling import LongRopeScaling


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = llama.with_windows(llama.read_plain(settings), llama.shared_window(settings))
    dropout = settings.get("resid_pdrop", float)
    config = llama.with_blocks(config, lambda i, block: replace(block, dropout=dropout))
    return replace(config, embed=TokenEmbedConfig(dropout=settings.get("embd_pdrop", float)))


def write_extras(config: TransformerConfig) -> dict[str, Any]:
    rotary = llama.first_rotary(config)
    scaling = rotary.scaling
    return {
        **llama.write_window(config),
        "original_max_position_embeddings": scaling.original
        if isinstance(scaling, LongRopeScaling)
        else published_context(config.context, rotary),
        "resid_pdrop": config.stack.blocks[0].dropout,
        "embd_pdrop": expect(config.embed, TokenEmbedConfig).dropout,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def attend(mixer: AttentionConfig) -> list[TensorRule]:
        fused = linear("mixer.qkv", "self_attn.qkv_proj", bias=False, transform=Unsplit())
        return [*fused, *linear("mixer.out", "self_attn.o_proj", bias=False)]

    return llama.rules(config, attend, fused_gate)


FAMILY = llama.family(
    "phi3",
    read,
    llama.writer("phi3", "Phi3", write_extras),
    rules,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
)
