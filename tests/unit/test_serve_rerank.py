"""Documents by their relevance: as transformers computes it, from Python, the command line and over HTTP."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from serving import server
from starlette.testclient import TestClient

import headway as hw
from headway.app.cli.main import main
from headway.codecs import train_codec
from headway.config import override
from headway.errors import UserError
from headway.formats.native import save_model
from headway.nn.models import PooledHeadConfig, build
from headway.nn.models.presets import preset
from headway.serve.app import create_app
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels

QUERY = "how are pearls made in the sea"
DOCUMENTS = ["oysters make them", "a car needs fuel", "how are pearls made", "the sea is deep and cold and wide", "no"]
WORDS = sorted({word for text in (QUERY, *DOCUMENTS) for word in text.split()})


def published(folder: Path, kind: str) -> Path:
    """A small cross-encoder as transformers saves one."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names: Any = {word: place for place, word in enumerate([*special, *WORDS])}
    torch.manual_seed(5)
    size = {"vocab_size": len(names), "num_labels": 1, "pad_token_id": 0}
    if kind == "distilbert":
        config: Any = T.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=24, **size
        )
        model: Any = T.DistilBertForSequenceClassification(config)
    else:
        size |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = T.BertConfig(max_position_embeddings=24, **size)
        model = T.BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4
    model.eval().save_pretrained(folder)
    T.BertTokenizer(names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    place = tmp_path_factory.mktemp("zoo")
    for kind in ("bert", "distilbert"):
        published(place / kind, kind)
    (place / "minilm").symlink_to(minilm)
    return place


@pytest.fixture(scope="module")
def client(zoo: Path) -> Iterator[TestClient]:
    models = ServedModels([], [zoo], LoadOptions(device="cpu"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://localhost") as found:
        yield found


def by_transformers(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    model = T.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = T.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(*map(list, zip(*pairs)), padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits[:, 0].sigmoid().tolist()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_scores_are_those_of_transformers(zoo: Path, kind: str) -> None:
    found = hw.load(zoo / kind, "cpu").rerank(QUERY, DOCUMENTS)
    wanted = by_transformers(zoo / kind, [(QUERY, document) for document in DOCUMENTS])
    assert max(wanted) - min(wanted) > 1e-3
    assert [one.index for one in found] == sorted(range(len(wanted)), key=lambda index: -wanted[index])
    assert [one.score for one in found] == pytest.approx([wanted[one.index] for one in found], abs=1e-5)
    assert [one.document for one in found] == [DOCUMENTS[one.index] for one in found]


def test_long_pairs_are_cut_where_that_is_asked_for(zoo: Path) -> None:
    model = hw.load(zoo / "bert", "cpu")
    long = " ".join(WORDS[:20])
    told = r"document 2 of 2 has 20 tokens and the query 7, but the model takes 21 for both together; .*--truncate"
    with pytest.raises(UserError, match=told):
        model.rerank(QUERY, ["no", long])
    [found] = model.rerank(QUERY, [long], truncate=True)
    assert found.score == pytest.approx(by_transformers(zoo / "bert", [(QUERY, long)])[0], abs=1e-5)


def test_what_cannot_be_ranked(zoo: Path) -> None:
    model = hw.load(zoo / "bert", "cpu")
    assert model.rerank(QUERY, []) == []
    assert [one.index for one in model.rerank(QUERY, iter(DOCUMENTS), top_n=2)] == [
        one.index for one in model.rerank(QUERY, DOCUMENTS)[:2]
    ]
    assert "rerank" in model.verbs
    for asked, told in (
        ((" ", DOCUMENTS), "the query is empty"),
        ((QUERY, ["a", " "]), "document 2 of 2 is empty"),
        ((QUERY, DOCUMENTS, 0), "top_n is 0"),
        ((QUERY, [1]), "document 1 of 1 is 1"),
    ):
        with pytest.raises(UserError, match=told):
            model.rerank(*asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"cannot rank documents; use .*, or use a cross-encoder"):
        hw.load(zoo / "minilm", "cpu").rerank(QUERY, DOCUMENTS)


def test_a_model_of_ours_with_one_output(tmp_path: Path) -> None:
    """Its marks are those of its own tokenizer, and several labels are classes, which rank nothing."""
    codec = train_codec("byte", iter(["a text"]))
    small: Any = override(preset("bert-base"), {"width": 16, "depth": 1, "heads": 2, "symbols": codec.vocab_size})
    for outputs in (1, 2):
        config = replace(small, heads={**small.heads, "classes": PooledHeadConfig(outputs)})
        folder = tmp_path / str(outputs)
        folder.mkdir()
        save_model(build(config, seed=1), config, folder)
        codec.save(folder)
        assert ("rerank" in hw.load(folder, "cpu").verbs) == (outputs == 1)
    model = hw.load(tmp_path / "1", "cpu")
    raw = [values["value"] for values in model.classify([(QUERY, document) for document in DOCUMENTS])]
    found = sorted(model.rerank(QUERY, DOCUMENTS))
    assert [one.score for one in found] == pytest.approx(torch.tensor(raw).sigmoid().tolist(), abs=1e-6)


def test_the_command(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = hw.load(zoo / "bert", "cpu").rerank(QUERY, DOCUMENTS)
    asked = ["rerank", str(zoo / "bert"), "--query", QUERY]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(DOCUMENTS) + "\n"))
    assert main([*asked, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(one["index"], one["document"]) for one in results] == [(one.index, one.document) for one in wanted]
    assert main([*asked, "--documents", *DOCUMENTS]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one.score:.4f}\t{one.document}" for one in wanted]
    assert main([*asked, "--top", "1", "--documents", *DOCUMENTS]) == 0
    assert capsys.readouterr().out == f"{wanted[0].score:.4f}\t{wanted[0].document}\n"
    assert main([*asked, "--documents", "a", ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_the_endpoint(zoo: Path, client: TestClient, path: str) -> None:
    wanted = hw.load(zoo / "bert", "cpu").rerank(QUERY, DOCUMENTS)
    body: dict[str, Any] = {
        "model": "bert",
        "query": QUERY,
        "documents": [DOCUMENTS[0], *({"text": t} for t in DOCUMENTS[1:])],
    }
    found = client.post(path, json=body).json()
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [
        (one.index, pytest.approx(one.score, abs=1e-6)) for one in wanted
    ]
    assert "document" not in found["results"][0]
    words = sum(len(text.split()) for text in DOCUMENTS) + len(DOCUMENTS) * (len(QUERY.split()) + 3)
    assert found["usage"] == {"prompt_tokens": words, "total_tokens": words}
    top = client.post(path, json={**body, "top_n": 2, "return_documents": True}).json()["results"]
    assert [one["document"]["text"] for one in top] == [one.document for one in wanted[:2]]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"documents": []}, "documents has 0 items; send 1 to 2,048"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1] is not text"),
        ({"documents": ["no", " ".join(WORDS[:20])]}, "document 2 of 2 has 20 tokens and the query 7"),
        ({"query": ""}, "the query is empty"),
        ({"top_n": 0}, ">= 1"),
        ({"model": "minilm"}, "cannot rank documents"),
        ({"max_tokens_per_doc": 5}, "unknown field 'max_tokens_per_doc'"),
    ],
)
def test_what_the_endpoint_refuses(client: TestClient, more: dict[str, Any], told: str) -> None:
    answer = client.post("/v1/rerank", json={"model": "bert", "query": QUERY, "documents": DOCUMENTS, **more})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_from_another_machine(zoo: Path) -> None:
    models = ServedModels([zoo / "bert"], [], LoadOptions(device="cpu"), open_engine_loop)
    wanted = hw.load(zoo / "bert", "cpu").rerank(QUERY, DOCUMENTS, 3)
    with server(models, ServerSettings(log=False)) as url:
        remote = hw.connect(url)
        found = remote.rerank(QUERY, DOCUMENTS, 3)
        assert "rerank" in remote.verbs
        assert remote.rerank(QUERY, []) == []
        with pytest.raises(UserError, match="the query is empty"):
            remote.rerank("", DOCUMENTS)
    assert [(one.index, one.document) for one in found] == [(one.index, one.document) for one in wanted]
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-6)
