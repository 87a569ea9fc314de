"""BERT and its kin against transformers: outputs, every layer, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from twins import Batch, Twins, batch, check_export, check_gradients, difference, outputs_of, perturb, twins

from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import can_express, load_published, save_published
from headway.nn.mixers import AttentionConfig
from headway.nn.models import PooledHeadConfig, TokenInputs
from headway.nn.models.presets import preset
from headway.visibility import Full, Local

T = pytest.importorskip("transformers")
TOLERANCE = 1e-5
LENGTHS = [14, 9, 1, 11]

BERT: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "large": {
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "intermediate_size": 56,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
        "type_vocab_size": 3,
        "classifier_dropout": 0.3,
        "hidden_dropout_prob": 0.2,
    },
}
DISTIL: dict[str, dict[str, Any]] = {
    "small": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "large": {"dim": 40, "n_layers": 3, "n_heads": 5, "hidden_dim": 56, "activation": "relu", "dropout": 0.3},
}
MODERN: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24},
    "large": {
        "hidden_size": 40,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "intermediate_size": 56,
        "norm_bias": True,
        "norm_eps": 1e-3,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "classifier_pooling": "mean",
        "classifier_activation": "relu",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
    },
}
# In addition to BERT's, except what is not a setting there.
ELECTRA: dict[str, dict[str, Any]] = {"small": {"embedding_size": 12}, "large": {"embedding_size": 24}}
DEBERTA: dict[str, dict[str, Any]] = {
    "small": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8}
    | {"norm_rel_ebd": "layer_norm", "position_biased_input": False},
    "large": {"relative_attention": True, "pos_att_type": "c2p", "conv_kernel_size": 3, "max_relative_positions": 5}
    | {"conv_act": "gelu", "attention_head_size": 8, "cls_dropout": 0.2, "pooler_hidden_act": "relu"},
}
ESM: dict[str, dict[str, Any]] = {
    "small": {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 5},
    "large": {"emb_layer_norm_before": True},
}
ROTARY: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "hidden_act": "gelu"},
}
EUROBERT: dict[str, dict[str, Any]] = {
    "small": {"num_key_value_heads": 1, "classifier_pooling": "late"},
    "large": {
        "mlp_bias": True,
        "attention_bias": True,
        "rms_norm_eps": 1e-3,
        "classifier_pooling": "bos",
        "tie_word_embeddings": True,
    },
}
SYMBOLS = {"small": 53, "large": 97}


def config(stem: str, size: str) -> Any:
    """A configuration of transformers; `stem` begins the names of its classes."""
    common = {"vocab_size": SYMBOLS[size], "max_position_embeddings": 24}
    labels = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
    if stem == "DistilBert":
        return T.DistilBertConfig(**common, **labels, **DISTIL[size], pad_token_id=0)
    if stem == "ModernBert":
        common |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        own = {**MODERN[size], "local_attention": 6}
        own |= {"layer_types": own["layer_types"][: own["num_hidden_layers"]]} if "layer_types" in own else {}
        return T.ModernBertConfig(**common, **labels, **own)
    if stem == "MPNet":
        own = {name: value for name, value in BERT[size].items() if name != "type_vocab_size"}
        return T.MPNetConfig(**common, **labels, **own)
    if stem == "Electra":
        return T.ElectraConfig(**common, **labels, **BERT[size], **ELECTRA[size])
    if stem == "Albert":
        own = {name: value for name, value in BERT[size].items() if name != "classifier_dropout"}
        return T.AlbertConfig(**common, **labels, **own, **ELECTRA[size])
    if stem == "DebertaV2":
        own = {name: value for name, value in BERT[size].items() if name != "classifier_dropout"}
        return T.DebertaV2Config(**common, **labels, **own, **DEBERTA[size])
    if stem == "Esm":
        own = {name: value for name, value in BERT[size].items() if name not in ("hidden_act", "type_vocab_size")}
        own.pop("classifier_dropout", None)
        return T.EsmConfig(**common, **labels, **own, **ESM[size], pad_token_id=1)
    if stem in ("NomicBert", "Gte"):
        return getattr(T, f"{stem}Config")(**common, **labels, **{**BERT[size], **ROTARY[size], "pad_token_id": 0})
    if stem == "EuroBert":
        own = {name: BERT[size][name] for name in BERT["small"]}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
        return T.EuroBertConfig(**common, **labels, **own, **EUROBERT[size], **tokens)
    pad = {"Bert": 0, "Roberta": 1, "XLMRoberta": 3 if size == "large" else 1}[stem]
    return getattr(T, f"{stem}Config")(**common, **labels, **BERT[size], pad_token_id=pad)


def model(stem: str, head: str, size: str) -> Any:
    cls = getattr(T, stem + head.removesuffix("-bare"))
    torch.manual_seed(0)
    settings = config(stem, size)
    if head == "ForQuestionAnswering" or (stem, head) == ("Albert", "ForPreTraining"):
        settings.num_labels = 2  # the start and the end of an answer, or two orders
    return cls(settings, add_pooling_layer=False) if head.endswith("-bare") else cls(settings)


def again(stem: str, head: str) -> Callable[[Path], Any]:
    cls = getattr(T, stem + head.removesuffix("-bare"))
    options = {"add_pooling_layer": False} if head.endswith("-bare") else {}
    return lambda folder: cls.from_pretrained(folder, **options)


def layers_of(theirs: Any) -> Any:
    base = theirs.base_model
    if theirs.config.model_type == "albert":
        return base.encoder.albert_layer_groups[0].albert_layers  # one, called for each layer
    if getattr(getattr(base, "encoder", None), "conv", None) is not None:  # DeBERTa's, next to the first layer
        return [base.encoder.conv, *base.encoder.layer[1:]]
    return base.layers if hasattr(base, "layers") else (getattr(base, "encoder", None) or base.transformer).layer


def inputs(theirs: Any) -> tuple[Batch, dict[str, Tensor], TokenInputs | Tensor]:
    """A ragged batch for transformers and for us, with token types where there are any."""
    b = batch(LENGTHS, theirs.config.vocab_size, theirs.config.pad_token_id)
    kinds = getattr(theirs.config, "type_vocab_size", 0)
    if not kinds:
        return b, {"input_ids": b.ids, "attention_mask": b.mask}, b.ids
    types = torch.randint(0, kinds, b.ids.shape, generator=torch.Generator().manual_seed(5))
    return b, {"input_ids": b.ids, "attention_mask": b.mask, "token_type_ids": types}, TokenInputs(b.ids, types)


NEW = ("Albert", "DebertaV2", "Esm", "NomicBert", "Gte", "EuroBert")
CASES = [
    *((stem, head) for stem in ("Bert", "Roberta", "XLMRoberta") for head in ("Model", "Model-bare")),
    *((stem, "Model") for stem in ("DistilBert", "ModernBert", "MPNet", "Electra", *NEW)),
    *(
        (stem, head)
        for stem in ("Bert", "Roberta", "XLMRoberta", "DistilBert", "ModernBert", "MPNet", "Electra", *NEW)
        for head in ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
    ),
    *(
        (stem, "ForQuestionAnswering")
        for stem in ("Bert", "Roberta", "XLMRoberta", "DistilBert", "MPNet", "Electra", "DebertaV2", "Albert")
    ),
    ("Bert", "ForPreTraining"),
    ("Electra", "ForPreTraining"),
    ("Albert", "ForPreTraining"),
    ("Bert", "ForNextSentencePrediction"),
]
# What we call the outputs of transformers.
HEADS = {
    "ForQuestionAnswering": {"span": "start_logits"},
    "ForMaskedLM": {"vocabulary": "logits"},
    "ForSequenceClassification": {"classes": "logits"},
    "ForTokenClassification": {"tags": "logits"},
    "ForPreTraining": {"vocabulary": "prediction_logits", "next": "seq_relationship_logits"},
    "ForNextSentencePrediction": {"next": "logits"},
}


def heads_of(stem: str, head: str) -> dict[str, str]:
    if (stem, head) == ("Electra", "ForPreTraining"):
        return {"replaced": "logits"}
    if (stem, head) == ("Albert", "ForPreTraining"):
        return {"vocabulary": "prediction_logits", "next": "sop_logits"}
    pooled = head == "Model" and stem in ("Albert", "Bert", "Roberta", "XLMRoberta", "MPNet", "Esm")
    return HEADS.get(head, {"pooled": "pooler_output"} if pooled else {})


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("stem", "head"), CASES)
def test_every_layer_and_output_is_theirs_and_so_is_the_export(stem: str, head: str, size: str, tmp_path: Path) -> None:
    pair = twins(model(stem, head, size), tmp_path / "theirs")
    b, given, ours_given = inputs(pair.theirs)
    keep = b.layout.mask
    said: dict[str, Any] = {}
    theirs = outputs_of(layers_of(pair.theirs), lambda: said.update(pair.theirs(**given)))
    ours = outputs_of(list(dict.fromkeys(pair.ours.stack.blocks)), lambda: pair.ours(ours_given, b.layout))
    assert len(ours) == len(theirs)
    for i, (a, c) in enumerate(zip(theirs, ours)):
        assert difference(a, c, keep) < TOLERANCE, f"layer {i}"
    assert set(pair.ours.heads) == set(heads_of(stem, head))
    with torch.inference_mode():
        if "last_hidden_state" in said:
            assert difference(said["last_hidden_state"], pair.ours(ours_given, b.layout).x, keep) < TOLERANCE
        for name, field in heads_of(stem, head).items():
            answer = pair.ours.output(name, ours_given, b.layout)
            if name == "replaced":
                answer = answer[..., 0]
                assert difference(said[field], answer, keep) < TOLERANCE
                continue
            if name == "span":  # transformers splits it
                said[field] = torch.stack([said["start_logits"], said["end_logits"]], -1)
            assert difference(said[field], answer, keep if answer.dim() == 3 else None) < TOLERANCE, name
    first = next(iter(heads_of(stem, head).values()), "last_hidden_state")

    def back(folder: Path) -> Any:
        loaded = again(stem, head)(folder)
        if stem == "Esm":  # its head for contacts is not read
            loaded.base_model.contact_head.load_state_dict(pair.theirs.base_model.contact_head.state_dict())
        return loaded

    check_export(pair, back, lambda m: m(**given)[first], tmp_path)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("stem", "head"), [(stem, head) for stem, head in CASES if head == "ForMaskedLM"])
def test_gradients(stem: str, head: str, size: str, tmp_path: Path) -> None:
    pair = twins(model(stem, head, size), tmp_path / "theirs")
    b, given, ours_given = inputs(pair.theirs)
    check_gradients(
        pair,
        lambda peer: peer(**given).logits[b.layout.mask],
        lambda mine: mine.output("vocabulary", ours_given, b.layout)[b.layout.mask],
        tmp_path / "gradients",
    )


def tiny(head: str = "ForMaskedLM", **settings: Any) -> Any:
    torch.manual_seed(0)
    found = getattr(T, f"Bert{head}")(T.BertConfig(**{**config("Bert", "small").to_dict(), **settings})).eval()
    perturb(found, 0.2, 1)
    return found


def logits(pair_or_model: Any, b: Batch) -> Tensor:
    with torch.inference_mode():
        return pair_or_model.output("vocabulary", b.ids, b.layout)


def test_gelu_is_the_one_that_the_settings_name(tmp_path: Path) -> None:
    """Exact and approximate GELU are near enough for a wrong one to go unseen at a loose tolerance."""
    found = {}
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu"):
        theirs = tiny(hidden_act=name)
        theirs.save_pretrained(tmp_path / name)
        b, _, _ = inputs(theirs)
        with torch.inference_mode():
            wanted = theirs(input_ids=b.ids, attention_mask=b.mask).logits
        found[name] = logits(load_published(tmp_path / name).model, b)
        assert difference(wanted, found[name], b.layout.mask) < TOLERANCE
    assert torch.equal(found["gelu_new"], found["gelu_pytorch_tanh"])
    assert difference(found["gelu"], found["gelu_new"]) > 2 * TOLERANCE


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_positions_of_roberta_follow_that_of_the_padding(pad: int, tmp_path: Path) -> None:
    theirs = T.RobertaModel(T.RobertaConfig(**{**config("Roberta", "small").to_dict(), "pad_token_id": pad}))
    pair = twins(theirs, tmp_path)
    assert pair.ours.config.context == 24 - (pad + 1)
    pair.ours.embed.positions.table.data[: pad + 1] = torch.nan  # rows that no token has
    b, given, ours_given = inputs(theirs)
    with torch.inference_mode():
        wanted = theirs(**given).last_hidden_state
        assert difference(wanted, pair.ours(ours_given, b.layout).x, b.layout.mask) < TOLERANCE


def rewritten(theirs: Any, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The saved model with other names or tensors."""
    theirs.save_pretrained(folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def test_old_names_of_norms_and_saved_position_numbers_are_read(tmp_path: Path) -> None:
    theirs = tiny()

    def age(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in names.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        return {**tensors, "bert.embeddings.position_ids": torch.arange(24)[None]}

    ours = load_published(rewritten(theirs, tmp_path, age)).model
    b, _, _ = inputs(theirs)
    with torch.inference_mode():
        wanted = theirs(input_ids=b.ids, attention_mask=b.mask).logits
    assert difference(wanted, logits(ours, b), b.layout.mask) < TOLERANCE


@pytest.mark.parametrize("stem", ["Bert", "Roberta", "DistilBert", "ModernBert", "MPNet"])
def test_the_prefix_of_the_base_model_may_be_there_or_not(stem: str, tmp_path: Path) -> None:
    theirs = model(stem, "Model", "small")
    prefix = theirs.base_model_prefix

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

    theirs.save_pretrained(tmp_path / "without")
    without = load_published(tmp_path / "without").model
    prefixed = load_published(rewritten(theirs, tmp_path / "with", change)).model
    for (name, a), (other, c) in zip(without.state_dict().items(), prefixed.state_dict().items()):
        assert name == other
        assert torch.equal(a, c), name


def test_a_masked_model_whose_file_holds_all_of_pre_training_keeps_it(tmp_path: Path) -> None:
    """As Google's files do: they say BertForMaskedLM, and the pooler and the next-sentence head are there too."""
    theirs = tiny("ForPreTraining")
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "architectures": ["BertForMaskedLM"]}))
    ours, usage = load_published(tmp_path)
    assert set(ours.heads) == {"vocabulary", "next"}
    save_published(ours, ours.config, tmp_path / "out", usage)
    back = T.BertForPreTraining.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, c) for a, c in zip(theirs.state_dict().values(), back.state_dict().values()))


