"""Steps whose loss is not finite, or jumps, are named with their samples."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from tiny_task import counting_recipe

from headway.errors import UserError
from headway.learn import FULL_SHARD
from headway.learn.anomalies import LossWatch, describe_samples
from headway.learn.display import SilentDisplay
from headway.learn.examples import FixedSizeBatches, IndexedExamples
from headway.learn.learner import Update
from headway.learn.run import Progress
from headway.learn.training_log import TrainingLog


def test_a_step_that_is_not_finite_is_named_with_its_samples() -> None:
    progress, examples = Progress(), FromTable()
    describe = partial(describe_samples, examples, accumulate=2)
    journal = TrainingLog(counting_recipe(steps=100), progress, [], SilentDisplay(100, 1.0, ""), describe)
    for step in range(1, 6):  # read together, after the fifth
        progress.step = step
        loss = math.nan if step >= 4 else 2.0
        journal.add(Update(("next",), torch.tensor(1.0), torch.tensor([0.0, 8.0, 1.0, loss])), 8, 8)
    order = FixedSizeBatches(20, 3, seed=1)
    rows = [10 + row for _, batch in islice(order.endless(FULL_SHARD, 6), 2) for row in batch]
    named = "samples " + ", ".join(map(str, rows))
    with pytest.raises(UserError, match=rf"the loss is nan and .* at step 4 \(micro-batches 6 to 7: {named}\); check"):
        journal.flush()


class FromTable(IndexedExamples):
    """Rows 10 to 29 of a table are for training."""

    seed, batch_size = 1, 3

    def rows_of(self, split: str) -> np.ndarray:
        return np.arange(10, 30)


def test_jumps_of_the_loss_are_found_and_noise_is_not() -> None:
    random = np.random.default_rng(1)
    noise = 3 * 0.999 ** np.arange(5000) + 1 + 0.3 * random.standard_t(5, 5000)  # a falling loss, heavy tails
    watch = LossWatch()
    assert [step for step, loss in enumerate(noise) if watch.jump(step, abs(loss))] == []
    assert [watch.jump(step, loss) for step, loss in enumerate((12.0, 1.0, 1.0, 1.0, 1.0), 5000)] == [None] * 5
    *none, jump, again = (watch.jump(step, 12.0) for step in range(5005, 5010))
    assert none == [None] * 3
    assert jump is not None
    assert (jump.step, jump.loss) == (5005, 12.0)
    assert jump.median == pytest.approx(1, abs=0.2)
    assert again is None  # it is reported once
    assert watch.jump(5200, math.nan) is None
