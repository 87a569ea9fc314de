"""MPNet (Song et al. 2020): BERT without token types, with relative positions that all layers share, like T5's, and
position vectors that start after the padding id, like RoBERTa's. Its sentence encoders are among the most used.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families.bert import IS_CAUSAL, TABLE, encoder, roberta_head_rules, roberta_heads, shared_settings
from headway.formats.heads import architecture
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, block_rules, expect, linear, linears, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import TokenEmbedConfig, TransformerConfig
from headway.nn.models.score_biases import RelativeConfig

BIAS = "relative"  # the Stack's name for the bias that its layers share
_OFFSET = 2  # position of the first token: the class takes padding to be 1, whatever the file says
_BUCKETS, _REACH = 32, 128  # of relative positions; the class has them in its code


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = encoder(settings, roberta_heads(settings, names, "mpnet"), _OFFSET)
    mixer = expect(config.stack.blocks[0].mixer, AttentionConfig)
    block = replace(config.stack.blocks[0], mixer=replace(mixer, bias=BIAS))
    settings.require("relative_attention_num_buckets", _BUCKETS)
    bias = RelativeConfig(mixer.heads, _BUCKETS, _REACH, both_ways=True)
    stack = replace(config.stack, blocks=(block,) * len(config.stack.blocks), biases={BIAS: bias})
    return replace(config, stack=stack, embed=replace(expect(config.embed, TokenEmbedConfig), types=0))


def write(config: TransformerConfig) -> dict[str, Any]:
    settings = shared_settings(config)
    del settings["type_vocab_size"]
    return {
        "model_type": "mpnet",
        "architectures": architecture("MPNet", config.heads),
        **settings,
        "relative_attention_num_buckets": expect(config.stack.biases[BIAS], RelativeConfig).buckets,
        "pad_token_id": _OFFSET - 1,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    names = {
        "mixer.qkv": "attention.attn.{q,k,v}",
        "mixer.out": "attention.attn.o",
        "mix.last": "attention.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed.last": "output.LayerNorm",
    }
    return [
        rule("embed.table", "mpnet.embeddings.word_embeddings.weight"),
        rule("embed.positions.table", "mpnet.embeddings.position_embeddings.weight"),
        *linear("embed.norm", "mpnet.embeddings.LayerNorm"),
        rule(f"stack.biases.{BIAS}.table", "mpnet.encoder.relative_attention_bias.weight"),
        *block_rules(config.stack, "mpnet.encoder.layer.{}.", lambda block: linears(names)),
        *roberta_head_rules(config, "mpnet"),
    ]


FAMILY = Family(
    "mpnet",
    read,
    write,
    rules,
    renames=((r"^(?=(embeddings|encoder|pooler)\.)", "mpnet."),),
    skipped=(r"\.embeddings\.position_ids$",),
    ignored=(IS_CAUSAL,),
    defaults={
        **TABLE.defaults,
        "vocab_size": 30527,
        "relative_attention_num_buckets": _BUCKETS,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
)