def test_tied_heads_are_saved_once_and_copies_are_read(tmp_path: Path) -> None:
    theirs = tiny()
    assert theirs.cls.predictions.decoder.weight is theirs.bert.embeddings.word_embeddings.weight

    def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        table, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
        return {**tensors, "cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": bias}

    ours, usage = load_published(rewritten(theirs, tmp_path / "copies", copies))
    save_published(ours, ours.config, tmp_path / "out", usage)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in saved
    unique = {id(p): p.numel() for p in theirs.parameters()}
    assert sum(tensor.numel() for tensor in saved.values()) == sum(unique.values())


def test_modernbert_has_local_layers_two_rotary_bases_and_no_first_norm(tmp_path: Path) -> None:
    ours = twins(model("ModernBert", "ForMaskedLM", "small"), tmp_path).ours
    blocks = ours.config.stack.blocks
    mixers = [block.mixer for block in blocks]
    assert all(isinstance(mixer, AttentionConfig) for mixer in mixers)
    assert [mixer.pattern for mixer in mixers] == [Full(), Local(3), Local(3), Full()]
    assert [mixer.rotary.theta for mixer in mixers] == [160000.0, 10000.0, 10000.0, 160000.0]
    assert [block.mixer_norm for block in blocks] == [False, True, True, True]
    assert isinstance(ours.stack.blocks[0].mix.before, torch.nn.Identity)


