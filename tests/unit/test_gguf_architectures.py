"""Every architecture of GGUF both ways, against tensors that are named by the package gguf and changed as llama.cpp's
converter changes them (conversion/*.py, 2026).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_models import rewritten
from torch import Tensor

import headway as hw
from headway.codecs import load_codec
from headway.errors import UserError
from headway.formats.gguf import GgufFile, load_gguf, load_gguf_codec, save_gguf
from headway.formats.gguf.model import DIALECTS, WRITABLE_FAMILIES
from headway.formats.published import load_published, save_published
from headway.formats.usage import Usage
from headway.nn.models import PooledHeadConfig

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
T = pytest.importorskip("transformers")
IDS = torch.randint(0, 48, (2, 20), generator=torch.Generator().manual_seed(1))
SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16, "tie_word_embeddings": True}
WINDOWED = {**GEMMA, "sliding_window": 6, "query_pre_attn_scalar": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 5e3, "short_factor": [1.0, 1.1], "long_factor": [1.0, 2.5]}
LONG = {"original_max_position_embeddings": 32, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e3, "original_max_position_embeddings": 16}
DEFAULT = {"rope_type": "default", "rope_theta": 5e3}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9e3},
    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5}
# The class in transformers, and settings.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**GROUPED, "attention_bias": True}),
    "llama, mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16}),
    "qwen2moe": (
        "Qwen2Moe",
        {**GROUPED, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "qwen3moe": (
        "Qwen3Moe",
        {**GROUPED, **EXPERTS, "head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
    "olmo2": ("Olmo2", {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e3}}),
    "olmo2, olmo3": (
        "Olmo3",
        {
            **GROUPED,
            "num_hidden_layers": 5,
            "sliding_window": 6,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT},
        },
    ),
    "olmoe": ("Olmoe", {**SIZES, **EXPERTS}),
    "phi3": ("Phi3", {**GROUPED, "rope_parameters": PARTIAL}),
    "phi3, long": ("Phi3", {**GROUPED, **LONG, "sliding_window": 9}),
    "gemma": ("Gemma", GEMMA),
    "gemma2": ("Gemma2", {**WINDOWED, "num_hidden_layers": 4}),
    "gemma3": (
        "Gemma3",
        {**WINDOWED, "num_hidden_layers": 7, "rope_parameters": TWO_BASES},
    ),
    "smollm3": ("SmolLM3", {**GROUPED, "num_hidden_layers": 5}),
    "stablelm": ("StableLm", {**GROUPED, "use_qkv_bias": True, "rope_parameters": PARTIAL}),
    "stablelm, parallel": ("StableLm", {**GROUPED, "use_parallel_residual": True, "rope_parameters": PARTIAL}),
    "starcoder2": ("Starcoder2", {**GROUPED, "norm_epsilon": 1e-4, "sliding_window": None}),
    "gptneox": ("GPTNeoX", {**SIZES, "rope_parameters": PARTIAL, "use_parallel_residual": False}),
    "gptneox, parallel": ("GPTNeoX", {**SIZES, "rope_parameters": PARTIAL}),
    "gpt2": ("GPT2", {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 72}),
}  # fmt: skip


def original(case: str, **changes: Any) -> Any:
    """A model of transformers with weights drawn by it, all of them noisy."""
    name, settings = CASES[case]
    config = getattr(T, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**{**settings, **changes})
    torch.manual_seed(1)  # transformers draws from the global generator
    model = getattr(T, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """Rotary halves to adjacent pairs."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def converted(model: Any, architecture: str) -> dict[str, Tensor]:
    """The tensors that llama.cpp's converter writes."""
    config = model.config
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight", "embed_out.weight") and config.tie_word_embeddings:
            continue
        if "pooler." in name:
            continue
        if name.endswith("experts.gate_up_proj"):  # transformers 5 stacks what files have apart
            stem = name.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            parts = {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            parts = {f"{name}.weight": tensor}
        else:
            parts = {name: tensor}
        for part_name, part in parts.items():
            stem, _, end = part_name.rpartition(".")
            if architecture in ("llama", "smollm3") and stem.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
                part = permuted(part, heads)
            if architecture.startswith("gemma") and part_name.endswith("norm.weight"):
                part = part + 1
            if architecture == "gpt2" and ".h." in part_name and part.dim() == 2:
                part = part.T
            if architecture == "gptneox" and "query_key_value" in stem:
                part = part.unflatten(0, (config.num_attention_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            tensors[f"{names.get_name(stem)}.{end}"] = part
    return tensors


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(case: str) -> Any:
    return original(case)


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers, opened and written as a file."""
    model, usage = load_published(folder)
    path = tmp_path_factory.mktemp("file") / "a.gguf"
    save_gguf(model, model.config, path, usage=usage)  # type: ignore[arg-type]
    return path


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS) if hasattr(model, "logits") else model(IDS).logits


def test_there_and_back(folder: Path, written: Path, theirs: Any) -> None:
    found = load_gguf(written).model
    ours = logits(load_published(folder).model)
    assert torch.allclose(logits(found), ours, atol=1e-6, rtol=0)
    assert torch.allclose(ours, logits(theirs), atol=2e-5)


def test_tensors_are_those_of_the_converter(case: str, written: Path, theirs: Any) -> None:
    file, wanted = GgufFile(written), converted(theirs, case.split(",")[0])
    factors = {"rope_factors_long.weight", "rope_factors_short.weight"} if case == "phi3, long" else set()
    assert set(file.names()) == wanted.keys() | factors
    for name, tensor in wanted.items():
        assert torch.equal(file.get(name), tensor.float()), name


def test_a_file_becomes_a_folder(written: Path, tmp_path: Path, theirs: Any) -> None:
    found, usage = load_gguf(written)
    name = save_published(found, found.config, tmp_path, usage)  # type: ignore[arg-type]
    assert name == theirs.config.model_type
    assert torch.allclose(logits(load_published(tmp_path).model), logits(theirs), atol=2e-5)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again), logits(theirs), atol=2e-5)


def test_a_shared_gate_may_be_a_vector(tmp_path: Path) -> None:
    """As llama.cpp writes it when it quantises a file."""
    original("qwen2moe").save_pretrained(tmp_path)
    model, usage = load_published(tmp_path)
    save_gguf(model, model.config, tmp_path / "a.gguf", usage=usage)  # type: ignore[arg-type]
    path = rewritten(tmp_path / "a.gguf", lambda data: (data.reshape(-1) if len(data) == 1 else data, None))
    assert len(GgufFile(path).shape("blk.0.ffn_gate_inp_shexp.weight")) == 1
    assert torch.equal(logits(load_gguf(path).model), logits(load_gguf(tmp_path / "a.gguf").model))


# Values that llama.cpp reads, by case: those that the converter writes for it.
VALUES: dict[str, dict[str, Any]] = {
    "llama, mixtral": {"expert_count": 4, "expert_used_count": 2, "rope.dimension_count": 8, "vocab_size": 48},
    "qwen3moe": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24},
    "olmoe": {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": 64},
    "olmo2, olmo3": {
        "attention.sliding_window": 6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    },
    "phi3": {"attention.sliding_window": 0, "rope.dimension_count": 4},
    "phi3, long": {
        "attention.sliding_window": 9,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": (1 + np.log(2) / np.log(32)) ** 0.5,
        "context_length": 64,
    },
    "gemma": {"attention.key_length": 16, "attention.value_length": 16},
    "gemma2": {"attention.sliding_window": 6, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {
        "attention.sliding_window": 6,
        "rope.freq_base": 9e3,
        "rope.freq_base_swa": 70.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    },
    "stablelm": {"use_parallel_residual": False, "rope.dimension_count": 4, "attention.layer_norm_epsilon": 1e-5},
    "stablelm, parallel": {"use_parallel_residual": True},
    "starcoder2": {"attention.layer_norm_epsilon": 1e-4},
    "gptneox": {"use_parallel_residual": False, "rope.dimension_count": 4, "rope.freq_base": 1e3},
    "gptneox, parallel": {"use_parallel_residual": True},
    "gpt2": {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 72},
}
COMMON = {"attention.head_count": 4, "embedding_length": 32}


def test_values_are_those_of_the_converter(case: str, written: Path) -> None:
    architecture, values = case.split(",")[0], GgufFile(written).values
    assert values["general.architecture"] == architecture
    for key, wanted in {**COMMON, **VALUES.get(case, {})}.items():
        found = values[f"{architecture}.{key}"]
        assert found == pytest.approx(wanted) if isinstance(wanted, float) else found == wanted, key


def test_cases_are_complete() -> None:
    assert {case.split(",")[0] for case in CASES} == DIALECTS.keys() - {"bert"}
    classes = {getattr(T, f"{name}{'Text' if name == 'Gemma3' else ''}Config") for name, _ in CASES.values()}
    assert {each.model_type for each in classes} == WRITABLE_FAMILIES.keys() - {"mistral", "bert"}


def changed(case: str, tmp_path: Path, **settings: Any) -> None:
    name, values = CASES[case]
    config = getattr(T, f"{name}Config")(**{**values, **settings})
    model = getattr(T, f"{name}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "folder")
    ours, usage = load_published(tmp_path / "folder")
    save_gguf(ours, ours.config, tmp_path / "a.gguf", usage=usage or Usage())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case_name", "settings"),
    [
        ("qwen3moe", {"norm_topk_prob": False}),
        ("qwen3moe", {"mlp_only_layers": [1]}),
        ("olmoe", {"norm_topk_prob": True}),
        ("olmoe", {"num_key_value_heads": 2}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 7}),
        ("starcoder2", {"use_bias": False}),
        ("gptneox", {"attention_bias": False}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0]}),
        ("olmo2", {"attention_bias": True}),
    ],
)
def test_what_llama_cpp_does_not_vary_is_refused(case_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GGUF has no settings for some features of this"):
        changed(case_name, tmp_path, **settings)
    assert not (tmp_path / "a.gguf").exists()


def test_experts_as_older_files_have_them(tmp_path: Path) -> None:
    """One tensor per expert."""
    model = original("llama, mixtral")
    tensors = converted(model, "llama")
    model.save_pretrained(tmp_path / "folder")
    ours, usage = load_published(tmp_path / "folder")
    save_gguf(ours, ours.config, tmp_path / "a.gguf", usage=usage)  # type: ignore[arg-type]
    values = GgufFile(tmp_path / "a.gguf").values
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    for key, value in values.items():
        if key.startswith("llama."):
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name, tensor in tensors.items():
        parts = {name: tensor}
        if name.endswith("_exps.weight"):
            parts = {name.replace("_exps.weight", f".{i}.weight"): expert for i, expert in enumerate(tensor)}
        for part_name, part in parts.items():
            writer.add_tensor(part_name, part.contiguous().numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    assert torch.allclose(logits(load_gguf(tmp_path / "b.gguf").model), logits(model), atol=2e-5)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a man woman dog eat ##s ##ing run . , naive hello world".split()  # noqa: SIM905
POOLING = {"mean": 1, "cls": 2}


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Any, Path]:
    """BERT of transformers, in a folder with a vocabulary."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)  # transformers draws from the global generator
    model = T.BertModel(T.BertConfig(vocab_size=len(WORDS), **sizes, max_position_embeddings=40)).eval()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert/vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "bert/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return model, tmp_path / "bert"


@pytest.mark.parametrize("mode", POOLING)
def test_sentence_encoders(encoder: tuple[Any, Path], tmp_path: Path, mode: str) -> None:
    model, folder = encoder
    types = ["", "1_Pooling", "2_Normalize"]
    names = ["Transformer", "Pooling", "Normalize"]
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in zip(types, names)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": mode}))
    assert hw.export(folder, tmp_path / "a.gguf") == "bert"
    file = GgufFile(tmp_path / "a.gguf")
    wanted = {name: tensor for name, tensor in converted(model, "bert").items() if not name.startswith("cls")}
    assert set(file.names()) == wanted.keys()
    assert all(torch.equal(file.get(name), tensor) for name, tensor in wanted.items())
    said = {key: file.values[f"bert.{key}"] for key in ("pooling_type", "attention.causal", "context_length")}
    assert said == {"pooling_type": POOLING[mode], "attention.causal": False, "context_length": 40}
    texts = ["The man eats.", "a dog, a WOMAN eating", "na\u00efve unseen world"]
    ours, found = hw.load(folder), hw.load(tmp_path / "a.gguf")
    assert np.array_equal(found.embed(texts), ours.embed(texts))
    codec = load_gguf_codec(tmp_path / "a.gguf")
    theirs = T.AutoTokenizer.from_pretrained(folder)
    assert codec is not None
    assert [codec.tokenizer.encode(text).ids for text in texts] == theirs(texts)["input_ids"]
    assert codec.decode(codec.encode(texts[1])) == "a dog, a woman eating"
    tokens, kinds = (file.values[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert tokens[2:12] == ["[CLS]", "[SEP]", "[MASK]", *(f"\u2581{w}" for w in WORDS[5:11]), "s"]
    assert kinds[:5] == [3] * 5
    roles = {"cls": 2, "seperator": 3, "bos": 2, "eos": 3, "unknown": 1, "padding": 0, "mask": 4}
    assert {role: file.values[f"tokenizer.ggml.{role}_token_id"] for role in roles} == roles
    assert file.values["tokenizer.ggml.token_type_count"] == 2


def test_encoders_that_gguf_cannot_store(encoder: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = encoder
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    ours, usage = load_published(folder)
    config = replace(ours.config, heads={})  # type: ignore[type-var, arg-type]
    with pytest.raises(UserError, match="its ids would change"):
        save_gguf(ours, config, tmp_path / "a.gguf", load_codec(folder), usage)
    for head, message in (
        (PooledHeadConfig(pool="mean"), "stores vectors of unit length"),
        (PooledHeadConfig(pool="tokens", unit=True), "cannot store vectors of tokens"),
    ):
        with pytest.raises(UserError, match=message):
            save_gguf(ours, replace(config, heads={"embedding": head}), tmp_path / "a.gguf", usage=usage)
