"""Sentence encoders in the layout of sentence-transformers, made up and real."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from twins import Batch, batch, difference, twins

from headway.errors import UserError
from headway.formats.published import load_published, save_published
from headway.layout import Layout
from headway.nn.models import PooledHeadConfig

T = pytest.importorskip("transformers")
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
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
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    listed = [
        {"idx": i, "name": str(i), "path": paths.get(kind, f"{i}_{kind}"), "type": TYPES + kind}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def flags(*chosen: str) -> dict[str, bool]:
    return {f"pooling_mode_{name}": name in chosen for name in FLAGS}


def pooled(x: Tensor, b: Batch, how: str) -> Tensor:
    """By the definitions, row by row."""
    found = []
    for row, length in zip(x, b.layout.lengths.tolist()):
        tokens = row[:length]
        found.append({"first": tokens[0], "last": tokens[-1], "mean": tokens.mean(0)}[how])
    return torch.stack(found)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        (flags("mean_tokens"), "mean"),
        (flags("cls_token"), "first"),
        (flags("lasttoken"), "last"),
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
        (flags("max_tokens"), ("Transformer", "Pooling"), "pools by pooling_mode_max_tokens"),
        (flags("mean_tokens", "cls_token"), ("Transformer", "Pooling"), "one of mean, cls, lasttoken"),
        (flags(), ("Transformer", "Pooling"), "pools by nothing"),
        ({"pooling_mode": "max"}, ("Transformer", "Pooling"), "pools by max"),
        (flags("mean_tokens"), ("Transformer", "Pooling", "Dense"), "Transformer, Pooling, Dense, which is not supp"),
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


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    encoder(tmp_path)
    write(tmp_path, flags("mean_tokens"))
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[1]["path"] = "../1_Pooling"
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
    assert load_published(tmp_path).model.config == ours.config