def test_modernbert_by_its_older_settings(tmp_path: Path) -> None:
    theirs = model("ModernBert", "ForMaskedLM", "small")
    new = twins(theirs, tmp_path).ours
    settings = json.loads((tmp_path / "config.json").read_text())
    for name in ("layer_types", "rope_parameters"):
        del settings[name]
    settings |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    old, usage = load_published(tmp_path)
    assert old.config == new.config
    save_published(old, old.config, tmp_path / "out", usage)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "global_rope_theta" not in written
    assert written["rope_parameters"]["full_attention"]["rope_theta"] == 160000.0


@pytest.mark.parametrize(
    ("name", "family", "settings"),
    [
        ("bert-base", "bert", {}),
        ("bert-large", "bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
        ("roberta-base", "roberta", {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
        ("modernbert-base", "modernbert", {}),
    ],
)
def test_presets_are_the_published_configurations(name: str, family: str, settings: dict[str, Any]) -> None:
    """Where nothing is said, the settings of transformers are those of the base models."""
    known, ours = families()[family], preset(name)
    assert can_express(known, ours)
    written = known.write(ours)
    theirs = T.AutoConfig.for_model(family, **settings).to_dict()
    theirs |= {"intermediate_size": 4096} if name == "bert-large" else {}
    for key in written.keys() & theirs.keys() - {"architectures", "pad_token_id", "position_embedding_type"}:
        assert written[key] == theirs[key], key


def test_names_of_classes_travel_and_their_number_is_the_models(tmp_path: Path) -> None:
    pair: Twins = twins(model("Bert", "ForSequenceClassification", "small"), tmp_path / "theirs")
    assert pair.usage.labels == ("no", "yes", "perhaps")
    save_published(pair.ours, pair.ours.config, tmp_path / "same", pair.usage)
    assert json.loads((tmp_path / "same" / "config.json").read_text())["label2id"] == {"no": 0, "yes": 1, "perhaps": 2}
    wider = replace(pair.ours.config.heads["classes"], outputs=5)
    changed = replace(pair.ours.config, heads={"classes": wider})
    save_published(changed.build(), changed, tmp_path / "wider", replace(pair.usage, labels=tuple("abcde")))
    back = T.BertForSequenceClassification.from_pretrained(tmp_path / "wider")
    assert back.config.id2label == dict(enumerate("abcde"))
    assert back.classifier.weight.shape[0] == 5


@pytest.mark.parametrize("stem", ["Bert", "Roberta", "DistilBert", "ModernBert", "MPNet"])
def test_a_regression_in_its_own_unit_is_exported(stem: str, tmp_path: Path) -> None:
    pair = twins(model(stem, "ForSequenceClassification", "small"), tmp_path / "theirs")
    head = replace(pair.ours.config.heads["classes"], outputs=1, scale=25.0, shift=1000.0)
    config = replace(pair.ours.config, heads={"number": head})
    ours = config.build().eval()
    perturb(ours, 0.2, 3)
    save_published(ours, config, tmp_path / "out", pair.usage.with_problem_type("regression"))
    back = T.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert (back.config.problem_type, back.config.num_labels) == ("regression", 1)
    b, given, ours_given = inputs(back)
    with torch.inference_mode():
        expected = ours.output("number", ours_given, b.layout)
        torch.testing.assert_close(back(**given).logits, expected, rtol=1e-5, atol=1e-3)
        read = load_published(tmp_path / "out")
        torch.testing.assert_close(read.model.output("classes", ours_given, b.layout), expected, rtol=1e-5, atol=1e-3)
    assert read.usage.problem == "regression"


def test_thresholds_of_labels_travel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = twins(model("Bert", "ForSequenceClassification", "small"), tmp_path / "theirs")
    usage = pair.usage.with_problem_type("multi_label_classification", pair.usage.labels)
    usage = replace(usage, thresholds=(0.2, 0.5, 0.75))
    save_published(pair.ours, pair.ours.config, tmp_path / "out", usage)
    back = T.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert back.config.problem_type == "multi_label_classification"
    assert back.config.thresholds == [0.2, 0.5, 0.75]
    read = load_published(tmp_path / "out").usage
    assert read.decisions == {"no": 0.2, "yes": 0.5, "perhaps": 0.75}
    assert "thresholds" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"vocab_size": 54}, "config.json does not match the weights"),
        ({"num_hidden_layers": 3}, r"lacks tensor 'bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, r"has unknown tensor 'bert.encoder.layer.1"),
    ],
)
def test_what_cannot_be_computed_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **settings}))
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


def test_a_classifier_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    T.BertForMultipleChoice(config("Bert", "small")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"BertForMultipleChoice.*ForSequenceClassification"):
        load_published(tmp_path)


def test_a_head_that_no_class_has_is_not_exported(tmp_path: Path) -> None:
    pair = twins(model("Bert", "Model", "small"), tmp_path / "theirs")
    odd = replace(pair.ours.config, heads={"classes": PooledHeadConfig(3, pool="mean")})
    with pytest.raises(UserError, match="cannot be saved as a published bert model: "):
        save_published(odd.build(), odd, tmp_path / "out", pair.usage)
