"""Training of rerankers: data, splits, losses, and the order of documents."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import overfit
from understanding_data import opened, small

import headway as hw
from headway.domains.understanding.recipes import reranking
from headway.errors import UserError
from headway.metrics import ranking_scores
from text_models import change, save, save_causal

TOPICS = {
    "pearls": "oysters nacre shell sand sea",
    "fire": "flames heat wood smoke ash",
    "bread": "flour yeast oven dough crust",
    "rain": "clouds drops storm wet grey",
}


def documents(number: int) -> tuple[str, str, list[str]]:
    """A query, a relevant document and two others."""
    chance = random.Random(number)
    topic, *others = chance.sample(sorted(TOPICS), 3)
    texts = [" ".join(chance.sample(TOPICS[name].split(), 3)) for name in (topic, *others)]
    return f"{topic} number {number}", texts[0], texts[1:]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    rows = [
        f"{query},{text},{label}"
        for query, relevant, others in map(documents, range(60))
        for text, label in ((others[0], 0), (relevant, 1), (others[1], 0))
    ]
    path.write_text("query,document,label\n" + "\n".join(rows) + "\n")
    return path


def test_scores_are_those_of_the_definitions() -> None:
    from sklearn.metrics import ndcg_score  # imports scipy and pandas, which few workers need

    chance = np.random.default_rng(0)
    queries = np.repeat(np.arange(40), 15)
    scores, relevance = chance.normal(size=600), chance.integers(0, 4, 600) / 3
    order = chance.permutation(600)
    found = ranking_scores(scores[order], relevance[order], queries[order])
    wanted = [ndcg_score([r], [s], k=10) for r, s in zip(relevance.reshape(40, 15), scores.reshape(40, 15))]
    assert found["ndcg_at_10"] == pytest.approx(np.mean(wanted))
    ranks = []
    for r, s in zip(relevance.reshape(40, 15), scores.reshape(40, 15)):
        first = next((rank for rank, i in enumerate(np.argsort(-s)[:10], 1) if r[i] >= r.max() / 2), None)
        ranks.append(0 if first is None else 1 / first)
    assert found["mrr_at_10"] == pytest.approx(np.mean(ranks))
    assert found["queries"] == 40


def test_equal_scores_do_not_count_as_an_order() -> None:
    queries, relevance = np.zeros(4, int), np.array([1.0, 0, 0, 0])
    assert ranking_scores(np.zeros(4), relevance, queries)["mrr_at_10"] == 0.25
    assert ranking_scores(relevance, relevance, queries)["mrr_at_10"] == 1
    assert ranking_scores(np.zeros(4), np.ones(4), queries) == {}


def test_queries_are_in_one_split_and_the_order_is_a_function_of_the_seed(table: Path) -> None:
    task: Any = opened(small(reranking()), table)
    examples = task.examples
    queries = {split: set(examples.queries[examples.rows_of(split)]) for split in ("train", "validation", "test")}
    assert sum(map(len, queries.values())) == len(set.union(*queries.values())) == 60
    first = [batch.targets.tolist() for batch in islice(task.batches("train"), 9)]
    assert [batch.targets.tolist() for batch in islice(task.batches("train", start=6), 3)] == first[6:]
    limited = examples.of("train").limited_to(20)
    assert 0 < len(limited) <= 20
    assert len(limited) == 3 * len(set(examples.queries[limited.rows]))  # with all their documents


def test_positives_and_negatives_are_the_same_data(table: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"query": query, "positive": relevant, "negative": others})
        for query, relevant, others in map(documents, range(60))
    ]
    (tmp_path / "lists.jsonl").write_text("\n".join(lines))
    rows = [f"{q}\t{r}\t{text}" for q, r, others in map(documents, range(60)) for text in others]
    (tmp_path / "triplets.tsv").write_text("query\tpositive\tnegative\n" + "\n".join(rows) + "\n")
    rows = [f"{q}\t{r}\t{o[0]}\t{o[1]}" for q, r, o in map(documents, range(60))]
    (tmp_path / "columns.tsv").write_text("query\tpositive\tnegative_1\tnegative_2\n" + "\n".join(rows) + "\n")
    empty = [{"query": "q", "positive": "p", "negative": ["", " "]}, {"query": "q", "positive": "p2", "negative": []}]
    (tmp_path / "empty.jsonl").write_text("\n".join([*lines, *map(json.dumps, empty)]))
    texts = opened(small(reranking()), tmp_path / "empty.jsonl").examples.table.columns
    assert [text for query, text in zip(texts["text"], texts["text2"]) if query == "q"] == ["p", "p2"]
    found = []
    for path in (table, tmp_path / "lists.jsonl", tmp_path / "triplets.tsv", tmp_path / "columns.tsv"):
        settings = {"task.negative": "negative_1, negative_2"} if path.name == "columns.tsv" else {}
        examples: Any = opened(small(reranking(), **settings), path).examples
        columns = examples.table.columns
        found.append(set(zip(columns["text"], columns["text2"], examples.targets[:, 0].tolist())))
    assert found[0] == found[1] == found[2] == found[3]


def test_grades_are_scaled_and_words_are_read(tmp_path: Path) -> None:
    for labels, wanted in (([3, 0, 1.5], [1.0, 0.0, 0.5]), (["TRUE", "false", "false"], [1.0, 0.0, 0.0])):
        rows = [f"{q},{text},{label}" for q, r, o in map(documents, range(30)) for text, label in zip((r, *o), labels)]
        (tmp_path / "a.csv").write_text("query,document,label\n" + "\n".join(rows) + "\n")
        task: Any = opened(small(reranking()), tmp_path / "a.csv")
        assert task.examples.targets[:3, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,document,label\na,b,1\nc,d,1\ne,f,1\ng,h,1\n", r"none of the \d train queries has a relevant document"),
        ("query,document,label\na,b,good\nc,d,0\n", "line 2: the label is 'good'; write 1 for a relevant document"),
        ("query,document,label\na,b,1\nc,d,-1\n", "line 3: the label is '-1'"),
        ("question,passage,label\na,b,1\nc,d,0\n", "add --set task.query=question task.document=passage"),
        ("query,positive\na,b\nc,d\n", "no column 'negative'"),
        ("query,document,label\na,,1\nc,d,0\n", "line 2: 'document' is empty"),
    ],
)
def test_data_that_cannot_be_ranked(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        opened(small(reranking()), tmp_path / "a.csv")


def test_one_batch_is_learned_and_the_run_ranks(table: Path, tmp_path: Path) -> None:
    recipe = small(reranking())
    task: Any = opened(recipe, table)
    model, batch, loss = overfit(task, recipe)
    assert loss < 0.05
    assert batch.targets.shape == (len(batch.targets), 1)
    scores = task.evaluate(model, "train")
    assert scores.keys() >= {"loss", "ndcg_at_10", "ndcg_at_10_interval", "mrr_at_10", "queries", "samples"}
    assert scores["ndcg_at_10"] > 0.8


def test_a_run_ranks_and_is_exported(table: Path, tmp_path: Path) -> None:
    settings = {"train.steps": 40, "train.batch_tokens": 256, "train.precision": "fp32", "train.evaluate_every": 20}
    hw.train(reranking(), data=table, set=settings, run=tmp_path / "run", progress=False, samples=2)
    model = hw.load(tmp_path / "run")
    query, relevant, others = documents(100)
    ranked = model.rerank(query, [others[0], relevant, others[1]])
    assert all(0 < one.score < 1 for one in ranked)
    assert ranked[0].score > ranked[-1].score
    assert model.classify((query, relevant)) == pytest.approx({"relevant": sorted(ranked)[1].score}, abs=1e-6)
    found = model.evaluate(table)
    assert found["queries"] == 60
    with pytest.raises(UserError, match="was trained on other data"):
        hw.train(
            reranking(), data=write_other(tmp_path), set=settings, run=tmp_path / "run", resume=True, progress=False
        )


def write_other(folder: Path) -> Path:
    rows = [f"{q},{text},{n}" for q, r, o in map(documents, range(50, 80)) for n, text in enumerate((o[0], r))]
    (folder / "other.csv").write_text("query,document,label\n" + "\n".join(rows) + "\n")
    return folder / "other.csv"


@pytest.mark.parametrize("kind", ["encoder", "language model"])
def test_a_reranker_is_trained_further_with_its_own_inputs(kind: str, table: Path, tmp_path: Path) -> None:
    """Its first loss is that of its scores, so training and `rerank` make the same inputs."""
    if kind == "encoder":
        start = save(tmp_path / "start", "Bert", "SequenceClassification", num_labels=1)
        change(start / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    else:
        start = save_causal(tmp_path / "start")
        change(start / "config.json", classifier_from_token=["no", "yes"])
    settings = {"train.steps": 1, "train.batch_tokens": 1024, "train.precision": "fp32", "optim.lr": 1e-9}
    settings |= {"model.dropout": 0.0, "optim.adam_lr": 1e-9}
    run = tmp_path / "run"
    hw.train(reranking(), data=table, start=start, set=settings, run=run, progress=False, samples=0)
    model, published = hw.load(run), hw.load(start)
    query, relevant, others = documents(3)
    texts = [relevant, *others]
    scores = torch.tensor([one.score for one in sorted(published.rerank(query, texts))])
    wanted = scores.sigmoid() if kind == "encoder" else scores  # a run's scores are probabilities
    found = torch.tensor([one.score for one in sorted(model.rerank(query, texts))])
    assert torch.allclose(found, wanted, atol=1e-3)
    pairs = list(map(documents, range(60)))
    each = [one.score for q, r, o in pairs for one in sorted(model.rerank(q, [r, *o]))]
    labels = [float(text == r) for _, r, o in pairs for text in (r, *o)]
    loss = torch.nn.functional.binary_cross_entropy(torch.tensor(each), torch.tensor(labels))
    assert model.evaluate(table, split="all")["loss"] == pytest.approx(float(loss), abs=1e-4)
