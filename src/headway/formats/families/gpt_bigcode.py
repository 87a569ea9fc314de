"""GPT-BigCode (Ben Allal et al. 2023), the models SantaCoder and StarCoder: GPT-2 with plain matrices, and one key and
value for all heads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import gpt2
from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.setting_table import ACTIVATION, SettingTable, flag
from headway.formats.settings import Settings
from headway.formats.tensor_rules import PerHead, TensorRule, Unsplit, block_rules, expect, linear, linears, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, TransformerConfig

TABLE = SettingTable(
    gpt2.GPT2_TABLE.model,
    {
        **gpt2.GPT2_TABLE.rows,
        "activation_function": ("block.feed_forward.activation", "gelu_pytorch_tanh", ACTIVATION),
        "multi_query": ("block.mixer.kv_heads", True, flag(1, None)),
    },
)
_MATRICES = {"mixer.out": "attn.c_proj", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    gpt2.require_plain_attention(settings)
    return TABLE.read(settings, read_heads(settings))


def write(config: TransformerConfig) -> dict[str, Any]:
    heads = write_heads(config, PublishedClasses.of("GPTBigCode"))
    return {"model_type": "gpt_bigcode", **heads, **TABLE.write(config)}


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        mixer = expect(block.mixer, AttentionConfig)
        fused = Unsplit() if mixer.kv_heads == 1 else PerHead(mixer.heads)  # of all heads, or head by head
        return [
            *linear("mixer.qkv", "attn.c_attn", transform=fused),
            *linears({"mix.before": "ln_1", "feed.before": "ln_2", **_MATRICES}),
        ]

    return [
        rule("embed.table", "transformer.wte.weight"),
        rule("embed.positions.table", "transformer.wpe.weight"),
        *block_rules(config.stack, "transformer.h.{}.", layer),
        *linear("stack.norm", "transformer.ln_f"),
        *head_rules(config),
    ]


FAMILY = replace(
    gpt2.FAMILIES[0],
    name="gpt_bigcode",
    read=read,
    write=write,
    rules=rules,
    ignored=(*gpt2.SUMMARY, "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads"),
    defaults=TABLE.defaults,
)
