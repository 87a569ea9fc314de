"""Answers, labels by entailment, prompts of sentence encoders and instructions of rerankers over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import server
from starlette.testclient import TestClient

import headway as hw
from headway.errors import UserError
from headway.serve.app import create_app
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels
from text_models import NLI, QUESTIONS, TEXTS, change, save, save_causal

PROMPTS = {"query": "search for: ", "document": "text: "}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    save(folder / "qa", "Bert", "QuestionAnswering")
    save(folder / "nli", "Bert", "SequenceClassification", **NLI)
    save_causal(folder / "reranker")
    change(folder / "reranker" / "config.json", classifier_from_token=["no", "yes"])
    shutil.copytree(minilm, folder / "minilm")
    change(folder / "minilm" / "config_sentence_transformers.json", prompts=PROMPTS)
    change(folder / "minilm" / "1_Pooling" / "config.json", include_prompt=False)
    return folder


@pytest.fixture(scope="module")
def client(zoo: Path) -> Iterator[TestClient]:
    models = ServedModels([], [zoo], LoadOptions(device="cpu"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://localhost") as found:
        yield found


def test_answers(zoo: Path, client: TestClient) -> None:
    model, (question, *_) = hw.load(zoo / "qa", "cpu"), QUESTIONS
    body = {"model": "qa", "question": question, "window": 64, "allow_none": True}
    found = client.post("/v1/answer", json={**body, "context": list(TEXTS)}).json()["result"]
    wanted = model.answer(question, TEXTS, window=64, allow_none=True)
    assert found == [pytest.approx(one._asdict(), abs=1e-6) for one in wanted]
    one = client.post("/v1/answer", json={**body, "context": TEXTS[0]}).json()["result"]
    assert one == pytest.approx(wanted[0]._asdict(), abs=1e-6)


def test_labels(zoo: Path, client: TestClient) -> None:
    model, labels = hw.load(zoo / "nli", "cpu"), ["sea life", "computers"]
    settings: dict[str, Any] = {"labels": labels, "hypothesis": "It is about {}.", "multiple": True}
    found = client.post("/v1/classify", json={"model": "nli", "items": list(TEXTS), **settings}).json()["result"]
    assert found == [pytest.approx(one, abs=1e-6) for one in model.classify(TEXTS, **settings)]


def test_prompts_and_the_limit_of_the_sentence_encoder(zoo: Path, client: TestClient) -> None:
    model, texts = hw.load(zoo / "minilm", "cpu"), [*TEXTS, " ".join(TEXTS * 6)]
    body = {"model": "minilm", "input": texts, "truncate": True}
    for prompt in (None, "query"):
        found = client.post("/v1/embeddings", json={**body, "prompt": prompt}).json()
        vectors = torch.tensor([one["embedding"] for one in found["data"]])
        assert torch.allclose(vectors, model.embed(texts, truncate=True, prompt=prompt), atol=1e-6)
    assert not torch.allclose(model.embed(texts, truncate=True), model.embed(texts, truncate=True, prompt="query"))


def test_an_instruction(zoo: Path, client: TestClient) -> None:
    wanted = hw.load(zoo / "reranker", "cpu").rerank("a query", TEXTS, instruction="Find it")
    body = {"model": "reranker", "query": "a query", "documents": list(TEXTS), "instruction": "Find it"}
    found = client.post("/v1/rerank", json=body).json()["results"]
    assert [one["index"] for one in found] == [one.index for one in wanted]
    assert [one["relevance_score"] for one in found] == pytest.approx([one.score for one in wanted], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("answer", {"model": "qa", "question": "", "context": "a"}, "the question is empty"),
        ("answer", {"model": "qa", "question": "a", "context": ["b"] * 2049}, "context has 2,049 items"),
        ("answer", {"model": "qa", "question": "a"}, "context"),
        ("answer", {"model": "nli", "question": "a", "context": "b"}, "cannot answer questions from a text"),
        ("classify", {"model": "nli", "items": "a", "labels": []}, "the labels are empty"),
        ("classify", {"model": "nli", "items": "a", "labels": ["b", "b"]}, "the label 'b' is repeated"),
        ("embeddings", {"model": "minilm", "input": "a", "prompt": "passage"}, "no prompt 'passage'; choose from"),
        ("embeddings", {"model": "minilm", "input": [5, 6], "prompt": "query"}, "a prompt comes before text"),
        ("embeddings", {"model": "minilm", "input": " ".join(TEXTS * 6)}, "the model reads at most 256"),
        ("rerank", {"model": "qa", "query": "a", "documents": ["b"]}, "cannot rank documents"),
    ],
)
def test_what_the_endpoints_refuse(client: TestClient, path: str, body: dict[str, Any], told: str) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_from_another_machine(zoo: Path) -> None:
    models = ServedModels([], [zoo], LoadOptions(device="cpu"), open_engine_loop)
    with server(models, ServerSettings(log=False)) as url:
        remote, local = hw.connect(url, model="qa"), hw.load(zoo / "qa", "cpu")
        found = remote.answer(QUESTIONS[0], TEXTS, window=64)
        wanted = local.answer(QUESTIONS[0], TEXTS, window=64)
        assert [one[:3] for one in found] == [one[:3] for one in wanted]
        assert remote.answer(QUESTIONS[0], TEXTS[1], window=64)[:3] == found[1][:3]
        assert remote.answer(QUESTIONS[0], []) == []
        assert "answer" in remote.verbs
        nli = hw.connect(url, model="nli")
        labels = ("sea life", "computers")
        assert nli.classify(TEXTS[0], labels=labels) == pytest.approx(
            hw.load(zoo / "nli", "cpu").classify(TEXTS[0], labels=labels), abs=1e-6
        )
        minilm = hw.connect(url, model="minilm")
        wanted_vector = hw.load(zoo / "minilm", "cpu").embed(TEXTS[0], prompt="query")
        assert torch.allclose(minilm.embed(TEXTS[0], prompt="query"), wanted_vector, atol=1e-6)
        with pytest.raises(UserError, match="no prompt 'passage'"):
            minilm.embed(TEXTS[0], prompt="passage")
        ranked = hw.connect(url, model="reranker").rerank("a", TEXTS, instruction="Find it")
    expected = hw.load(zoo / "reranker", "cpu").rerank("a", TEXTS, instruction="Find it")
    assert [one.index for one in ranked] == [one.index for one in expected]
