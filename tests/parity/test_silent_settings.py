"""Settings and tensors of published files that are easily passed over: equal to transformers, or refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, SYMBOLS, copied, logits, make, ours_of, rope
from safetensors.torch import load_file, save_file
from twins import Twins, batch, difference, perturb, twins

import headway as hw
from headway.codecs import train_codec
from headway.errors import UserError
from headway.formats.published import load_published, save_published

T = pytest.importorskip("transformers")
GIVEN = batch([24, 5, 17], SYMBOLS)
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SEQ2SEQ = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SEQ2SEQ |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 37}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}


def pair(name: str, folder: Path, size: str = "small", **settings: Any) -> Twins:
    """A decoder of transformers and ours, with settings of its own."""
    torch.manual_seed(5)
    values = {**CONFIGS[name, size].to_dict(), **settings}
    return twins(getattr(T, name)(type(CONFIGS[name, size])(**values)), folder, noise=0.1)


def same(theirs: Any, folder: Path) -> bool:
    """Whether a folder means the same to both, by logits; `theirs` says by which class."""
    found = type(theirs).from_pretrained(folder).eval()
    ours = load_published(folder).model
    return difference(ours_of(ours, GIVEN), logits(found, GIVEN), GIVEN.layout.mask) < 1e-5


LABELS = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
ONE = {"id2label": {0: "score"}, "label2id": {"score": 0}}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (LABELS, None),
        (LABELS, "single_label_classification"),
        (LABELS, "multi_label_classification"),
        (LABELS, "regression"),
        (ONE, "multi_label_classification"),
        (ONE, "regression"),
    ],
)
def test_scores_are_those_of_the_pipeline(labels: dict[str, Any], problem: str | None, tmp_path: Path) -> None:
    """Softmax, a sigmoid for each label, or the number as it is: as problem_type says."""
    codec = train_codec("char", iter(["abc "]), special=("[PAD]", "[CLS]", "[SEP]"))
    torch.manual_seed(0)
    config = T.BertConfig(
        vocab_size=codec.vocab_size, max_position_embeddings=24, problem_type=problem, **TINY, **labels
    )
    theirs = T.BertForSequenceClassification(config)
    perturb(theirs.eval(), 0.3, 1)
    theirs.save_pretrained(tmp_path)
    codec.save(tmp_path)
    texts = ["abc", "c ab"]
    rows = [
        [codec.vocab_size - 2, *codec.encode(text), codec.vocab_size - 1] for text in texts
    ]  # [CLS] and [SEP] around it
    with torch.inference_mode():
        wanted = [theirs(torch.tensor([row])).logits[0] for row in rows]
    if problem == "multi_label_classification":
        wanted = [row.sigmoid() for row in wanted]
    elif problem != "regression":
        wanted = [row.softmax(-1) for row in wanted]
    names = ["value"] if labels is ONE and problem == "regression" else list(labels["label2id"])
    found = hw.load(tmp_path).classify(texts)
    assert found == [pytest.approx(dict(zip(names, row.tolist())), abs=1e-5) for row in wanted]
    assert [list(row) for row in found] == [sorted(row, key=lambda name: -row[name]) for row in found]


def test_images_are_scored_by_the_problem_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T.ViTConfig(image_size=8, patch_size=4, problem_type="multi_label_classification", **TINY, **LABELS)
    twins(T.ViTForImageClassification(config), tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    pixels = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8).numpy()
    model = hw.load(tmp_path)
    scaled = (torch.from_numpy(pixels).movedim(-1, 0).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        wanted = model.module.output("classes", scaled[None])[0].sigmoid()
    assert model.classify(pixels) == pytest.approx(dict(zip(LABELS["label2id"], wanted.tolist())), abs=1e-5)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma2ForCausalLM"])
def test_a_head_in_the_file_is_not_dropped_for_the_tied_one(name: str, tmp_path: Path) -> None:
    """transformers ties the two only if they are equal, or if the file has one."""
    made = pair(name, tmp_path / "a", tie_word_embeddings=True)
    table = made.theirs.get_input_embeddings().weight.detach()
    head = "embed_out.weight" if name.startswith("GPTNeoX") else "lm_head.weight"
    tensors = load_file(made.folder / "model.safetensors")
    other = copied(made.folder, tmp_path / "b", {**tensors, head: table.flip(0).contiguous()})
    config: Any = load_published(other).model.config
    assert config.tie == "none"
    assert same(made.theirs, other)
    equal = copied(made.folder, tmp_path / "c", {**tensors, head: table.clone()})
    assert load_published(equal).model.config == made.ours.config
    assert same(made.theirs, equal)


def with_tensor(theirs: Any, folder: Path, name: str, like: str) -> None:
    """Save `theirs` with one more tensor, which differs from the one `like` it."""
    perturb(theirs.eval(), 0.2, 1)
    theirs.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[like].flip(0).contiguous()}, folder / "model.safetensors", {"format": "pt"})


CONFIG = {"vocab_size": 37, "max_position_embeddings": 24}
DISTIL = {**CONFIG, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
SPEECH = {**SEQ2SEQ, **MARKS, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 9}
TIED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "bert": (
        lambda: T.BertForMaskedLM(T.BertConfig(**CONFIG, **TINY)),
        "cls.predictions.decoder.weight",
        "bert.embeddings.word_embeddings.weight",
    ),
    "the bias of bert": (
        lambda: T.BertForMaskedLM(T.BertConfig(**CONFIG, **TINY)),
        "cls.predictions.decoder.bias",
        "cls.predictions.bias",
    ),
    "roberta": (
        lambda: T.RobertaForMaskedLM(T.RobertaConfig(**CONFIG, **TINY)),
        "lm_head.decoder.weight",
        "roberta.embeddings.word_embeddings.weight",
    ),
    "distilbert": (
        lambda: T.DistilBertForMaskedLM(T.DistilBertConfig(**DISTIL)),
        "vocab_projector.weight",
        "distilbert.embeddings.word_embeddings.weight",
    ),
    "bart": (
        lambda: T.BartForConditionalGeneration(T.BartConfig(**SEQ2SEQ, **MARKS)),
        "model.encoder.embed_tokens.weight",
        "model.shared.weight",
    ),
    "marian": (
        lambda: T.MarianMTModel(T.MarianConfig(**SEQ2SEQ, **MARKS)),
        "lm_head.weight",
        "model.shared.weight",
    ),
    "whisper": (
        lambda: T.WhisperForConditionalGeneration(T.WhisperConfig(**SPEECH)),
        "proj_out.weight",
        "model.decoder.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("family", TIED)
def test_what_is_always_tied_here_and_differs_in_the_file_is_refused(family: str, tmp_path: Path) -> None:
    make_theirs, name, like = TIED[family]
    with_tensor(make_theirs(), tmp_path, name, like)
    with pytest.raises(UserError, match=f"{name} differs from the tensor that it is tied to"):
        load_published(tmp_path)


CAUSAL = sorted({name for name, size in CONFIGS if size == "small"})


@pytest.mark.parametrize("name", CAUSAL)
def test_attention_both_ways_is_theirs_or_refused_in_a_decoder(name: str, tmp_path: Path) -> None:
    theirs = make(name, "small")
    theirs.save_pretrained(tmp_path / "a")
    both = copied(tmp_path / "a", tmp_path / "b", is_causal=False)
    load_published(copied(tmp_path / "a", tmp_path / "c", is_causal=True))
    if not name.startswith(("GPT", "OpenAI")):
        assert same(theirs, both)
        ours, usage = load_published(both)
        save_published(ours, ours.config, tmp_path / "d", usage)
        assert same(theirs, tmp_path / "d")
        return
    with pytest.raises(UserError, match="is_causal is False, which is not supported; it may be True"):
        load_published(both)


def test_windows_of_smollm3_are_used_or_refused(tmp_path: Path) -> None:
    """transformers slides the layers that layer_types names, whatever use_sliding_window says."""
    made = pair("SmolLM3ForCausalLM", tmp_path / "a", use_sliding_window=True, sliding_window=5, layer_types=None)
    assert same(made.theirs, made.folder)
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    other = copied(made.folder, tmp_path / "b", layer_types=kinds)
    assert same(made.theirs, other)
    off = copied(made.folder, tmp_path / "c", layer_types=kinds, use_sliding_window=False)
    with pytest.raises(UserError, match="layer_types has 'sliding_attention', but there is no window"):
        load_published(off)
    plain = copied(made.folder, tmp_path / "d", layer_types=None, use_sliding_window=False)
    assert same(made.theirs, plain)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_codes_of_a_quantisation_are_not_read_as_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    make("LlamaForCausalLM", "small").save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    coded = {**tensors, name: (tensors[name] * 100).to(dtype)}
    with pytest.raises(UserError, match=rf"{name} has dtype {str(dtype).removeprefix('torch.')}, which only quant"):
        load_published(copied(tmp_path / "a", tmp_path / "b", coded))


SCALING = {"rope_type": "linear", "factor": 3.0}
MEANT: dict[str, tuple[str, dict[str, Any]]] = {
    "the old spelling of rotary scaling next to the new one": ("LlamaForCausalLM", {"rope_scaling": SCALING}),
    "a base inside the old spelling": (
        "LlamaForCausalLM",
        {"rope_parameters": None, "rope_scaling": {**SCALING, "rope_theta": 77.0}},
    ),
    "heads by their common name": ("GPT2LMHeadModel", {"num_attention_heads": 2}),
    "no switch for windows in gemma": ("Gemma2ForCausalLM", {"use_sliding_window": False}),
}


@pytest.mark.parametrize("case", MEANT)
def test_settings_mean_what_they_mean_to_transformers(case: str, tmp_path: Path) -> None:
    name, settings = MEANT[case]
    made = pair(name, tmp_path / "a")
    assert same(made.theirs, copied(made.folder, tmp_path / "b", **settings))


REFUSED: dict[str, tuple[str, Any]] = {
    "per_layer_config": ("LlamaForCausalLM", {"1": {"hidden_act": "relu"}}),
    "transformers_weights": ("LlamaForCausalLM", "other.safetensors"),
    "problem_type": ("LlamaForCausalLM", "ranking"),
    "head_dim": ("GPTNeoXForCausalLM", 4),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_transformers_heeds_and_headway_does_not_is_refused(key: str, tmp_path: Path) -> None:
    name, value = REFUSED[key]
    make(name, "small").save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=f"{key} is .*, which is not supported"):
        load_published(copied(tmp_path / "a", tmp_path / "b", **{key: value}))


def test_the_activation_that_t5_writes_beside_its_own_is_refused_if_it_differs(tmp_path: Path) -> None:
    config = T.T5Config(vocab_size=37, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values["dense_act_fn"] == "relu"
    load_published(tmp_path)
    path.write_text(json.dumps({**values, "dense_act_fn": "silu"}))
    with pytest.raises(UserError, match="dense_act_fn is 'silu', which is not supported; it may be 'relu'"):
        load_published(tmp_path)


def test_unknown_settings_are_reported_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make("LlamaForCausalLM", "small").save_pretrained(tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        load_published(tmp_path / "a")
    assert not caplog.records
    folder = copied(tmp_path / "a", tmp_path / "b", logit_scale=0.1, tomorrow=[1], rope_parameters=rope())
    with caplog.at_level(logging.WARNING):
        load_published(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'config.json'} has settings that are unknown for llama models: logit_scale, tomorrow; they "
        "are ignored, as in transformers"
    ]
