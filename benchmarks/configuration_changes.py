"""The changes of a configuration that `configurations.py` tries, one at a time.

`COMMON` are settings that a config.json of any family may have, whether or not its class knows them. In addition every
key that the configuration already has gets another value, becomes null, and is left out. `WEIGHT_CHANGES` change the
weights instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

Settings = dict[str, Any]
TIED = ", tied"  # the end of the name of a change of weights under tie_word_embeddings true
LEFT_OUT = object()  # the key is removed
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "silu", "tanh")
ACTIVATIONS += ("gelu_10", "gelu_accurate", "gelu_python", "mish", "relu2", "relu6", "leaky_relu", "linear", "sigmoid")
ACTIVATIONS += ("laplace", "prelu", "swish", "no_such_activation")
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation", "afn", "feed_forward_proj")
ACTIVATION_KEYS += ("classifier_activation", "pooler_act", "summary_activation")
NAMES_OF_KINDS = ("full_attention", "sliding_attention")


def rope(kind: str, **more: Any) -> Settings:
    return {"rope_type": kind, "rope_theta": 500.0, **more}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES: dict[str, Settings] = {
    "default": rope("default"),
    "linear": rope("linear", factor=3.0),
    "dynamic": rope("dynamic", factor=2.0),
    "llama3": rope("llama3", **LLAMA3),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "yarn without original": rope("yarn", factor=4.0),
    "yarn mscale": rope("yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.5, original_max_position_embeddings=16),
    "yarn one mscale": rope("yarn", factor=4.0, mscale=0.7, original_max_position_embeddings=16),
    "yarn attention factor": rope("yarn", factor=4.0, attention_factor=1.3, original_max_position_embeddings=16),
    "yarn betas": rope("yarn", factor=4.0, beta_fast=8.0, beta_slow=2.0, original_max_position_embeddings=16),
    "yarn not truncated": rope("yarn", factor=4.0, truncate=False, original_max_position_embeddings=16),
    "longrope": rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0], factor=2.0),
    "longrope original": rope(
        "longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0] * 4, original_max_position_embeddings=32
    ),
    "longrope attention factor": rope(
        "longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0] * 4, factor=2.0, attention_factor=1.4
    ),
    "proportional": rope("proportional", factor=2.0),
    "partial": rope("default", partial_rotary_factor=0.5),
    "partial linear": rope("linear", factor=2.0, partial_rotary_factor=0.5),
    "partial dynamic": rope("dynamic", factor=2.0, partial_rotary_factor=0.5),
    "partial llama3": rope("llama3", partial_rotary_factor=0.5, **LLAMA3),
    "partial yarn": rope("yarn", factor=4.0, partial_rotary_factor=0.5, original_max_position_embeddings=16),
    "without a type": {"rope_theta": 100.0},
    "without a theta": {"rope_type": "linear", "factor": 2.0},
    "mrope": rope("default", mrope_section=[1, 1, 2]),
    "unknown type": rope("no_such_type"),
    "unknown key": rope("default", no_such_key=3.0),
    "nested": {name: rope("default") for name in NAMES_OF_KINDS},
    "nested, one linear": {NAMES_OF_KINDS[0]: rope("linear", factor=2.0), NAMES_OF_KINDS[1]: rope("default")},
    "nested, one only": {NAMES_OF_KINDS[0]: rope("linear", factor=2.0)},
}
SCALINGS: dict[str, Settings] = {
    "linear, old": {"type": "linear", "factor": 3.0},
    "dynamic, old": {"type": "dynamic", "factor": 2.0},
    "llama3, old": {"rope_type": "llama3", **LLAMA3},
    "yarn, old": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "with a theta": {"type": "linear", "factor": 3.0, "rope_theta": 77.0},
}

COMMON: dict[str, Settings] = {
    "heads by the common name": {"num_attention_heads": 2},
    "layers by the common name": {"num_hidden_layers": 1},
    "width by the common name": {"hidden_size": 48},
    "positions by the common name": {"max_position_embeddings": 56},
    "experts by the common name": {"num_experts": 3},
    "gated activation of T5": {"dense_act_fn": "relu", "is_gated_act": True},
    "is_causal false": {"is_causal": False},
    "is_causal true": {"is_causal": True},
    "is_decoder true": {"is_decoder": True},
    "is_decoder and cross-attention": {"is_decoder": True, "add_cross_attention": True},
    "is_encoder_decoder true": {"is_encoder_decoder": True},
    "use_bidirectional_attention true": {"use_bidirectional_attention": True},
    "attention_chunk_size": {"attention_chunk_size": 4},
    "tie_word_embeddings true": {"tie_word_embeddings": True},
    "tie_word_embeddings false": {"tie_word_embeddings": False},
    "problem_type single_label": {"problem_type": "single_label_classification"},
    "problem_type multi_label": {"problem_type": "multi_label_classification"},
    "problem_type regression": {"problem_type": "regression"},
    "problem_type unknown": {"problem_type": "ranking"},
    "one label": {"id2label": {"0": "score"}, "label2id": {"score": 0}},
    "one label, regression": {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"},
    "one label of several": {
        "id2label": {"0": "a"},
        "label2id": {"a": 0},
        "problem_type": "multi_label_classification",
    },
    "num_labels 1": {"id2label": LEFT_OUT, "label2id": LEFT_OUT, "num_labels": 1},
    "num_labels 4": {"id2label": LEFT_OUT, "label2id": LEFT_OUT, "num_labels": 4},
    "num_labels null": {"id2label": LEFT_OUT, "label2id": LEFT_OUT, "num_labels": None},
    "num_labels against id2label": {"num_labels": 5},
    "labels out of order": {"id2label": {"2": "c", "0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1, "c": 2}},
    "labels with a gap": {"id2label": {"0": "a", "2": "c", "5": "b"}},
    "function_to_apply": {"function_to_apply": "sigmoid"},
    "sliding_window 4": {"sliding_window": 4},
    "sliding_window 1": {"sliding_window": 1},
    "sliding_window 0": {"sliding_window": 0},
    "use_sliding_window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "use_sliding_window false": {"use_sliding_window": False, "sliding_window": 4},
    "sliding layer types": {"layer_types": [NAMES_OF_KINDS[1]] * 4, "sliding_window": 4, "use_sliding_window": True},
    "mixed layer types": {"layer_types": [*NAMES_OF_KINDS] * 2, "sliding_window": 4, "use_sliding_window": True},
    "layer types without a window": {"layer_types": [*NAMES_OF_KINDS] * 2, "sliding_window": None},
    "windows off": {"layer_types": [*NAMES_OF_KINDS] * 2, "sliding_window": 4, "use_sliding_window": False},
    "too few layer types": {"layer_types": [NAMES_OF_KINDS[0]]},
    "unknown layer types": {"layer_types": ["chunked_attention"] * 4, "attention_chunk_size": 4},
    "sliding_window_pattern": {"layer_types": LEFT_OUT, "sliding_window_pattern": 2},
    "no_rope_layers": {"no_rope_layers": [0, 1, 0, 1]},
    "no_rope_layer_interval": {"no_rope_layers": LEFT_OUT, "layer_types": LEFT_OUT, "no_rope_layer_interval": 3},
    "head_dim 6": {"head_dim": 6},
    "one KV head": {"num_key_value_heads": 1},
    "as many KV heads": {"num_key_value_heads": 4},
    "attention_bias": {"attention_bias": True},
    "qkv_bias": {"qkv_bias": False},
    "use_qkv_bias": {"use_qkv_bias": True},
    "attention_in_bias, attention_out_bias": {"attention_in_bias": True, "attention_out_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "lm_head_bias": {"lm_head_bias": True},
    "token_classification_bias": {"token_classification_bias": False},
    "score_bias": {"score_bias": True},
    "qk_layernorm": {"qk_layernorm": True},
    "use_qk_norm": {"use_qk_norm": True},
    "clip_qkv": {"clip_qkv": 0.1},
    "softcaps": {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 3},
    "position_embedding_type relative_key": {"position_embedding_type": "relative_key"},
    "position_embedding_type relative_key_query": {"position_embedding_type": "relative_key_query"},
    "sinusoidal positions": {"sinusoidal_pos_embds": True, "static_position_embeddings": True},
    "scale_embedding": {"scale_embedding": True},
    "scale_attn_weights false": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "reorder_and_upcast_attn": {"reorder_and_upcast_attn": True},
    "scale_decoder_outputs false": {"scale_decoder_outputs": False},
    "scale_decoder_outputs true, not tied": {"scale_decoder_outputs": True, "tie_word_embeddings": False},
    "normalize_before": {"normalize_before": True},
    "normalize_embedding": {"normalize_embedding": True},
    "add_final_layer_norm": {"add_final_layer_norm": True},
    "norm_topk_prob false": {"norm_topk_prob": False},
    "router jitter": {"router_jitter_noise": 0.3},
    "multipliers": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "logit_scale": 0.1},
    "attention_multiplier": {"attention_multiplier": 0.5},
    "layer_scale": {"layer_scale_init_value": 0.1, "layerscale_value": 0.1},
    "dropout": {"dropout": 0.5, "attention_dropout": 0.5, "hidden_dropout_prob": 0.5, "resid_pdrop": 0.5},
    "classifier_dropout": {"classifier_dropout": 0.9, "summary_first_dropout": 0.9},
    "layerdrop": {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9, "layerdrop": 0.9},
    "pooling mean": {"classifier_pooling": "mean"},
    "pooling unknown": {"classifier_pooling": "max"},
    "summary_type": {"summary_type": "first", "summary_use_proj": False},
    "pruned_heads": {"pruned_heads": {"0": [1]}},
    "chunk_size_feed_forward": {"chunk_size_feed_forward": 2},
    "output flags": {"output_attentions": True, "output_hidden_states": True, "use_cache": False},
    "output_router_logits": {"output_router_logits": True},
    "pretraining_tp": {"pretraining_tp": 2},
    "per_layer_config": {"per_layer_config": {"1": {"hidden_act": "relu", "num_key_value_heads": 1}}},
    "pad_token_id null": {"pad_token_id": None},
    "pad_token_id 3": {"pad_token_id": 3},
    "pad_token_id -1": {"pad_token_id": -1},
    "eos_token_id a list": {"eos_token_id": [2, 3]},
    "eos_token_id beyond": {"eos_token_id": 100000},
    "vocab_size padded": {"vocab_size": 128},
    "vocab_size smaller": {"vocab_size": 40},
    "unpadded_vocab_size": {"unpadded_vocab_size": 50},
    "dtype bfloat16": {"dtype": "bfloat16"},
    "torch_dtype float16": {"torch_dtype": "float16"},
    "dtype unknown": {"dtype": "float3"},
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "compression_config": {"compression_config": {"quant_method": "compressed-tensors"}},
    "transformers_weights": {"transformers_weights": "other.safetensors"},
    "unknown key": {"a_setting_of_tomorrow": 3.5},
    "type_vocab_size 0": {"type_vocab_size": 0},
    "hidden_size a text": {"hidden_size": "32", "n_embd": "16", "d_model": "16", "dim": "16"},
    "hidden_size a float": {"hidden_size": 32.0, "n_embd": 16.0, "d_model": 16.0, "dim": 16.0},
    "eps a text": {"rms_norm_eps": "1e-3", "layer_norm_eps": "1e-3", "layer_norm_epsilon": "1e-3", "norm_eps": "1e-3"},
    "eps an integer": {"rms_norm_eps": 1, "layer_norm_eps": 1, "layer_norm_epsilon": 1, "norm_eps": 1},
    "a flag as a number": {"tie_word_embeddings": 1, "attention_bias": 0},
    "a flag as a text": {"tie_word_embeddings": "false"},
    "rope_theta in the old place": {"rope_parameters": LEFT_OUT, "rope_theta": 300.0},
    "rope_theta in both places": {"rope_theta": 300.0},
    "rope_theta null": {"rope_parameters": LEFT_OUT, "rope_theta": None},
    "partial_rotary_factor, old": {"rope_parameters": LEFT_OUT, "partial_rotary_factor": 0.5},
    "partial_rotary_factor, both": {"partial_rotary_factor": 0.75},
    "rotary_pct": {"rope_parameters": LEFT_OUT, "rotary_pct": 0.5, "rotary_emb_base": 99.0},
    "rope_local_base_freq": {"rope_parameters": LEFT_OUT, "rope_local_base_freq": 50.0, "rope_theta": 300.0},
    "global_rope_theta": {"rope_parameters": LEFT_OUT, "global_rope_theta": 70.0, "local_rope_theta": 30.0},
    "rope_interleaved": {"rope_interleaved": True},
    "original_max_position_embeddings": {"original_max_position_embeddings": 16},
    **{f"rope {name}": {"rope_parameters": value} for name, value in ROPES.items()},
    **{f"rope_scaling {name}": {"rope_parameters": LEFT_OUT, "rope_scaling": v} for name, v in SCALINGS.items()},
    **{
        f"rope_scaling {name}, original": {"rope_scaling": value, "original_max_position_embeddings": 24}
        for name, value in SCALINGS.items()
    },
}
# Keys whose defaults make a model of full size; tests/parity/test_decoder_settings.py compares those defaults.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "n_embd", "n_layer", "d_model", "d_ff")
SIZES += ("dim", "hidden_dim", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_local_experts")
SIZES += ("encoder_ffn_dim", "decoder_ffn_dim", "num_attention_heads", "head_dim", "image_size", "max_ep_len")
SWITCHED_OFF = ("architectures", "model_type", "id2label", "label2id", "transformers_version")


def changes(base: Mapping[str, Any], every: bool) -> Iterator[tuple[str, Settings]]:
    """A name and the whole settings of each change; without `every`, those that another class of a family may read in
    its own way.
    """
    yield "as it is", deepcopy(dict(base))
    for name, change in COMMON.items():
        if "rope" not in name or (every and "rope_parameters" in base):
            yield name, changed(base, change)
    if not every:
        return
    for part in ("text_config", "vision_config"):
        if part in base:
            for name, change in {**COMMON, **own_keys(base[part])}.items():
                yield f"{part}: {name}", {**deepcopy(dict(base)), part: changed(base[part], change)}
    for name, change in own_keys(base).items():
        yield name, changed(base, change)
    for name in WEIGHT_CHANGES:
        yield name, deepcopy(dict(base))
        if base.get("tie_word_embeddings") is False:
            yield name + TIED, changed(base, {"tie_word_embeddings": True})


def changed(base: Mapping[str, Any], change: Mapping[str, Any]) -> Settings:
    found = {**deepcopy(dict(base)), **deepcopy({name: v for name, v in change.items() if v is not LEFT_OUT})}
    return {name: value for name, value in found.items() if change.get(name) is not LEFT_OUT}


def own_keys(base: Mapping[str, Any]) -> dict[str, Settings]:
    """Other values for each key that a configuration has, null, and none."""
    found: dict[str, Settings] = {}
    for key, value in base.items():
        if key in SWITCHED_OFF or (isinstance(value, Mapping) and key != "rope_parameters"):
            continue
        if key in ACTIVATION_KEYS:
            values: list[Any] = list(ACTIVATIONS)
            if key == "feed_forward_proj":
                values += [f"gated-{name}" for name in ACTIVATIONS[:9]]
        elif isinstance(value, bool):
            values = [not value]
        elif isinstance(value, int):
            values = [value + 1, 0]
        elif isinstance(value, float):
            values = [value + 0.03, 0.0]
        else:
            values = []
        derived = {"dense_act_fn": LEFT_OUT, "is_gated_act": LEFT_OUT} if key == "feed_forward_proj" else {}
        for other in values:
            found[f"{key} = {other!r}"] = {**derived, key: other}
        if key not in SIZES:
            found[f"{key} null"] = {key: None}
            found[f"{key} left out"] = {key: LEFT_OUT}
    return found


# Weights.


def _all(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Every matrix changed."""
    return lambda tensors: {name: change(t) if t.dim() > 1 else t for name, t in tensors.items()}


