"""parallel.exact: the same bits with any number of processes."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from test_domains_streams import open_task, small
from test_train_distributed import _launch
from tiny_task import SYMBOLS, CountingConfig, counting, counting_recipe, train
from torch import Tensor, nn

from headway.learn.adapters import LoRAConfig, with_adapter
from headway.learn.learner import Learner, Update
from headway.learn.optim import AdamWConfig, MuonConfig, OptimConfig, Optimizer, SGDConfig, lerp
from headway.learn.parallel.exact import ExactSum, exact_norm
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import Clock, Speed, TimeBudget
from headway.learn.recipe import Recipe
from headway.learn.run import read_metrics
from headway.learn.task import Task
from headway.nn.models import build

CPU = torch.device("cpu")
ACCUMULATE = 5
EXACT = {"parallel.exact": True, "accumulate": ACCUMULATE}


class Member(Processes):
    """One of several threads that stand for processes: real ones take seconds to start."""

    def __init__(self, rank: int, world: int, slots: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(CPU)
        self.rank, self.world, self._slots, self._barrier = rank, world, slots, barrier

    def _all(self, values: Any) -> list[Any]:
        self._slots[self.rank] = values
        self._barrier.wait(60)
        gathered = list(self._slots)
        self._barrier.wait(60)
        return gathered

    def sum(self, values: Tensor) -> Tensor:
        return values.copy_(reduce(torch.add, self._all(values.clone())))

    def maximum(self, values: Tensor) -> Tensor:
        return values.copy_(reduce(torch.maximum, self._all(values.clone())))

    def broadcast(self, values: Tensor, source: int = 0) -> None:
        values.copy_(self._all(values.clone())[source])


def together(world: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What `work` returns in each of `world` processes."""
    slots, results, barrier = [None] * world, [None] * world, threading.Barrier(world)

    def run(rank: int) -> None:
        try:
            results[rank] = work(Member(rank, world, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not barrier.broken
    return results


Setting = Callable[[Path], tuple[Recipe, Task, Callable[[], nn.Module]]]


def counts(**settings: Any) -> Setting:
    def make(folder: Path) -> tuple[Recipe, Task, Callable[[], nn.Module]]:
        recipe = counting_recipe(**{"model.vocab_size": SYMBOLS, **EXACT, **settings})
        return recipe, counting(CountingConfig(losses=2), 1, ahead=True), lambda: build(recipe.model, 5)

    return make


def low_rank(folder: Path) -> tuple[Recipe, Task, Callable[[], nn.Module]]:
    recipe, task, make = counts()(folder)
    return recipe, task, lambda: with_adapter(make(), LoRAConfig(2, dropout=0.2), (), seed=2)


def carried(folder: Path) -> tuple[Recipe, Task, Callable[[], nn.Module]]:
    path = folder / "period.txt"
    path.write_text("abac" * 500)
    recipe = small(**{"parallel.exact": True, "train.accumulate": ACCUMULATE, "model.dropout": 0.1})
    task, *_ = open_task(recipe, path)
    return recipe, task, lambda: build(task.adapt(recipe.model), 5)


def steps(
    setting: tuple[Recipe, Task, Callable[[], nn.Module]], world: int, start: int, stop: int, state: Any = None
) -> tuple[dict[str, Tensor], list[Update]]:
    """The state after steps `start` to `stop`, and their updates."""
    recipe, task, make = setting

    def work(processes: Processes) -> tuple[dict[str, Tensor], list[Update]]:
        learner = Learner(make(), recipe, task, processes)
        if state is not None:
            learner.load_state_dict(state)
            learner.flat.data.copy_(state["flat"])
        stream = task.batches("train", processes.shard(ACCUMULATE), start * ACCUMULATE)
        share = processes.local_micro_batches(ACCUMULATE)
        updates = [learner.update(step, list(islice(stream, share))) for step in range(start, stop)]
        learner.gather()
        return {**learner.state_dict(), "flat": learner.flat.data}, updates

    return together(world, work)[0]


@pytest.mark.parametrize(
    "make",
    [
        counts(ema=0.9),
        counts(optim="muon"),
        counts(optim={"kind": "sgd", "momentum": 0.9}),
        counts(clip=0.01),
        low_rank,
        carried,
    ],
    ids=["adamw and average", "muon", "sgd", "clipped", "lora", "carried lstm"],
)
def test_any_number_of_processes_gives_the_same_bits(make: Setting, tmp_path: Path) -> None:
    setting = make(tmp_path)
    alone, updates = steps(setting, 1, 0, 4)
    assert not torch.equal(alone["flat"], steps(setting, 1, 0, 3)[0]["flat"])
    for world in (2, 3):
        state, others = steps(setting, world, 0, 4)
        assert state.keys() == alone.keys()
        assert all(torch.equal(state[name], alone[name]) for name in alone)
        assert all(torch.equal(one.stats, other.stats) for one, other in zip(updates, others))
        assert all(torch.equal(one.norm, other.norm) for one, other in zip(updates, others))
    state, _ = steps(setting, 2, 0, 1)
    state, _ = steps(setting, 3, 1, 3, state)
    state, _ = steps(setting, 1, 3, 4, state)
    assert all(torch.equal(state[name], alone[name]) for name in alone)


def test_exact_gradients_are_the_gradients() -> None:
    """In float64 and without dropout; a norm has squares with 36 bits."""
    settings: dict[str, Any] = {"model.dropout": 0.0, "model.vocab_size": SYMBOLS, "optim.eps": 1e-3, **EXACT}
    task = counting(CountingConfig(), 1)
    batches = list(islice(task.batches("train"), ACCUMULATE))
    results = []
    for exact in (True, False):
        recipe = counting_recipe(**{**settings, "parallel.exact": exact})
        learner = Learner(build(recipe.model, 5).double(), recipe, task, Processes(CPU))
        update = [learner.update(step, batches) for step in range(3)][-1]
        results.append((learner.flat.grads, update.stats, learner.flat.data, update.norm))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-9 if one.dim() else 1e-7, atol=1e-11)


def test_a_gradient_beyond_its_scale_repeats_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose scales were far off, too large or too small, ends with the same bits and the same scales."""
    setting = carried(tmp_path)
    expected, _ = steps(setting, 1, 0, 3)
    start, _ = steps(setting, 2, 0, 2)
    calls: list[bool] = []
    agree = ExactSum.agree
    monkeypatch.setattr(ExactSum, "agree", lambda self: (calls.append(agree(self)), calls[-1])[1])
    for change in (40, -40):
        state = {name: t + change if name.startswith("exponent.") else t for name, t in start.items()}
        calls.clear()
        repeated, _ = steps(setting, 2, 2, 3, state)
        assert calls.count(False) == calls.count(True) == 2  # in each process
        assert repeated.keys() == expected.keys()
        for name in expected:  # each gradient is rounded at another scale
            torch.testing.assert_close(repeated[name], expected[name], rtol=1e-5, atol=1e-6)
        for world in (1, 3):
            other, _ = steps(setting, world, 2, 3, state)
            assert all(torch.equal(other[name], repeated[name]) for name in repeated)


def test_scales_follow_the_largest_element_and_nan_stays_nan() -> None:
    sums = ExactSum(["a", "b", "c"], 4, Processes(CPU))
    names = sums.names

    def step(*values: float) -> tuple[bool, list[float]]:
        gradients = [torch.tensor([value, value / 3]) for value in values]
        totals = [torch.zeros(2, dtype=torch.int64) for _ in values]
        sums.begin()
        if not sums.has_scales:
            sums.observe(names, gradients)
            assert not sums.agree()
            sums.begin()
        sums.add(names, gradients, totals)
        is_valid = sums.agree()
        if is_valid:
            sums.convert(names, totals, gradients)
        return is_valid, [float(gradient[0]) for gradient in gradients]

    assert step(0.5, 3.0, 0.0) == (True, [0.5, 3.0, 0.0])
    # 62 bits for the sum of 4, of which 16 are for growth: 44 for an element below 1, 42 for one below 4
    assert sums.state_dict() == {"exponent.a": 44, "exponent.b": 42, "exponent.c": 42}
    assert step(0.5 * 2**16, 3.0, 0.0)[0]
    assert step(0.5, 3.0, 2.0**-40)[0] is False  # c would keep 2 bits
    assert step(0.5, 3.0, 2.0**-40) == (True, [0.5, 3.0, 2.0**-40])
    assert step(0.5 * 2**17, 3.0, 0.0)[0] is False
    assert step(0.5 * 2**17, 3.0, 0.0) == (True, [0.5 * 2**17, 3.0, 0.0])
    is_valid, (a, b, c) = step(math.nan, -math.inf, 1.0)
    assert is_valid is False  # c again
    is_valid, (a, b, c) = step(math.nan, -math.inf, 1.0)
    assert (is_valid, math.isnan(a), math.isnan(b), c) == (True, True, True, 1.0)
    assert step(0.5 * 2**17, 3.0, 1.0)[0]  # the scales were kept


@pytest.mark.parametrize("cut", [1, 1029, 70_001])
def test_rows_have_the_bits_of_the_complete_tensor(cut: int) -> None:
    """Sums, norms and updates do not depend on where a part of a tensor ends."""
    generator = torch.Generator().manual_seed(cut)
    whole = torch.randn(100_003, generator=generator) * torch.randn(100_003, generator=generator).exp()
    parts = [whole[:cut].clone(), whole[cut:].clone()]

    def summed(pieces: Sequence[Tensor]) -> Tensor:
        sums = ExactSum(["a"], 3, Processes(CPU))
        for piece in pieces:
            sums.observe(["a"], [piece])
        sums.agree()
        totals = [torch.zeros(piece.shape, dtype=torch.int64) for piece in pieces]
        sums.begin()
        for factor in (1.0, -0.3, 0.7):
            for piece, total in zip(pieces, totals):
                sums.add(["a"], [piece * factor], [total])
        assert sums.agree()
        results = [torch.empty_like(piece) for piece in pieces]
        for total, result in zip(totals, results):
            sums.convert(["a"], [total], [result])
        return torch.cat(results)

    exact = summed([whole])
    assert torch.equal(exact, summed(parts))
    torch.testing.assert_close(exact, whole * 1.4, rtol=1e-5, atol=1e-6)

    results: list[list[Any]] = [[], []]  # maxima and sums of squares of both parts

    def total(values: Tensor) -> Tensor:
        kind = results[values.dtype == torch.int64]
        kind.append(values.clone())
        return values

    for part in parts:  # first the maxima of both, then the sums at the same scale
        exact_norm({"a": len(whole)}, [part], total, total)
    highest = torch.stack(results[0]).amax(0)
    results[1].clear()
    for part in parts:
        exact_norm({"a": len(whole)}, [part], lambda values: highest, total)
    joined = exact_norm({"a": len(whole)}, [parts[0]], lambda values: highest, lambda values: sum(results[1]))  # type: ignore[arg-type,return-value]
    norm = exact_norm({"a": len(whole)}, [whole])
    assert joined == norm == pytest.approx(whole.double().norm().item(), rel=1e-7)
    assert math.isnan(exact_norm({"a": 3}, [torch.tensor([1.0, math.nan, 2.0])]))

    averages = [torch.ones_like(whole), torch.ones_like(parts[0]), torch.ones_like(parts[1])]
    for average, end in zip(averages, (whole, *parts)):
        lerp(average, end, 0.01)
    assert torch.equal(averages[0], torch.cat(averages[1:]))


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.3), SGDConfig(momentum=0.9), MuonConfig()])
def test_an_element_is_updated_the_same_whatever_is_next_to_it(config: OptimConfig) -> None:
    """A vector of any length has the bits of the start of a longer one."""

    def updated(length: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        model = nn.Module()
        values = torch.randn(2, 3001, generator=generator)
        model.weight = nn.Parameter(values[0, :length].clone())
        optimizer = Optimizer(config, model, exact=True)
        for step in range(3):
            optimizer.flat.grads[:length] = values[1, :length] * (step + 1)
            optimizer.step(0.7)
        return model.weight.detach().clone()

    complete = updated(3001)
    assert all(torch.equal(updated(length), complete[:length]) for length in range(1, 3001, 37))


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.3), SGDConfig(momentum=0.9), MuonConfig()])
def test_exact_updates_are_the_updates(config: OptimConfig) -> None:
    weights = []
    for exact in (False, True):
        model = build(counting_recipe(**{"model.vocab_size": SYMBOLS}).model, seed=3).double()
        optimizer = Optimizer(config, model, exact=exact)
        for step in range(4):
            optimizer.flat.grads.copy_((optimizer.flat.data * 3 + step).sin())
            optimizer.step(0.5)
        weights.append(optimizer.flat.data)
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)


def test_minutes_are_planned_once() -> None:
    """A plan by the clock would depend on the number of processes."""
    recipe = counting_recipe(**EXACT, steps=100)
    for is_final in (False, True):
        budget = TimeBudget(Clock(), 100.0, Speed(0.1, 2.0), 100, patience=2, is_final=is_final)
        due = [step for step in range(100) if budget.is_revision_due(step, 100)]
        assert bool(due) == budget.update_max_steps(recipe, 20, stale=2) == (not is_final)


def _lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    times = ("seconds", "tokens_per_second", "evaluation_seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in read_metrics(run / "metrics.jsonl")]


def test_a_run_that_continues_with_other_processes_has_the_same_files(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 9, "accumulate": 3, "ema": 0.9, "checkpoint_every": 3, "evaluate_every": 3}
    train(tmp_path / "one", counting_recipe(**settings, **{"parallel.exact": True}))
    run = tmp_path / "several"
    programs = _launch(run, "new", **settings, delay=0.05)  # exact by default
    while not (run / "checkpoints" / "step-00000003").exists():
        assert all(program.returncode is None for program in programs)
        time.sleep(0.02)
    for program in programs:
        program.signal(signal.SIGKILL)
    for program in programs:
        program.wait()
    assert json.loads((run / "recipe.json").read_text())["parallel"]["exact"] is True
    train(run, counting_recipe(**settings), resume=True)
    one = tmp_path / "one"
    assert _lines(run) == _lines(one)
    files = [path.relative_to(one) for path in one.glob("**/*.safetensors")]
    assert len(files) == 5
    assert all((run / path).read_bytes() == (one / path).read_bytes() for path in files)


def test_each_step_keeps_its_own_statistics(tmp_path: Path) -> None:
    """They are read later, when a line is logged."""
    settings = {"steps": 12, "accumulate": 1, "model.dropout": 0.0}
    exact, plain = (
        train(tmp_path / str(choice), counting_recipe(**settings, **{"parallel.exact": choice})).metrics
        for choice in (True, False)
    )
    for one, other in zip(exact, plain, strict=True):
        assert one.get("tokens") == other.get("tokens")
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
