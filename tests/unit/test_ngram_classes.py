"""Logits of n-grams, which are fitted after the training of a classifier."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from understanding_data import write_questions

import headway as hw
from headway.layout import Layout
from headway.learn import Task
from headway.learn.objectives.linear import minimise
from headway.learn.objectives.support_vectors import SparseRows, fit_support_vectors
from headway.nn.models.ngrams import NgramLogits

TINY: dict[str, Any] = {
    "train.steps": 4,
    "train.batch_tokens": 512,
    "train.evaluate_every": 4,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "task.ngrams": True,
    "task.split": {"validation": 0.2, "test": 0.2},
}


def test_support_vectors_have_the_least_loss() -> None:
    rng = np.random.default_rng(3)
    dense = np.where(rng.random((120, 40)) < 0.2, rng.random((120, 40)), 0).astype(np.float32)
    classes = (dense[:, :20].sum(1) > dense[:, 20:].sum(1)).astype(int) + (dense[:, 0] > 0)
    found = np.nonzero(dense)
    rows = SparseRows(np.concatenate([[0], np.cumsum((dense != 0).sum(1))]), found[1], dense[found])
    costs = np.array([1.0, 0.5, 2.0], np.float32)[classes]
    targets = classes[:, None] == np.arange(3)
    machines = [
        torch.from_numpy(array).double()
        for array in fit_support_vectors(rows, targets, 40, costs, np.random.default_rng(0))
    ]
    vectors, signs = torch.from_numpy(dense).double(), torch.from_numpy(2.0 * targets - 1)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:  # the bias is a weight, as in the dual problem
        errors = (1 - signs * (vectors @ weight + bias)).clamp(min=0).square()
        return (torch.from_numpy(costs)[:, None] * errors).sum() + 0.5 * (weight.square().sum() + bias.square().sum())

    best = [torch.zeros_like(array, requires_grad=True) for array in machines]
    minimise(lambda: loss(*best), best, 500, 1e-9, 1e-12)
    least, reached, zero = (loss(*found).item() for found in (best, machines, map(torch.zeros_like, machines)))
    assert least <= reached < 1.002 * least < zero / 2


def test_logits_are_the_sum_over_tokens_and_pairs() -> None:
    added, generator = NgramLogits(64, 3), torch.Generator().manual_seed(0)
    for buffer in added.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator))
    ids = torch.tensor([[5, 9, 5, 0], [7, 0, 0, 0]])
    layout = Layout.padded(torch.tensor([3, 1]), 4)
    logits = added(ids, layout)
    buckets, exist = added.ngrams(ids, layout)
    assert exist.sum(1).tolist() == [5, 1]  # three tokens and two pairs; one token
    for row in range(2):
        kept = buckets[row][exist[row]]
        values = added.idf[kept] / added.idf[kept].square().sum().sqrt()
        torch.testing.assert_close(logits[row], values @ added.weight[kept] + added.bias)
    longer = torch.cat([ids, torch.full((2, 3), 11)], 1)
    torch.testing.assert_close(added(longer, Layout.padded(torch.tensor([3, 1]), 7)), logits)


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ngrams")
    hw.train("classification", data=write_questions(data_dir, folder), run=folder / "run", set=TINY, seed=1)
    return folder / "run"


def test_they_are_added_after_training(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["accuracy"] for line in lines if line.get("split") == "validation"][-1]
    model, summary = hw.load(run), json.loads((run / "run.json").read_text())
    assert summary["scores"]["accuracy"] > trained + 0.1  # four steps teach little
    added = model.module.heads["classes"].ngrams
    assert added.weight.abs().sum() > 0
    text = "is there a train to the airport?"
    own, ids = model.classify(text), model.codec.encode(text)
    for buffer in added.buffers():
        buffer.zero_()
    assert model.classify(text) != own
    assert len(ids) > 1


def test_the_same_command_gives_the_same_bits(run: Path, data_dir: Path, tmp_path: Path) -> None:
    hw.train("classification", data=write_questions(data_dir, tmp_path), run=tmp_path / "run", set=TINY, seed=1)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_that_was_stopped_in_its_last_evaluation_ends_as_another(
    data_dir: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished head is on disk by then; fitting it again would choose the factor on what it has learned."""
    options: dict[str, Any] = {"set": TINY, "seed": 1, "run": tmp_path / "run"}
    data = write_questions(data_dir, tmp_path)
    with monkeypatch.context() as stopping:
        stopping.setattr(Task, "evaluate", stopped_on("test", Task.evaluate))
        with pytest.raises(KeyboardInterrupt):
            hw.train("classification", data=data, **options)
    assert "scores" not in json.loads((tmp_path / "run" / "run.json").read_text())
    resumed = hw.train("classification", data=data, resume=True, **options)
    whole = json.loads((run / "run.json").read_text())
    assert resumed.summary["extended"] == whole["extended"]
    assert resumed.summary["scores"] == whole["scores"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def stopped_on(split: str, evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """`evaluate`, which Ctrl-C stops on a split."""

    def stopped(self: Task, model: Any, of: str, *more: Any) -> Any:
        if of == split:
            raise KeyboardInterrupt
        return evaluate(self, model, of, *more)

    return stopped


def write_sentences(path: Path, count: int, words: int, seed: int) -> Path:
    """A table of texts of so many words, each label's from its 80."""
    chance = random.Random(seed)
    known = [f"{'bcdfghjklmnpqrstvwxz'[n % 20]}{'aeiou'[n // 20 % 5]}{'nt'[n // 100]}" for n in range(160)]
    rows = [(" ".join(chance.choices(known[label::2], k=words)), label) for label in chance.choices((0, 1), k=count)]
    path.write_text("\n".join(["text,label", *(f"{text},{'ab'[label]}" for text, label in rows)]))
    return path


def test_unlabelled_texts_show_which_words_belong_together(tmp_path: Path) -> None:
    sizes = {"train": (20, 4), "validation": (100, 4), "test": (200, 4)}
    data = [write_sentences(tmp_path / f"{part}.csv", *sizes[part], seed) for seed, part in enumerate(sizes)]
    others = str(write_sentences(tmp_path / "others.csv", 1500, 12, 3))
    accuracy = {}
    for unlabelled in ([], [others]):
        settings = {**TINY, "task.size": 300, "task.codec": "word", "task.unlabelled": unlabelled}
        options: dict[str, Any] = {"set": settings, "seed": 1, "progress": False}
        run = hw.train("classification", data=data, run=tmp_path / f"run-{len(unlabelled)}", **options)
        accuracy[len(unlabelled)] = run.summary["scores"]["accuracy"]
        assert ("unlabelled texts, too" in run.summary["extended"]) is bool(unlabelled)
    assert accuracy[1] > accuracy[0] + 0.1, accuracy


def test_unlabelled_texts_that_nothing_learns_from_are_refused(tmp_path: Path) -> None:
    data = write_sentences(tmp_path / "rows.csv", 100, 4, 1)
    (tmp_path / "same.txt").write_text("\n".join(row.split(",")[0] for row in data.read_text().splitlines()[1:]))
    for settings, message in (
        ({"task.ngrams": False, "task.unlabelled": ["same.txt"]}, "task.unlabelled is for n-grams of single texts"),
        ({"task.unlabelled": [str(tmp_path / "none.txt")]}, r"there is no file or folder .*none\.txt"),
        ({"task.unlabelled": [str(tmp_path / "same.txt")]}, "texts are also in the labelled data; pass other texts"),
    ):
        with pytest.raises(hw.UserError, match=message):
            hw.train("classification", data=data, run=tmp_path / "run", set={**TINY, **settings}, progress=False)
    assert not (tmp_path / "run").exists()


def test_numbers_and_several_labels_have_none(tmp_path: Path) -> None:
    rows = [f"word{n % 7} and more,{n % 5 + 0.5}" for n in range(60)]
    (tmp_path / "stars.csv").write_text("\n".join(["text,label", *rows]))
    hw.train("classification", data=tmp_path / "stars.csv", run=tmp_path / "run", set=TINY, seed=1)
    assert hw.load(tmp_path / "run").module.heads["number"].ngrams is None
