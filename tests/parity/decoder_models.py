"""Small decoders of transformers, two of every family, whose settings differ in all that rules must tell apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from twins import Batch

from headway.nn.models import Prompt

T = pytest.importorskip("transformers")

SYMBOLS = 67
MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SMALL = {
    "vocab_size": SYMBOLS,
    "max_position_embeddings": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    **MARKS,
}
LARGE = {
    "vocab_size": SYMBOLS + 20,
    "max_position_embeddings": 80,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    **MARKS,
}
GPT_SMALL = {"vocab_size": SYMBOLS, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 4, **MARKS}
GPT_LARGE = {"vocab_size": SYMBOLS + 20, "n_positions": 80, "n_embd": 48, "n_layer": 4, "n_head": 6, **MARKS}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.5, 4.0, 6.0],
}


def rope(kind: str = "default", theta: float = 500.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


def alternating(depth: int) -> list[str]:
    return ["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(depth)]


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=20)
TWO_BASES = {"full_attention": rope(theta=9000.0), "sliding_attention": rope(theta=70.0)}
CONFIGS: dict[tuple[str, str], Any] = {
    ("GPT2LMHeadModel", "small"): T.GPT2Config(**GPT_SMALL, activation_function="gelu_new"),
    ("GPT2LMHeadModel", "large"): T.GPT2Config(
        **GPT_LARGE, activation_function="gelu", n_inner=72, layer_norm_epsilon=1e-3, tie_word_embeddings=False
    ),
    ("OpenAIGPTLMHeadModel", "small"): T.OpenAIGPTConfig(**GPT_SMALL),
    ("OpenAIGPTLMHeadModel", "large"): T.OpenAIGPTConfig(**GPT_LARGE, afn="silu", layer_norm_epsilon=1e-3),
    ("GPTBigCodeForCausalLM", "small"): T.GPTBigCodeConfig(**GPT_SMALL),
    ("GPTBigCodeForCausalLM", "large"): T.GPTBigCodeConfig(
        **GPT_LARGE, multi_query=False, activation_function="relu", n_inner=72, layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
    ),
    ("GPTNeoXForCausalLM", "small"): T.GPTNeoXConfig(
        **{**without(SMALL, "num_key_value_heads"), "hidden_size": 32}, rope_parameters=rope(partial_rotary_factor=0.25)
    ),
    ("GPTNeoXForCausalLM", "large"): T.GPTNeoXConfig(
        **without(LARGE, "num_key_value_heads"),
        rope_parameters=rope(partial_rotary_factor=1.0),
        use_parallel_residual=False,
        hidden_act="gelu_fast",
        attention_bias=False,
    ),
    ("LlamaForCausalLM", "small"): T.LlamaConfig(**SMALL, rope_parameters=LLAMA3, attention_bias=True),
    ("LlamaForCausalLM", "large"): T.LlamaConfig(
        **{**LARGE, "num_key_value_heads": 1}, head_dim=10, mlp_bias=True, rope_parameters=rope("linear", factor=3.0)
    ),
    ("MistralForCausalLM", "small"): T.MistralConfig(**SMALL, sliding_window=6, rope_parameters=rope()),
    ("MistralForCausalLM", "large"): T.MistralConfig(**LARGE, sliding_window=9, head_dim=12, rms_norm_eps=1e-3),
    ("Qwen2ForCausalLM", "small"): T.Qwen2Config(**SMALL),
    ("Qwen2ForCausalLM", "large"): T.Qwen2Config(
        **LARGE, use_sliding_window=True, sliding_window=5, max_window_layers=2, rope_parameters=YARN
    ),
    ("Qwen3ForCausalLM", "small"): T.Qwen3Config(**SMALL, head_dim=10, attention_bias=True),
    ("Qwen3ForCausalLM", "large"): T.Qwen3Config(
        **LARGE, head_dim=12, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    ("GemmaForCausalLM", "small"): T.GemmaConfig(**SMALL, head_dim=10, attention_bias=True),
    ("GemmaForCausalLM", "large"): T.GemmaConfig(**LARGE, head_dim=12, rope_parameters=rope()),
    ("Gemma2ForCausalLM", "small"): T.Gemma2Config(
        **SMALL,
        head_dim=10,
        sliding_window=6,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    ),
    ("Gemma2ForCausalLM", "large"): T.Gemma2Config(
        **LARGE,
        head_dim=12,
        sliding_window=5,
        query_pre_attn_scalar=200,
        layer_types=alternating(5),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    ("Gemma3ForCausalLM", "small"): T.Gemma3TextConfig(
        **SMALL, head_dim=10, sliding_window=6, query_pre_attn_scalar=7, rope_parameters=TWO_BASES,
        layer_types=alternating(3),
    ),
    ("Gemma3ForCausalLM", "large"): T.Gemma3TextConfig(
        **{**LARGE, "num_hidden_layers": 7},
        head_dim=12,
        sliding_window=5,
        final_logit_softcapping=4.0,
        rope_parameters={"full_attention": rope("linear", factor=4.0), "sliding_attention": rope(theta=70.0)},
    ),
    ("Phi3ForCausalLM", "small"): T.Phi3Config(
        **{**SMALL, "hidden_size": 32}, sliding_window=6, rope_parameters=rope(partial_rotary_factor=0.5)
    ),
    ("Phi3ForCausalLM", "large"): T.Phi3Config(
        **LARGE, original_max_position_embeddings=40, rope_parameters=LONGROPE, rms_norm_eps=1e-3
    ),
    ("Olmo2ForCausalLM", "small"): T.Olmo2Config(**SMALL, attention_bias=True),
    ("Olmo2ForCausalLM", "large"): T.Olmo2Config(**LARGE, rope_parameters=rope(), rms_norm_eps=1e-3),
    ("Olmo3ForCausalLM", "small"): T.Olmo3Config(**SMALL, attention_bias=True, sliding_window=6),
    ("Olmo3ForCausalLM", "large"): T.Olmo3Config(
        **LARGE, sliding_window=5, rms_norm_eps=1e-3, layer_types=alternating(5),
        rope_parameters={"full_attention": YARN, "sliding_attention": rope(theta=70.0)},
    ),
    ("OlmoeForCausalLM", "small"): T.OlmoeConfig(**SMALL, num_experts=8, num_experts_per_tok=2, attention_bias=True),
    ("OlmoeForCausalLM", "large"): T.OlmoeConfig(
        **LARGE, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True, rope_parameters=rope(),
    ),
    ("Qwen3MoeForCausalLM", "small"): T.Qwen3MoeConfig(
        **SMALL, head_dim=10, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=20, attention_bias=True,
    ),
    ("Qwen3MoeForCausalLM", "large"): T.Qwen3MoeConfig(
        **LARGE, head_dim=12, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True,
        mlp_only_layers=[1], decoder_sparse_step=2, use_sliding_window=True, sliding_window=7,
    ),
    ("Qwen2MoeForCausalLM", "small"): T.Qwen2MoeConfig(
        **SMALL, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=28,
    ),
    ("Qwen2MoeForCausalLM", "large"): T.Qwen2MoeConfig(
        **LARGE, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=32,
        norm_topk_prob=True, mlp_only_layers=[1], decoder_sparse_step=2, use_sliding_window=True, sliding_window=7,
        max_window_layers=3, qkv_bias=False, rope_parameters=rope(),
    ),
    ("GraniteForCausalLM", "small"): T.GraniteConfig(
        **SMALL, embedding_multiplier=12.0, attention_multiplier=0.3, residual_multiplier=0.22, logits_scaling=6.0,
        attention_bias=True,
    ),
    ("GraniteForCausalLM", "large"): T.GraniteConfig(
        **LARGE, embedding_multiplier=2, attention_multiplier=0.02, residual_multiplier=1.0, logits_scaling=0.7,
        mlp_bias=True, rope_parameters=rope("linear", factor=3.0),
    ),
    ("GraniteMoeForCausalLM", "small"): T.GraniteMoeConfig(
        **SMALL, embedding_multiplier=12.0, attention_multiplier=0.3, residual_multiplier=0.22, logits_scaling=6.0,
        num_local_experts=4,
    ),
    ("GraniteMoeForCausalLM", "large"): T.GraniteMoeConfig(
        **LARGE, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=1.5, num_local_experts=6,
        num_experts_per_tok=3, attention_bias=True, rms_norm_eps=1e-3, rope_parameters=rope(),
    ),
    ("GlmForCausalLM", "small"): T.GlmConfig(**{**SMALL, "hidden_size": 32}, head_dim=8),
    ("GlmForCausalLM", "large"): T.GlmConfig(
        **LARGE, head_dim=12, attention_bias=False, rms_norm_eps=1e-3, rope_parameters=rope(partial_rotary_factor=1.0),
    ),
    ("Glm4ForCausalLM", "small"): T.Glm4Config(**{**SMALL, "hidden_size": 32}, head_dim=8, attention_bias=False),
    ("Glm4ForCausalLM", "large"): T.Glm4Config(
        **LARGE, head_dim=16, rms_norm_eps=1e-3, rope_parameters=rope(partial_rotary_factor=0.25),
    ),
    ("Glm4MoeForCausalLM", "small"): T.Glm4MoeConfig(
        **{**SMALL, "hidden_size": 32}, moe_intermediate_size=20, n_routed_experts=8, num_experts_per_tok=2,
        routed_scaling_factor=2.5, attention_bias=True,
    ),
    ("Glm4MoeForCausalLM", "large"): T.Glm4MoeConfig(
        **LARGE, moe_intermediate_size=24, n_routed_experts=9, num_experts_per_tok=3, n_shared_experts=2,
        first_k_dense_replace=2, use_qk_norm=True, norm_topk_prob=False, rms_norm_eps=1e-3,
        rope_parameters=rope(partial_rotary_factor=1.0),
    ),
    ("CohereForCausalLM", "small"): T.CohereConfig(**SMALL, attention_bias=True, rope_parameters=rope()),
    ("CohereForCausalLM", "large"): T.CohereConfig(
        **LARGE, use_qk_norm=True, logit_scale=0.8, layer_norm_eps=1e-3, hidden_act="gelu",
    ),
    ("Cohere2ForCausalLM", "small"): T.Cohere2Config(**SMALL, sliding_window=6, rope_parameters=rope()),
    ("Cohere2ForCausalLM", "large"): T.Cohere2Config(
        **LARGE, sliding_window=5, logit_scale=1.7, layer_norm_eps=1e-3, attention_bias=True,
        layer_types=alternating(5),
    ),
    ("GptOssForCausalLM", "small"): T.GptOssConfig(
        **SMALL, head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2, swiglu_limit=0.6,
    ),
    ("GptOssForCausalLM", "large"): T.GptOssConfig(
        **LARGE, head_dim=12, sliding_window=5, num_local_experts=6, num_experts_per_tok=3, attention_bias=False,
        layer_types=alternating(5), rope_parameters=YARN,
    ),
    ("Starcoder2ForCausalLM", "small"): T.Starcoder2Config(**SMALL, sliding_window=6, rope_parameters=rope()),
    ("Starcoder2ForCausalLM", "large"): T.Starcoder2Config(**LARGE, use_bias=False, norm_epsilon=1e-3),
    ("MinistralForCausalLM", "small"): T.MinistralConfig(
        **SMALL, sliding_window=6, head_dim=10, layer_types=alternating(3)
    ),
    ("MinistralForCausalLM", "large"): T.MinistralConfig(
        **LARGE, sliding_window=5, head_dim=12, rope_parameters=rope(), layer_types=alternating(5)
    ),
    ("SmolLM3ForCausalLM", "small"): T.SmolLM3Config(**SMALL, no_rope_layer_interval=2, rope_parameters=rope()),
    ("SmolLM3ForCausalLM", "large"): T.SmolLM3Config(
        **LARGE,
        no_rope_layers=[1, 0, 1, 1, 0],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
    ),
    ("MixtralForCausalLM", "small"): T.MixtralConfig(**SMALL, num_local_experts=4, rope_parameters=rope()),
    ("MixtralForCausalLM", "large"): T.MixtralConfig(
        **LARGE, num_local_experts=6, num_experts_per_tok=3, sliding_window=7, head_dim=10
    ),
    ("StableLmForCausalLM", "small"): T.StableLmConfig(
        **{**SMALL, "hidden_size": 32}, use_qkv_bias=True, rope_parameters=rope(partial_rotary_factor=0.25)
    ),
    ("StableLmForCausalLM", "large"): T.StableLmConfig(
        **LARGE,
        use_parallel_residual=True,
        layer_norm_eps=1e-3,
        hidden_act="gelu",
        rope_parameters=rope("linear", factor=3.0, partial_rotary_factor=1.0),
    ),
}  # fmt: skip


def make(name: str, size: str) -> Any:
    """A model of the class `name` with weights drawn by transformers."""
    return getattr(T, name)(CONFIGS[name, size])


def layers_of(model: Any) -> list[Any]:
    """Its layers, in order."""
    base = model.base_model
    return list(getattr(base, "h", None) or base.layers)


def logits(model: Any, given: Batch) -> Tensor:
    """Their logits."""
    with torch.inference_mode():
        return model(given.ids, attention_mask=given.mask).logits


def ours_of(model: Any, given: Batch) -> Tensor:
    """Our logits."""
    with torch.inference_mode():
        return model.logits(given.ids, given.layout)


def greedy(model: Any, given: Batch, new: int = 20) -> Tensor:
    """The `new` most probable symbols after each of our rows, step by step from a state."""
    with torch.inference_mode():
        scores, decoding = model.start(Prompt(given.ids, given.layout), int(given.layout.lengths.max()) + new)
        found = [scores.argmax(-1)]
        for _ in range(new - 1):
            scores, decoding = model.step(found[-1], decoding)
            found.append(scores.argmax(-1))
    return torch.stack(found, dim=1)


def continued(model: Any, prompt: list[int], found: list[int]) -> list[int]:
    """Their most probable symbol at each position of `found`, which comes after the prompt: `found` itself if and only
    if it is greedy. One forward takes a tenth of the time of their generate.
    """
    ids = torch.tensor([prompt + found])
    with torch.inference_mode():
        return model(ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()


def their_greedy(model: Any, prompt: list[int], new: int = 20) -> list[int]:
    """`greedy` by their generate, for one row."""
    ids, how = torch.tensor([prompt]), T.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    return found[0, len(prompt) :].tolist()


def copied(source: Path, folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    """A model's folder with other tensors or settings; None takes a setting out."""
    folder.mkdir()
    said = {**json.loads((source / "config.json").read_text()), **settings}
    said = {name: value for name, value in said.items() if not (name in settings and value is None)}
    (folder / "config.json").write_text(json.dumps(said))
    save_file(tensors or load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder
