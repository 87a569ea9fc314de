"""Embeddings of texts: batches, partners, the contrast, and what is found again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import overfit
from understanding_data import opened, small, write_questions, write_sentences

from headway.domains.understanding.recipes import embedding
from headway.errors import UserError
from headway.learn.objectives.contrastive import softmax_contrast
from headway.nn.models import PooledHeadConfig


@pytest.fixture(scope="module")
def questions(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(data_dir, tmp_path_factory.mktemp("questions"))


@pytest.fixture
def sentences(data_dir: Path, tmp_path: Path) -> Path:
    return write_sentences(data_dir, tmp_path)


def test_embedding_overfits_one_batch_and_finds_partners(sentences: Path) -> None:
    recipe = small(embedding())
    task = opened(recipe, sentences)
    batch = next(task.batches("train"))
    assert batch.tokens == 16
    (texts,) = batch.inputs
    kept = sum(int(part.layout.mask.sum()) for part in texts.chunks)
    assert kept / batch.computed > 0.9
    model, _, loss = overfit(task, recipe, steps=60)
    assert loss < 0.05
    scores = task.evaluate(model)
    assert scores.keys() >= {"recall_at_1", "recall_at_5", "recall_at_1_interval", "samples"}
    sample = task.samples(model, 3)[0]
    assert sample["source"] in task.examples.texts
    assert sample["output"] in task.examples.partners
    assert task.adapt(recipe.model).heads == {"embedding": PooledHeadConfig(pool="mean", unit=True)}


def test_texts_of_a_label_are_partners_and_no_negatives(questions: Path) -> None:
    recipe = small(embedding())
    task = opened(recipe, questions)
    assert task.goal == "accuracy"
    batch = next(task.batches("train"))
    of, same = batch.targets
    assert of.tolist() == list(range(16))
    assert torch.equal(same, same.T)
    assert same.diagonal().all()
    assert same.float().mean() < 0.5
    again = [b.inputs[0].order.tolist() for b in islice(task.batches("train", start=3), 2)]
    assert again == [b.inputs[0].order.tolist() for b in islice(task.batches("train"), 5)][3:]
    model, _, loss = overfit(task, recipe, steps=60)
    assert loss < 0.05
    scores = task.evaluate(model)
    assert scores["accuracy"] > 1 / 6
    assert scores["recall_at_5"] >= scores["recall_at_1"]


def test_every_text_of_a_label_is_the_partner_of_one_other(questions: Path) -> None:
    task = opened(small(embedding()), questions)
    samples, labels = task.examples.of("train"), task.examples.labels
    drawn = [samples.partners(np.arange(len(samples)), epoch) for epoch in range(4)]
    for found in drawn:
        assert sorted(found.tolist()) == samples.rows.tolist()
        assert (found != samples.rows).all()
        assert (labels[found] == labels[samples.rows]).all()
    assert any((one != drawn[0]).any() for one in drawn[1:])


def test_what_is_judged_are_the_first_texts_and_their_partners_are_of_the_whole_split(questions: Path) -> None:
    samples = opened(small(embedding()), questions).examples.of("train")
    first = samples.limited_to(3)
    assert first.rows.tolist() == samples.rows[:3].tolist()
    (texts,), (other,) = first.take(np.arange(3)).inputs, samples.take(np.arange(3)).inputs
    assert [part.tokens.ids.tolist() for part in texts.chunks] == [part.tokens.ids.tolist() for part in other.chunks]
    assert first.take(np.arange(3)).targets[1].shape == (3, 3)


def test_texts_without_a_partner_are_an_error(tmp_path: Path) -> None:
    table = tmp_path / "alone.csv"
    table.write_text("text,label\n" + "".join(f"text {n},{n}\n" for n in range(30)), encoding="utf-8")
    recipe = small(embedding(), **{"task.codec": "char", "task.size": None})
    with pytest.raises(UserError, match="validation split of 0 texts with a partner is empty; add files named"):
        opened(recipe, table).adapt(recipe.model)


def test_the_contrast_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(3, 4, generator=generator), dim=1) for _ in range(2))
    same = torch.eye(3, dtype=torch.bool)
    scores, of = one @ other.T / 0.5, torch.arange(3)
    forth = -scores.log_softmax(1).diagonal().sum()
    back = -scores.log_softmax(0).diagonal().sum()
    assert softmax_contrast(one @ other.T / 0.5, of, same) == pytest.approx(float(forth + back) / 2, rel=1e-6)
    same[0, 1] = same[1, 0] = True
    scores[0, 1] = scores[1, 0] = float("-inf")
    wanted = -(scores.log_softmax(1).diagonal().sum() + scores.log_softmax(0).diagonal().sum()) / 2
    assert softmax_contrast(one @ other.T / 0.5, of, same) == pytest.approx(float(wanted), rel=1e-6)
