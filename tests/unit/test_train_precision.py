"""The precision of products, and what the display tells."""

from __future__ import annotations

import pytest
import torch
from tiny_task import SYMBOLS, CountingConfig, counting, counting_recipe
from torch import nn

from headway.learn import display, precision
from headway.learn.learner import Learner
from headway.learn.parallel.processes import Processes
from headway.learn.precision import (
    Processor,
    choose_precision,
    effective_precision,
    evaluation_precision,
    main_matrix_shapes,
    products,
    this_processor,
)
from headway.nn.kernels.linear import are_products_bf16
from headway.nn.models import build

CPU = torch.device("cpu")
UNIT = Processor("Intel Xeon", True, True)
ZEN4 = Processor("AMD EPYC 9354", False, True)
COOPER_LAKE = Processor("Intel Xeon Gold 6328H", False, True)
ZEN3 = Processor("AMD EPYC 7763", False, False)


def test_settings_are_put_back() -> None:
    with products("bf16", CPU):
        assert are_products_bf16()
        with products("fp32", CPU):
            assert not are_products_bf16()
        assert are_products_bf16()
    assert not are_products_bf16()


def test_learning_in_bf16_follows_fp32_and_is_judged_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "this_processor", lambda: UNIT)
    losses = {}
    for name in ("fp32", "bf16"):
        recipe = counting_recipe(optim="muon", **{"model.vocab_size": SYMBOLS, "model.dropout": 0.0})
        task = counting(CountingConfig(), 1)
        learner = Learner(build(recipe.model, 5), recipe, task, Processes(CPU), name)
        for step in range(10):
            learner.update(step, [task.examples.batch(step)])
        with learner.evaluating() as model:
            assert not are_products_bf16()
            losses[name] = task.evaluate(model)["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize(
    ("processor", "width", "name", "reason"),
    [
        (UNIT, 128, "bf16", "matrix unit"),
        (UNIT, 32, "fp32", "matrices with only 32 rows"),
        (ZEN4, 128, "bf16", "AVX512_BF16 is twice as fast as fp32"),
        (ZEN4, 32, "fp32", "matrices with only 32 rows"),
        (COOPER_LAKE, 128, "fp32", "not faster than fp32"),
        (ZEN3, 128, "fp32", "no bf16 instructions"),
        (ZEN3, 32, "fp32", "no bf16 instructions"),
    ],
)
def test_auto_goes_by_the_processor_and_the_shapes(processor: Processor, width: int, name: str, reason: str) -> None:
    model = nn.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))
    found = choose_precision("auto", model, CPU, processor)
    assert found.name == name
    assert reason in found.reason


def test_bf16_that_is_set_is_computed_in_fp32_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(128, 128)
    for processor in (UNIT, ZEN4):
        assert choose_precision("bf16", model, CPU, processor) == ("bf16", "as set")
        assert effective_precision("bf16", CPU, processor) == "bf16"
    for processor in (COOPER_LAKE, ZEN3):
        name, reason = choose_precision("bf16", model, CPU, processor)
        assert (name, effective_precision(name, CPU, processor)) == ("bf16", "fp32")
        assert processor.reason in reason
    assert effective_precision("bf16", torch.device("cuda"), ZEN3) == "bf16"
    monkeypatch.setattr(precision, "this_processor", lambda: ZEN3)
    recipe = counting_recipe(**{"model.vocab_size": SYMBOLS})
    learner = Learner(build(recipe.model, 5), recipe, counting(CountingConfig(), 1), Processes(CPU), "bf16")
    assert learner.precision == "fp32"


@pytest.mark.parametrize(
    ("most", "tiles", "vectors"),
    [
        (None, True, True),
        ("default", True, True),
        ("AVX10_1_512_AMX", True, True),
        ("avx512_core_bf16", False, True),
        ("AVX512_CORE_FP16", False, True),
        ("AVX512_CORE_VNNI", False, False),
        ("AVX2", False, False),
    ],
)
def test_what_onednn_may_not_use_is_not_there(
    monkeypatch: pytest.MonkeyPatch, most: str | None, tiles: bool, vectors: bool
) -> None:
    has = {"cpu_name": "Intel Xeon", "amx_bf16": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if most is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert this_processor() == ("Intel Xeon", tiles, vectors)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert this_processor() == ("", False, False)


def test_the_heaviest_shapes_are_measured() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(4, 4), nn.Linear(1, 1), nn.Linear(2, 2))
    assert main_matrix_shapes(model) == [(3, 3), (4, 4), (2, 2)]


def test_rate_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    rate = display.SpeedAverage()
    rate.update({"step": 0})
    now[0] = 3.0
    rate.pause()
    now[0] = 93.0
    rate.resume()
    now[0] = 94.0
    rate.update({"step": 8})
    assert rate.values == {"step": 2.0}


def test_durations() -> None:
    assert [display.format_duration(s) for s in (0.2, 42, 185, 3723)] == ["0 s", "42 s", "3:05", "1:02:03"]


def test_evaluations_are_in_bf16_where_training_is_on_a_gpu() -> None:
    assert evaluation_precision("bf16", torch.device("cuda", 1)) == "bf16"
    assert evaluation_precision("fp32", torch.device("cuda")) == "fp32"
    assert evaluation_precision("bf16", torch.device("cpu")) == "fp32"
