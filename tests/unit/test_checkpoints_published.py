"""What is wrong with a published model is said in one line, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headway.codecs import train_codec
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.open import open_model
from headway.formats.published import can_express, load_published, resolve_defaults, save_published
from headway.formats.settings import Settings
from headway.nn.mixers import AttentionConfig
from headway.nn.models import PooledHeadConfig, TransformerConfig, build
from headway.nn.models.presets import decoder, gpt, preset
from headway.nn.parts.init import InitConfig

LLAMA = decoder(16, 2, 4, 2, 24, 31, tie=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published Llama."""
    save_published(build(LLAMA), LLAMA, tmp_path)
    return tmp_path


def set_in(folder: Path, **settings: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **settings}))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_published(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor_is_named_with_the_nearest(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.dawn_proj.weight"] = tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    said = refused(folder)
    assert "lacks tensor 'model.layers.1.mlp.down_proj.weight'; did you mean 'model.layers.1.mlp.dawn_proj" in said


def test_a_tensor_without_a_rule_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    extra = tensors["model.norm.weight"].clone()
    save_file({**tensors, "model.layers.1.self_attn.q_norm.weight": extra}, folder / "model.safetensors")
    said = refused(folder)
    assert "has unknown tensor 'model.layers.1.self_attn.q_norm.weight'; did you mean" in said


@pytest.mark.parametrize(("settings", "words"), [
    ({"hidden_size": 24, "head_dim": 4}, "31, 16) makes (31, 16), but the configuration needs (31, 24)"),
    ({"intermediate_size": 32}, "gate_proj.weight + model.layers.0.mlp.up_proj.weight of shape (24, 16) + (24, 16)"),
    ({"num_key_value_heads": 1}, "of shape (16, 16) + (8, 16) + (8, 16) makes (32, 16), but the configuration needs"),
])  # fmt: skip
def test_a_shape_that_disagrees_is_shown(folder: Path, settings: dict[str, Any], words: str) -> None:
    set_in(folder, **settings)
    assert words in refused(folder)


def test_slices_that_do_not_fit_together_are_shown(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 15)
    save_file(tensors, folder / "model.safetensors")
    assert "up_proj.weight (24, 15) do not fit together" in refused(folder)


@pytest.mark.parametrize(("settings", "words"), [
    ({"model_type": "lama"}, "unknown family 'lama'; did you mean 'llama'? (known: "),
    ({"model_type": 3}, "model_type is 3; use a string"),
    ({"model_type": "chatglm", "auto_map": {"AutoModel": "x.Y"}}, "requests custom code"),
    ({"vocab_size": None}, "vocab_size is null; set a value, or remove it"),
    ({"hidden_act": "gelo"}, "hidden_act is 'gelo'; did you mean 'gelu'?"),
    ({"hidden_size": "wide"}, "hidden_size is 'wide'; use an integer"),
    ({"rope_parameters": {"rope_type": "yearn"}}, "rope_type is 'yearn'; did you mean 'yarn'?"),
    ({"rope_parameters": {"rope_type": "linear"}}, "lacks 'factor'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "this family rotates whole heads"),
    ({"rope_parameters": 3}, "rope_parameters is 3; it should be a mapping"),
    ({"architectures": ["LlamaForQuestionAnswering"]}, "the head of LlamaForQuestionAnswering is not supported"),
    ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0.0; it should be above 0"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types names 1 of 2 layers"),
    ({"model_type": "gemma2", "layer_types": ["chunked", "full_attention"]}, "layer_types has 'chunked'"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers names 1 of 2 layers"),
    ({"model_type": "gpt2", "n_head": 2, "scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"model_type": "openai-gpt", "afn": "selu"}, "afn is 'selu'; did you mean 'silu'?"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "active is 9 of 8 experts"),
])  # fmt: skip
def test_a_setting_that_is_not_known_or_supported(folder: Path, settings: dict[str, Any], words: str) -> None:
    set_in(folder, **settings)
    assert words in refused(folder)


@pytest.mark.parametrize(("said", "words"), [
    ([], "generation_config.json is not a mapping of settings"),
    ({"bad_words_ids": 5}, "bad_words_ids is 5; use a list"),
    ({"bad_words_ids": [5]}, "bad_words_ids.0 is 5; use a list"),
    ({"eos_token_id": [[1]]}, "eos_token_id.0 is [1]; use an integer"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; use an integer"),
])  # fmt: skip
def test_marks_that_are_none(folder: Path, said: Any, words: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert words in refused(folder)


def test_code_of_a_known_family_is_not_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many copies of Llama bring code that transformers has long contained; the weights have to fit as ever."""
    expected = load_published(folder).model.state_dict()
    set_in(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (folder / "modeling.py").write_text("raise SystemExit(3)")
    with caplog.at_level("INFO"):
        assert all(torch.equal(tensor, expected[n]) for n, tensor in load_published(folder).model.state_dict().items())
    assert "brings its own code (auto_map), which was not run" in caplog.text
    set_in(folder, intermediate_size=25)
    assert "the configuration needs" in refused(folder)


def test_labels_that_have_no_numbers(folder: Path) -> None:
    set_in(folder, id2label={"a": "x"})
    assert "id2label is {'a': 'x'}; its keys should be class ids" in refused(folder)


@pytest.mark.parametrize("shape", [(1 << 40, 0), (), (1, 1, 8), (2, 4), (0, 2, 8), (1025, 2, 1)])
def test_experts_that_are_no_stack(folder: Path, shape: tuple[int, ...]) -> None:
    """In a file without numbers there may be any number of experts; it is not tried to name them all."""
    set_in(folder, model_type="mixtral")
    save_file({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(shape)}, folder / "model.safetensors")
    assert f"experts.gate_up_proj has shape {shape}; it should be one of 1 to 1024 matrices" in refused(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    train_codec("byte", ["abc"]).save(folder)
    with pytest.raises(
        UserError, match=r"the tokenizer has 2\d\d tokens, but the model's embedding has only 31; use the tok"
    ) as it:
        open_model(folder)
    assert str(it.value).startswith(f"{folder}: ")


@pytest.mark.parametrize("text", ["", "{]", "[1]", '{"a":' * 100_000, "\0"])
def test_a_config_that_is_no_mapping(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


def test_a_configuration_that_no_family_says() -> None:
    odd = replace(LLAMA, heads={**LLAMA.heads, "second": PooledHeadConfig(2)})
    with pytest.raises(UserError, match=r"cannot be saved in any published format: .+; train one that can"):
        save_published(build(odd), odd, Path("nowhere"))
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("name", "family"), [
    ("gpt1", "openai-gpt"), ("gpt2", "gpt2"), ("gpt-10m", "gpt2"), ("gpt3-6.7b", "gpt2"), ("llama-1.1b", "llama"),
    ("gpt3-13b", None),  # 40 heads of 128 in a width of 5,140, which GPT-2 cannot say
])  # fmt: skip
def test_presets_have_a_published_form(name: str, family: str | None) -> None:
    saying = [each.name for each in families().values() if can_express(each, preset(name))]
    assert next(iter(saying), None) == family


def test_every_family_says_what_it_reads() -> None:
    """Whatever a family reads from its defaults it writes so that it is read again."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 9}
    sizes |= {"intermediate_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 4, "head_dim": 4, "num_key_value_heads": 2}
    for name in ("gpt2", "openai-gpt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2",
                 "gemma3_text", "phi3", "olmo2", "smollm3", "mixtral", "stablelm", "qwen2_moe", "granite", "granitemoe",
                 "glm", "glm4", "glm4_moe", "cohere", "cohere2", "gpt_oss"):  # fmt: skip
        family = families()[name]
        config = family.read(Settings({**family.defaults, **sizes}, name), ())
        assert can_express(family, config), name


def test_what_is_computed_is_apart_from_how_it_is_written() -> None:
    plain = gpt(16, 2, 4, 31, 32, dropout=0.0)
    assert isinstance(plain, TransformerConfig)
    block = plain.stack.blocks[0]
    assert isinstance(block.mixer, AttentionConfig)
    mixer = replace(block.mixer, kv_heads=4, head_size=4, qkv_bias=(True, True, True))
    blocks = tuple(replace(each, mixer=mixer, dropout=0.3) for each in plain.stack.blocks)
    written_out = replace(plain, stack=replace(plain.stack, blocks=blocks), init=InitConfig(std=0.5))
    assert written_out != plain
    assert resolve_defaults(written_out) == resolve_defaults(plain)
    fewer = tuple(replace(each, mixer=replace(mixer, kv_heads=2)) for each in blocks)
    assert resolve_defaults(replace(plain, stack=replace(plain.stack, blocks=fewer))) != resolve_defaults(plain)
