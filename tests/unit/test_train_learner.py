"""One update: accumulation, several losses, clipping, the moving average."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from tiny_task import SYMBOLS, CountingConfig, counting, counting_recipe

import headway.learn.learner as learner_module
from headway.errors import UserError
from headway.learn.examples import Batch
from headway.learn.learner import Learner, Update
from headway.learn.parallel.processes import Processes
from headway.nn.models import build

pointwise_module = import_module("headway.nn.kernels.pointwise")  # the package has a function of that name


def _learner(counted: bool = False, losses: int = 1, **settings: Any) -> Learner:
    """In float64, without dropout."""
    recipe = counting_recipe(**{"model.vocab_size": SYMBOLS, "model.dropout": 0.0, "optim.eps": 1e-3, **settings})
    task = counting(CountingConfig(losses=losses), 1, ahead=counted)
    return Learner(build(recipe.model, 5).double(), recipe, task, Processes(torch.device("cpu")))


def test_large_layers_are_trained_by_compiled_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is compiled as a whole, or is not large, loads none."""
    loaded: list[int] = []
    load = learner_module._compiled_gelu
    monkeypatch.setattr(learner_module, "_compiled_gelu", lambda: (loaded.append(1), load())[1])
    recipe = counting_recipe(
        **{"model.vocab_size": SYMBOLS, "model.stack.blocks.0.feed_forward.activation": "gelu_tanh"}
    )
    task = counting(CountingConfig(), 1)
    found = []
    for most in (1 << 18, 64, 64):
        monkeypatch.setattr(pointwise_module, "_MANY", most)
        learner = Learner(build(recipe.model, 5), recipe, task, Processes(torch.device("cpu")))
        for step in range(2):
            learner.update(step, [task.examples.batch(step)])  # type: ignore[attr-defined]
        found.append((learner.flat.data.clone(), len(loaded)))
    (plain, none), (compiled, few), (again, more) = found
    assert (none, more) == (0, 2 * few)
    assert few == 2  # a layer, and two steps
    torch.testing.assert_close(compiled, plain)
    assert torch.equal(compiled, again)


def _joined(batches: list[Batch]) -> Batch:
    ids, targets = torch.cat([b.inputs[0] for b in batches]), torch.cat([b.targets for b in batches])
    return Batch((ids,), targets, sum(b.tokens for b in batches), sum(b.computed for b in batches))


@pytest.mark.parametrize(("losses", "counted"), [(1, False), (2, True)])
def test_accumulated_micro_batches_are_one_batch(losses: int, counted: bool) -> None:
    small, large = _learner(counted, losses), _learner(counted, losses)
    parts = [small.task.examples.batch(k) for k in range(3)]  # type: ignore[attr-defined]
    assert len({part.tokens for part in parts}) > 1
    for step in range(3):
        updates = small.update(step, parts), large.update(step, [_joined(parts)])
        assert updates[0].tokens() == updates[1].tokens() == sum(part.tokens for part in parts)
        torch.testing.assert_close(updates[0].stats, updates[1].stats)
        torch.testing.assert_close(updates[0].norm, updates[1].norm, rtol=1e-12, atol=0)
    torch.testing.assert_close(small.flat.data, large.flat.data, rtol=1e-12, atol=1e-14)


def test_gradient_is_that_of_the_sum_of_means() -> None:
    learner = _learner(losses=2, **{"clip": None})
    batch = learner.task.examples.batch(0)  # type: ignore[attr-defined]
    reference = _learner(losses=2)
    losses = reference.task.loss(reference.model, batch)
    sum(loss.total / loss.count for loss in losses.values()).backward()  # type: ignore[union-attr]
    update = learner.update(0, [batch])
    torch.testing.assert_close(learner.flat.grads, reference.flat.grads)
    assert list(update.losses()) == ["next", "first"]


def test_losses_that_cannot_be_accumulated_are_refused() -> None:
    learner = _learner(losses=2)
    with pytest.raises(UserError, match="losses next, first have different counts"):
        learner.update(0, [learner.task.examples.batch(k) for k in range(2)])  # type: ignore[attr-defined]


def test_clipping_bounds_the_norm() -> None:
    free, bound = _learner(clip=None), _learner(clip=0.01)
    for learner in (free, bound):
        norm = learner.update(0, [learner.task.examples.batch(0)]).norm  # type: ignore[attr-defined]
        assert norm > 0.01
    assert torch.linalg.vector_norm(bound.flat.grads).item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(free.flat.grads / torch.linalg.vector_norm(free.flat.grads), bound.flat.grads / 0.01)


def test_moving_average_is_what_is_evaluated() -> None:
    learner = _learner(ema=0.5)
    expected = learner.flat.data.clone()
    for step in range(4):
        learner.update(step, [learner.task.examples.batch(step)])  # type: ignore[attr-defined]
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * learner.flat.data
    trained = learner.flat.data.clone()
    with learner.evaluating() as model:
        assert not model.training
        torch.testing.assert_close(learner.flat.data, expected)
    assert learner.model.training
    assert torch.equal(learner.flat.data, trained)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    def update(learner: Learner, step: int) -> Update:
        return learner.update(step, [learner.task.examples.batch(0)])  # type: ignore[attr-defined]

    first, second = _learner(**{"model.dropout": 0.5}), _learner(**{"model.dropout": 0.5})
    second._generator.manual_seed(99)
    assert torch.equal(update(first, 7).stats, update(second, 7).stats)
    third = _learner(**{"model.dropout": 0.5})
    assert not torch.equal(update(third, 8).stats, update(_learner(**{"model.dropout": 0.5}), 7).stats)
