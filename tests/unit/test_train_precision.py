"""The precision of products, and what the display tells."""

from __future__ import annotations

import pytest
import torch
from tiny_task import SYMBOLS, CountingConfig, counting, counting_recipe
from torch import nn

from headway.learn import journal
from headway.learn.distributed import Processes
from headway.learn.learner import Learner
from headway.learn.precision import choose, products, representative
from headway.nn.kernels.linear import are_products_rough
from headway.nn.models import build

CPU = torch.device("cpu")


def test_settings_are_put_back() -> None:
    with products("bf16", CPU):
        assert are_products_rough()
        with products("fp32", CPU):
            assert not are_products_rough()
        assert are_products_rough()
    assert not are_products_rough()


def test_learning_in_bf16_follows_fp32_and_is_judged_in_fp32() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = counting_recipe(optim="muon", **{"model.symbols": SYMBOLS, "model.dropout": 0.0})
        task = counting(CountingConfig(), 1)
        learner = Learner(build(recipe.model, 5), recipe, task, Processes(CPU), precision)
        for step in range(10):
            learner.update(step, [task.examples.batch(step)])
        with learner.evaluating() as model:
            assert not are_products_rough()
            losses[precision] = task.evaluate(model)["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]  # Newton-Schulz runs in bf16 on any machine


@pytest.mark.parametrize(("unit", "width", "name"), [(True, 128, "bf16"), (True, 32, "fp32"), (False, 128, "fp32")])
def test_auto_goes_by_the_processor_and_the_shapes(
    monkeypatch: pytest.MonkeyPatch, unit: bool, width: int, name: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: unit)
    model = nn.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))
    assert {choose("auto", model, CPU).name for _ in range(5)} == {name}
    assert choose("bf16", model, CPU) == ("bf16", "as set")


def test_the_heaviest_shapes_are_measured() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(4, 4), nn.Linear(1, 1), nn.Linear(2, 2))
    assert representative(model) == [(3, 3), (4, 4), (2, 2)]


def test_rate_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
    rate = journal.Rate()
    rate.update({"step": 0})
    now[0] = 3.0
    rate.pause()
    now[0] = 93.0
    rate.resume()
    now[0] = 94.0
    rate.update({"step": 8})
    assert rate.values == {"step": 2.0}


def test_durations() -> None:
    assert [journal.duration(s) for s in (0.2, 42, 185, 3723)] == ["0 s", "42 s", "3:05", "1:02:03"]
