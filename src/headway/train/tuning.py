"""How a model that has learnt before is trained on: rates, batches and how often the data are read."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.train.adapters import AdapterConfig
from headway.train.scale import Pace, Settings

_WIDTH, _RATE = 384, 4e-4  # of the model whose rate was tried: all-MiniLM-L6-v2 on the 77 intents of banking77
_LEAST, _MOST = 1e-5, 1e-3  # rates
_ADAPTER = 10.0  # times the rate of the whole model
_EPOCHS, _FEWEST, _OFTENEST = 600.0, 3.0, 40.0
_WRITTEN = 8.0  # the most readings of texts that are written, which are known by heart sooner than labels
_STEPS = 300  # that a plan should have at least
_SMALL, _LARGE = 8, 64  # samples of a batch


class Tuned(NamedTuple):
    """The batches of a run that begins from a model; the steps beyond which it gains nothing (`useful`), those that fit
    into the time if they are fewer (`steps`), the readings of the data that these are, and why, for people.
    """

    settings: Settings
    useful: int
    steps: int
    epochs: float
    reason: str


def rates(width: int, adapter: AdapterConfig | None) -> Settings:
    """The optimiser and the schedule for a model of `width`, or for an adapter of it.

    The rate falls with the square of the width: 4e-4 at 384 (all-MiniLM-L6-v2, the recipe banking77), 1e-4 at 768,
    where Devlin et al. 2019 try 2e-5 to 5e-5 with a schedule that falls from the start, 1e-5 from 2,400 on, where
    models of billions of weights are tuned at 1e-5 to 2e-5. Adapters take ten times as much (Schulman et al. 2025,
    "LoRA without regret").
    """
    rate = min(max(_RATE * (_WIDTH / width) ** 2, _LEAST), _MOST) * (1.0 if adapter is None else _ADAPTER)
    rate = float(f"{rate:.2g}")
    return {
        "optim": {"kind": "adamw", "lr": rate, "betas": [0.9, 0.98], "weight_decay": 0.01},
        "schedule": {"kind": "wsd", "warmup": 0.06, "decay": 0.8},
    }


def epochs_of(samples: int, written: bool) -> float:
    """How often so many samples are read before more of it helps no more: 40 times a few hundred, 6 times 10,000, 3
    times 40,000 and more; texts that are `written` 8 times at most.
    """
    found = min(max(_EPOCHS / math.sqrt(max(1, samples)), _FEWEST), _OFTENEST)
    return min(found, _WRITTEN) if written else found


def tuned(
    samples: int,
    targets: int,
    pace: Pace,
    seconds: float,
    batch: str,
    least: int = 1,
) -> Tuned:
    """The plan for `seconds` of training on so many `samples`, which have so many `targets` together, at a `pace`.

    `batch` is the setting that the recipe counts batches by, and `least` the smallest it takes (a row of tokens).
    Batches are large enough to be quick and small enough for some hundred steps.
    """
    each = targets / max(1, samples)
    epochs = epochs_of(samples, written=each > 2)
    wanted = min(max(samples * epochs / _STEPS, _SMALL), _LARGE)
    units = max(least, 2 ** round(math.log2(max(1.0, wanted * each / pace.share))))
    learnt = units * pace.share  # targets a step
    useful = max(1, math.ceil(epochs * targets / learnt))
    steps = max(1, min(useful, int(seconds / (pace.overhead + learnt / pace.targets))))
    read = steps * learnt / max(1, targets)
    early = steps == useful
    why = (
        f"{samples:,} samples teach a model that has learnt before no more when they are read more often"
        if early
        else f"as often as they can be read in {seconds / 60:.2g} minutes; {epochs:.2g} times would help"
    )
    return Tuned({batch: units}, useful, steps, read, f"{read:.2g} times all data in {steps:,} steps: {why}")
