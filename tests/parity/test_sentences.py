"""Sentence encoders in the layout of sentence-transformers, made up and real."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from twins import Batch, batch, difference, twins

import headway as hw
from headway.errors import UserError
from headway.formats.published import load_published, published_config, save_published
from headway.layout import Layout
from headway.nn.models import PooledHeadConfig

T = pytest.importorskip("transformers")
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
TYPES = "sentence_transformers.models."


def encoder(folder: Path) -> Any:
    torch.manual_seed(0)
    config = T.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return twins(T.BertModel(config), folder).theirs


def write(
    folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")
) -> None:
    """The files beside a transformer's that make it a sentence encoder."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "LogitScore": "1_LogitScore"}
    listed = [
        {"idx": i, "name": str(i), "path": paths.get(kind, f"{i}_{kind}"), "type": TYPES + kind}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def flags(*chosen: str) -> dict[str, bool]:
    return {f"pooling_mode_{name}": name in chosen for name in FLAGS}


def pooled(x: Tensor, b: Batch, how: str, skip: int = 0) -> Tensor:
    """By the definitions, row by row."""
    found = []
    for row, length in zip(x, b.layout.lengths.tolist()):
        tokens, weights = row[skip:length], torch.arange(skip + 1, length + 1)[:, None]
        found.append(
            {
                "first": row[0],
                "last": tokens[-1],
                "mean": tokens.mean(0),
                "max": tokens.max(0).values,
                "mean_sqrt": tokens.sum(0) / len(tokens) ** 0.5,
                "weighted_mean": (tokens * weights).sum(0) / weights.sum(),
            }[how]
        )
    return torch.stack(found)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        (flags("mean_tokens"), "mean"),
        (flags("cls_token"), "first"),
        (flags("lasttoken"), "last"),
        (flags("max_tokens"), "max"),
        (flags("mean_sqrt_len_tokens"), "mean_sqrt"),
        (flags("weightedmean_tokens"), "weighted_mean"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ],
)
def test_pooling_is_as_the_files_say(pooling: dict[str, Any], how: str, unit: bool, tmp_path: Path) -> None:
    theirs = encoder(tmp_path)
    write(tmp_path, pooling, ("Transformer", "Pooling", "Normalize") if unit else ("Transformer", "Pooling"))
    ours, usage = load_published(tmp_path)
    b = batch([9, 4, 1], 50)
    with torch.inference_mode():
        wanted = pooled(theirs(b.ids, attention_mask=b.mask).last_hidden_state, b, how)
        wanted = wanted / wanted.norm(dim=-1, keepdim=True) if unit else wanted
        assert difference(wanted, ours.output("embedding", b.ids, b.layout)) < 1e-5
        save_published(ours, ours.config, tmp_path / "out", usage)
        back = load_published(tmp_path / "out").model
        assert back.config == ours.config
        assert difference(wanted, back.output("embedding", b.ids, b.layout)) < 1e-5
    again = T.BertModel.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, c) for a, c in zip(theirs.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        (flags("mean_tokens", "cls_token"), ("Transformer", "Pooling"), "one of cls, mean, max"),
        (flags(), ("Transformer", "Pooling"), "pools by nothing"),
        ({"pooling_mode": "median"}, ("Transformer", "Pooling"), "pools by median"),
        ({"pooling_mode": ["mean", "cls"]}, ("Transformer", "Pooling"), "pools by .'mean', 'cls'., which is not"),
        (flags("mean_tokens"), ("Transformer", "Pooling", "LSTM"), "Transformer, Pooling, LSTM, which is not supp"),
        (flags("mean_tokens"), ("Transformer", "Pooling", "Normalize", "Dense"), "which is not supported"),
        (flags("mean_tokens"), ("Transformer", "Pooling", "Dense"), "2_Dense/config.json"),
        (flags("mean_tokens"), ("Pooling",), "lists Pooling"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    pooling: dict[str, Any], kinds: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    encoder(tmp_path)
    write(tmp_path, pooling, kinds)
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def write_dense(folder: Path, layer: torch.nn.Linear, activation: str) -> None:
    folder.mkdir()
    settings = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    (folder / "config.json").write_text(json.dumps({**settings, "activation_function": activation}))
    save_file(
        {f"linear.{name}": tensor.detach() for name, tensor in layer.named_parameters()}, folder / "model.safetensors"
    )


def test_dense_layers_follow_the_pooling_and_are_written_back(tmp_path: Path) -> None:
    theirs, b = encoder(tmp_path), batch([9, 4, 1], 50)
    first, second = torch.nn.Linear(16, 24), torch.nn.Linear(24, 5, bias=False)
    for layers in ([first], [first, second]):
        folder = tmp_path / str(len(layers))
        shutil.copytree(tmp_path, folder, ignore=lambda *_: ["1", "2"])
        write(folder, flags("mean_tokens"), ("Transformer", "Pooling", *["Dense"] * len(layers), "Normalize"))
        for number, (layer, activation) in enumerate(zip(layers, (TANH, IDENTITY)), 2):
            write_dense(folder / f"{number}_Dense", layer, activation)
        ours, usage = load_published(folder)
        with torch.inference_mode():
            wanted = first(pooled(theirs(b.ids, attention_mask=b.mask).last_hidden_state, b, "mean")).tanh()
            wanted = torch.nn.functional.normalize(second(wanted) if len(layers) == 2 else wanted, dim=-1)
            assert difference(wanted, ours.output("embedding", b.ids, b.layout)) < 1e-5
            save_published(ours, ours.config, folder / "out", usage)
            again = load_published(folder / "out").model
            assert again.config == ours.config == published_config(folder)
            assert difference(wanted, again.output("embedding", b.ids, b.layout)) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function is"),
        ({"in_features": 8}, "maps 8 features to 24; it should map 16"),
        ({"out_features": 0}, "maps 16 features to 0"),
        ({"out_features": 20}, "of shape"),
        ({"out_features": 1 << 20}, "of shape"),
        ({"out_features": 1 << 60}, "it should map 16 to 1 to 1,048,576"),
        ({"bias": False}, "unknown tensor 'linear.bias'"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    encoder(tmp_path)
    write(tmp_path, flags("mean_tokens"), ("Transformer", "Pooling", "Dense"))
    write_dense(tmp_path / "2_Dense", torch.nn.Linear(16, 24), TANH)
    path = tmp_path / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    encoder(tmp_path)
    write(tmp_path, flags("mean_tokens"))
    listed = json.loads((tmp_path / "modules.json").read_text())
    for path in ("../1_Pooling", "..", ""):
        listed[1]["path"] = path
        (tmp_path / "modules.json").write_text(json.dumps(listed))
        with pytest.raises(UserError, match="not a subfolder"):
            load_published(tmp_path)


def test_an_embedding_with_weights_is_not_exported_as_one_without(tmp_path: Path) -> None:
    encoder(tmp_path)
    ours, usage = load_published(tmp_path)
    wide = replace(ours.config, heads={"embedding": PooledHeadConfig(8, pool="mean", unit=True)})
    with pytest.raises(UserError, match="the layout of sentence-transformers cannot express"):
        save_published(wide.build(), wide, tmp_path / "out", usage)
    assert not (tmp_path / "out").exists()


def sentences(data_dir: Path) -> list[str]:
    """Real ones, short and long."""
    with gzip.open(data_dir / "translation" / "multi30k-val.en.gz", "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file][:24]
    return [*lines, "Yes.", " ".join(lines[:8])]


def tokenized(folder: Path, texts: list[str]) -> Batch:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [each.ids for each in tokenizer.encode_batch(texts)]
    layout = Layout.padded([len(row) for row in ids])
    rows = torch.tensor([[*row, *[0] * (layout.length - len(row))] for row in ids])
    return Batch(rows, layout.mask.long(), layout)


def test_minilm_embeds_as_transformers_does(minilm: Path, data_dir: Path) -> None:
    ours, usage = load_published(minilm)
    assert usage.family == "bert"
    assert ours.config.heads["embedding"] == PooledHeadConfig(pool="mean", unit=True)
    theirs = T.BertModel.from_pretrained(minilm).eval()
    b = tokenized(minilm, sentences(data_dir))
    with torch.inference_mode():
        x = theirs(b.ids, attention_mask=b.mask).last_hidden_state
        mask = b.mask[..., None]
        wanted = torch.nn.functional.normalize((x * mask).sum(1) / mask.sum(1), dim=-1)
        found = ours.output("embedding", b.ids, b.layout)
    assert found.shape == (26, 384)
    assert float((found - wanted).abs().max()) < 1e-5


LENGTHS = (10, 100, 255, 256, 257, 400, 512, 600)  # tokens, special ones included


def long_texts(minilm: Path, data_dir: Path) -> list[str]:
    """Texts with `LENGTHS` tokens, made of words that are one token each."""
    vocabulary = Tokenizer.from_file(str(minilm / "tokenizer.json")).get_vocab()
    words = [word for text in sentences(data_dir) for word in text.lower().split() if word in vocabulary]
    return [" ".join((words * 9)[: length - 2]) for length in LENGTHS]


def as_sentence_transformers(minilm: Path, texts: list[str], skip: int = 0) -> Tensor:
    """Tokens cut to max_seq_length, the mean over them, and unit length, by transformers alone."""
    tokenizer, theirs = T.AutoTokenizer.from_pretrained(minilm), T.BertModel.from_pretrained(minilm).eval()
    longest = json.loads((minilm / "sentence_bert_config.json").read_text())["max_seq_length"]
    inputs = tokenizer(texts, padding=True, truncation="longest_first", max_length=longest, return_tensors="pt")
    mask = inputs["attention_mask"][..., None].clone()
    mask[:, :skip] = 0
    with torch.inference_mode():
        x = theirs(**inputs).last_hidden_state
    return torch.nn.functional.normalize((x * mask).sum(1) / mask.sum(1), dim=-1)


def test_minilm_cuts_long_texts_where_sentence_transformers_does(minilm: Path, data_dir: Path) -> None:
    model, texts = hw.load(minilm), long_texts(minilm, data_dir)
    wanted = as_sentence_transformers(minilm, texts)
    assert float((model.embed(texts, truncate=True) - wanted).abs().max()) < 1e-5
    short = [text for text, length in zip(texts, LENGTHS) if length <= 256]
    assert float((model.embed(short) - wanted[: len(short)]).abs().max()) < 1e-5
    with pytest.raises(UserError, match="text 5 has 257 tokens, but the model reads at most 256"):
        model.embed(texts)


@pytest.mark.parametrize("include", [True, False])
def test_prompts_come_before_texts(include: bool, minilm: Path, data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    prompts = {"query": "Find what answers: ", "document": ""}
    settings = {"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": include}))
    model, texts = hw.load(folder), sentences(data_dir)[:5]
    wanted = as_sentence_transformers(folder, [prompts["query"] + text for text in texts], 0 if include else 5)
    plain = as_sentence_transformers(folder, texts)
    assert float((model.embed(texts, prompt="query") - wanted).abs().max()) < 1e-5
    assert float((model.embed(texts) - wanted).abs().max()) < 1e-5
    assert float((model.embed(texts, prompt="document") - plain).abs().max()) < 1e-5
    with pytest.raises(UserError, match="has no prompt 'passage'; choose from: document, query"):
        model.embed(texts, prompt="passage")
    hw.export(folder, tmp_path / "out")
    again = hw.load(tmp_path / "out")
    assert again.usage.sentence == model.usage.sentence
    assert torch.equal(again.embed(texts), model.embed(texts))


def test_a_model_without_prompts_and_a_prompt_that_is_missing(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt 'query'; it has no prompts"):
        hw.load(minilm).embed("a", prompt="query")
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}, "default_prompt_name": "query"}')
    with pytest.raises(UserError, match="default_prompt_name is 'query'"):
        hw.load(folder)


def test_texts_are_lower_cased_and_stripped_as_the_files_say(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = hw.load(folder)
    assert not torch.equal(model.embed("Berlin"), model.embed("berlin"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    lower = hw.load(folder)
    assert torch.equal(lower.embed(" Berlin\n"), model.embed("berlin"))


def test_minilm_knows_what_means_the_same(minilm: Path) -> None:
    ours = load_published(minilm).model
    b = tokenized(
        minilm, ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."]
    )
    with torch.inference_mode():
        x = ours.output("embedding", b.ids, b.layout)
    likeness = x @ x.T
    assert float(likeness[0, 1]) > 0.4 > float(likeness[0, 2]) + 0.2


def test_minilm_is_given_back_as_it_came(minilm: Path, tmp_path: Path) -> None:
    ours, usage = load_published(minilm)
    save_published(ours, ours.config, tmp_path, usage)
    back, theirs = T.BertModel.from_pretrained(tmp_path), T.BertModel.from_pretrained(minilm)
    assert all(torch.equal(a, c) for a, c in zip(theirs.state_dict().values(), back.state_dict().values()))
    again, usage_again = load_published(tmp_path)
    assert again.config == ours.config
    assert usage_again.sentence == usage.sentence
    assert usage.sentence.max_length == 256