def _other_head(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A head of its own next to the table of embeddings."""
    tables = {
        "model.embed_tokens.weight": "lm_head.weight",
        "transformer.wte.weight": "lm_head.weight",
        "transformer.tokens_embed.weight": "lm_head.weight",
        "gpt_neox.embed_in.weight": "embed_out.weight",
        "shared.weight": "lm_head.weight",
        "model.shared.weight": "lm_head.weight",
        "model.decoder.embed_tokens.weight": "proj_out.weight",
        "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
        "roberta.embeddings.word_embeddings.weight": "lm_head.decoder.weight",
        "distilbert.embeddings.word_embeddings.weight": "vocab_projector.weight",
        "model.embeddings.tok_embeddings.weight": "decoder.weight",
    }
    for table, head in tables.items():
        if table in tensors:
            return {**tensors, head: tensors[table].flip(0) * 0.5}
    return None


def _same_head(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    found = _other_head(tensors)
    new = {} if found is None else {name: found[name] for name in found.keys() - tensors.keys()}
    table = next((t for name, t in tensors.items() for n in new if t.shape == new[n].shape), None)
    return None if table is None or not new else {**tensors, next(iter(new)): table.clone()}


def _other_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A bias of the head next to the one that it is tied to."""
    pairs = {
        "cls.predictions.bias": "cls.predictions.decoder.bias",
        "lm_head.bias": "lm_head.decoder.bias",
    }
    for bias, other in pairs.items():
        if bias in tensors:
            return {**tensors, other: tensors[bias].flip(0) + 1}
    return None


def _other_source_table(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The encoder's own table next to the shared one."""
    for shared, own in (
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("model.shared.weight", "model.encoder.embed_tokens.weight"),
    ):
        if shared in tensors:
            return {**tensors, own: tensors[shared].flip(0) * 0.5}
    return None


def _scaled_bytes(tensor: Tensor) -> Tensor:
    return (tensor * 40).round().clamp(-100, 100).to(torch.int8)


WEIGHT_CHANGES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor] | None]] = {
    "another head in the file": _other_head,
    "the same head in the file": _same_head,
    "another bias of the head in the file": _other_bias,
    "another table of the encoder in the file": _other_source_table,
    "weights in F64": _all(lambda t: t.double()),
    "weights in F16": _all(lambda t: t.half()),
    "weights in BF16": _all(lambda t: t.bfloat16()),
    "weights in I8": _all(_scaled_bytes),
    "weights in U8": _all(lambda t: _scaled_bytes(t).view(torch.uint8)),
    "weights in I32": _all(lambda t: _scaled_bytes(t).int()),
    "weights in I64": _all(lambda t: _scaled_bytes(t).long()),
    "weights in BOOL": _all(lambda t: t > 0),
    "weights in F8_E4M3": _all(lambda t: t.to(torch.float8_e4m3fn)),
    "weights in F8_E5M2": _all(lambda t: t.to(torch.float8_e5m2)),
}
