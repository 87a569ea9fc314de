"""The ways in which published decoders say the same, base models without a head, and models that give labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, LARGE, SMALL, SYMBOLS, alternating, copied, logits, make, ours_of, without
from safetensors.torch import load_file
from twins import Twins, batch, difference, twins

from headway.config import override
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import load_published, resolve_defaults, save_published
from headway.formats.settings import Settings
from headway.nn.models import PooledHeadConfig, build
from headway.nn.models.presets import decoder, gpt

T = pytest.importorskip("transformers")
GIVEN = batch([24, 5, 17], SYMBOLS)


def saved(name: str, size: str, folder: Path) -> Twins:
    torch.manual_seed(5)
    return twins(make(name, size), folder, noise=0.1)


# Settings of files of other times, over those that transformers writes now; None takes one out.
OLD: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "rotary base": (
        ("MistralForCausalLM", "small"),
        {"rope_parameters": None, "rope_theta": 500.0, "head_dim": None, "layer_types": None},
    ),
    "rotary scaling": (
        ("LlamaForCausalLM", "large"),
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 500.0},
    ),
    "llama 3's scaling": (
        ("LlamaForCausalLM", "small"),
        {
            "rope_parameters": None,
            "rope_theta": 500,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "later layers slide": (("Qwen2ForCausalLM", "large"), {"layer_types": None, "max_window_layers": 2}),
    "no layer slides": (
        ("Qwen2ForCausalLM", "small"),
        {"layer_types": None, "sliding_window": 4, "use_sliding_window": False},
    ),
    "each second layer slides": (("Gemma2ForCausalLM", "small"), {"layer_types": None}),
    "each sixth does not, with two bases": (
        ("Gemma3ForCausalLM", "large"),
        {
            "layer_types": None,
            "sliding_window_pattern": 6,
            "rope_parameters": None,
            "rope_theta": 500.0,
            "rope_local_base_freq": 70.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "a part of each head": (
        ("GPTNeoXForCausalLM", "small"),
        {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 500},
    ),
    "a part of each head in phi3": (
        ("Phi3ForCausalLM", "small"),
        {"rope_parameters": None, "rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
    ),
    "a part of each head in stablelm": (
        ("StableLmForCausalLM", "small"),
        {"rope_parameters": None, "rope_theta": 500.0, "partial_rotary_factor": None},
    ),
    "every second layer without positions": (
        ("SmolLM3ForCausalLM", "small"),
        {"no_rope_layers": None, "layer_types": None, "no_rope_layer_interval": 2},
    ),
    "gemma's first activation": (("GemmaForCausalLM", "small"), {"hidden_act": "gelu", "hidden_activation": None}),
}


@pytest.mark.parametrize("old", OLD)
def test_old_settings_mean_the_same(old: str, tmp_path: Path) -> None:
    """To us as to transformers; and an export says it in the new way alone."""
    key, settings = OLD[old]
    pair = saved(*key, tmp_path / "new")
    again = load_published(copied(pair.folder, tmp_path / "old", **settings))
    assert again.model.config == pair.ours.config
    theirs = type(pair.theirs).from_pretrained(tmp_path / "old").eval()
    assert difference(logits(theirs, GIVEN), ours_of(again.model, GIVEN), GIVEN.layout.mask) < 1e-5
    save_published(again.model, again.model.config, tmp_path / "back", again.usage)
    said = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not said.keys() & {"rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "rope_local_base_freq"}
    back = type(pair.theirs).from_pretrained(tmp_path / "back").eval()
    assert difference(logits(back, GIVEN), ours_of(again.model, GIVEN), GIVEN.layout.mask) < 1e-5


def test_null_means_what_follows_from_the_rest(tmp_path: Path) -> None:
    pair = saved("MistralForCausalLM", "small", tmp_path / "a")
    values = json.loads((pair.folder / "config.json").read_text())
    assert values["head_dim"] == 6
    (pair.folder / "config.json").write_text(json.dumps({**values, "head_dim": None, "sliding_window": None}))
    mixer = load_published(pair.folder).model.config.stack.blocks[0].mixer
    assert mixer.head_size == 6
    assert mixer.pattern.window is None
    torch.manual_seed(5)
    alike = T.LlamaForCausalLM(T.LlamaConfig(**{**SMALL, "num_key_value_heads": None}))
    pair = twins(alike, tmp_path / "b")
    assert pair.ours.config.stack.blocks[0].mixer.kv_heads == 4
    values = json.loads((pair.folder / "config.json").read_text())
    (pair.folder / "config.json").write_text(json.dumps({**values, "num_key_value_heads": None}))
    assert load_published(pair.folder).model.config == pair.ours.config


@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype"])
def test_half_precision_stays_as_it_is_stored(spelling: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = make("LlamaForCausalLM", "small").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "a")
    folder = copied(tmp_path / "a", tmp_path / "b", **{"dtype": None, "torch_dtype": None} | {spelling: "bfloat16"})
    assert next(load_published(folder).model.parameters()).dtype == torch.float32
    model, usage = load_published(folder, dtype=None)
    save_published(model, model.config, tmp_path / "c", usage)
    said = json.loads((tmp_path / "c" / "config.json").read_text())
    assert said["dtype"] == "bfloat16"
    assert "torch_dtype" not in said
    back = T.LlamaForCausalLM.from_pretrained(tmp_path / "c", dtype="auto").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(("stem", "key"), [
    ("GPT2Model", ("GPT2LMHeadModel", "small")), ("OpenAIGPTModel", ("OpenAIGPTLMHeadModel", "small")),
    ("GPT2Model", ("GPT2LMHeadModel", "large")), ("GPTNeoXModel", ("GPTNeoXForCausalLM", "small")),
    ("LlamaModel", ("LlamaForCausalLM", "small")), ("Gemma3TextModel", ("Gemma3ForCausalLM", "large")),
    ("Qwen3Model", ("Qwen3ForCausalLM", "small")),
    ("StableLmModel", ("StableLmForCausalLM", "large")), ("MixtralModel", ("MixtralForCausalLM", "small")),
])  # fmt: skip
def test_base_models_have_a_head_where_it_is_tied(stem: str, key: tuple[str, str], tmp_path: Path) -> None:
    """Their tensors have no prefix. Features are equal, and come back to the class they are of."""
    torch.manual_seed(5)
    pair = twins(getattr(T, stem)(CONFIGS[key]), tmp_path / "a", noise=0.1)
    assert bool(pair.ours.config.heads) == CONFIGS[key].tie_word_embeddings
    with torch.inference_mode():
        wanted = pair.theirs(GIVEN.ids, attention_mask=GIVEN.mask).last_hidden_state
        ours = pair.ours(GIVEN.ids, GIVEN.layout).x
    assert difference(ours, wanted, GIVEN.layout.mask) < 2e-5
    save_published(pair.ours, pair.ours.config, tmp_path / "b", pair.usage)
    back = type(pair.theirs).from_pretrained(tmp_path / "b").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in pair.theirs.state_dict().items())


@pytest.mark.parametrize(("name", "key"), [
    ("GPT2ForSequenceClassification", ("GPT2LMHeadModel", "small")),
    ("OpenAIGPTForSequenceClassification", ("OpenAIGPTLMHeadModel", "small")),
    ("GPTNeoXForSequenceClassification", ("GPTNeoXForCausalLM", "small")),
    ("LlamaForSequenceClassification", ("LlamaForCausalLM", "small")),
    ("Qwen2ForSequenceClassification", ("Qwen2ForCausalLM", "large")),
    ("Gemma3TextForSequenceClassification", ("Gemma3ForCausalLM", "small")),
    ("Phi3ForSequenceClassification", ("Phi3ForCausalLM", "small")),
    ("StableLmForSequenceClassification", ("StableLmForCausalLM", "small")),
])  # fmt: skip
def test_labels_are_told_from_the_last_token(name: str, key: tuple[str, str], tmp_path: Path) -> None:
    labels = {0: "ham", 1: "spam", 2: "neither"}
    values = {**CONFIGS[key].to_dict(), "id2label": labels, "label2id": {label: i for i, label in labels.items()}}
    torch.manual_seed(5)
    pair = twins(getattr(T, name)(type(CONFIGS[key])(**values)), tmp_path / "a", noise=0.1)
    assert pair.ours.config.heads == {"classes": PooledHeadConfig(3, "last", bias=False)}
    assert pair.usage.labels == ("ham", "spam", "neither")
    with torch.inference_mode():
        ours = pair.ours.output("classes", GIVEN.ids, GIVEN.layout)
    assert difference(ours, logits(pair.theirs, GIVEN)) < 1e-5
    save_published(pair.ours, pair.ours.config, tmp_path / "b", pair.usage)
    back = type(pair.theirs).from_pretrained(tmp_path / "b").eval()
    assert back.config.id2label == labels
    assert difference(logits(back, GIVEN), logits(pair.theirs, GIVEN)) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), pair.theirs.state_dict().values()))
    save_published(pair.ours, pair.ours.config, tmp_path / "c")
    assert T.AutoModelForSequenceClassification.from_pretrained(tmp_path / "c").config.num_labels == 3


def test_models_of_our_own_are_exported(tmp_path: Path) -> None:
    """Presets leave much to follow from the rest, and train with dropout: neither keeps them from being said."""
    ours = {
        "gpt2": gpt(24, 2, 4, SYMBOLS, 64),
        "openai-gpt": gpt(24, 2, 4, SYMBOLS, 64, placement="post"),
        "llama": override(decoder(24, 2, 4, 2, 40, SYMBOLS), {"dropout": 0.1}),
    }
    for family, config in ours.items():
        model = build(config, seed=3).eval()
        assert save_published(model, config, tmp_path / family) == family
        theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        assert difference(ours_of(model, GIVEN), logits(theirs, GIVEN), GIVEN.layout.mask) < 1e-5


def test_a_head_of_its_own_and_its_copy(tmp_path: Path) -> None:
    """Files that hold a tied head once more are read; it is not written again."""
    pair = saved("Qwen2ForCausalLM", "large", tmp_path / "a")
    assert pair.ours.config.tie == "head"
    tensors = load_file(pair.folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    folder = copied(pair.folder, tmp_path / "b", {**tensors, "lm_head.weight": table.clone()})
    again = load_published(folder)
    save_published(again.model, again.model.config, tmp_path / "c", again.usage)
    assert load_file(tmp_path / "c" / "model.safetensors").keys() == tensors.keys()


def test_windows_by_layer_are_read_from_their_kinds(tmp_path: Path) -> None:
    config = T.Gemma2Config(**LARGE, head_dim=12, sliding_window=5, layer_types=alternating(5))
    torch.manual_seed(5)
    pair = twins(T.Gemma2ForCausalLM(config), tmp_path)
    windows = [block.mixer.pattern.window for block in pair.ours.config.stack.blocks]
    assert windows == [5, None, 5, 5, None]


@pytest.mark.parametrize("name", sorted({name for name, _ in CONFIGS}))
def test_what_a_file_leaves_out_has_their_default(name: str) -> None:
    """Our table of defaults is theirs: leaving out all that is in it changes nothing."""
    values = type(CONFIGS[name, "small"])().to_dict()
    family = families()[values["model_type"]]
    missing = {key: value for key, value in values.items() if key not in family.defaults}
    assert len(missing) < len(values)
    read = [family.read(Settings({**family.defaults, **each}, name), ()) for each in (values, missing)]
    assert read[0] == read[1]


# What every file says: without it a model is refused, or its parts do not fit.
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("key", list(CONFIGS), ids=lambda key: f"{key[0]}-{key[1]}")
def test_each_setting_left_out_has_their_default(key: tuple[str, str]) -> None:
    """One at a time, from a file of other sizes; layers that slide without a window are refused either way."""
    config = CONFIGS[key]
    family = families()[config.model_type]

    def read(values: dict[str, Any]) -> Any:
        return resolve_defaults(family.read(Settings({**family.defaults, **values}, key[0]), ()))

    values = config.to_dict()
    needed = {"use_sliding_window"} if values.get("use_sliding_window") and "layer_types" in values else set()
    if needed and config.model_type == "smollm3":  # whose sliding_window is null by default
        needed.add("sliding_window")
    for name in needed:
        with pytest.raises(UserError, match="layer_types has 'sliding_attention', but there is no window"):
            read(without(values, name))
    for name in values.keys() - {"model_type", *SIZES, *needed}:
        rest = without(values, name)
        theirs = type(config).from_dict(rest).to_dict()
        assert read(rest) == read(theirs), f"{name} is {theirs.get(name)!r} where it is left out"


@pytest.mark.parametrize("name", sorted({name for name, _ in CONFIGS}))
def test_first_models_of_a_family_have_their_size(name: str) -> None:
    """Their default settings are those of the first that was published (Llama 7B, Mixtral 8x7B, ...)."""
    config = type(CONFIGS[name, "small"])()
    if name == "MinistralForCausalLM":  # which they cannot build without
        config.head_dim = config.hidden_size // config.num_attention_heads
    if name == "Glm4MoeForCausalLM":  # whose default heads have an odd number of rotary features
        config.head_dim = 128
    family = families()[config.model_type]
    with torch.device("meta"):
        theirs = getattr(T, name)(config)
        ours = build(family.read(Settings({**family.defaults, **config.to_dict()}, name), ()), seed=None)
    wanted, found = (sum(parameter.numel() for parameter in model.parameters()) for model in (theirs, ours))
    assert found == wanted > 1e8
