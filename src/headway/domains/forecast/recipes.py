"""The recipe for your own time series, and how it scales with data and time."""

from __future__ import annotations

import math

from headway.domains.forecast.task import ForecastConfig
from headway.learn import MuonConfig, Recipe, TrainConfig
from headway.learn.objectives.quantiles import HEAD
from headway.learn.plan.scale import Scale, ScalingLaw
from headway.learn.recipe import generic
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    PooledHeadConfig,
    StackConfig,
    StatesEmbedConfig,
    StateVectorConfig,
    TransformerConfig,
)
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.positions import RotaryConfig


def forecast() -> Recipe:
    """The last patch predicts all quantiles for the horizon at once; a head initialised to zero repeats a simple
    forecast.
    """
    mixer, feed_forward = AttentionConfig(2, rotary=RotaryConfig()), MLPConfig(activation="relu_squared")
    return generic(
        "forecast",
        "forecast",
        "any time series: .csv, .tsv or .jsonl with a time column and one or many series",
        model=TransformerConfig(
            16,
            stack=StackConfig((BlockConfig(mixer, None, feed_forward, dropout=0.2),)),
            embed=StatesEmbedConfig(StateVectorConfig(), normalise=False),
            heads={HEAD: PooledHeadConfig(1, "last")},
            tie="none",
            init=InitConfig("fan_in", head="zero"),
        ),
        task=ForecastConfig(),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        train=TrainConfig(steps=300, batch_size=32),
        expected="a minute on one core; --minutes chooses size and steps for your data",
    )


RECIPES = (forecast,)


SCALES = {
    # Batches are counted in windows. Each value is predicted in as many windows as the horizon has steps.
    "forecast": Scale(
        law=ScalingLaw(0.1, 3.0, 0.3, 10.5, 0.35),
        batch_setting="train.batch_size",
        min_batch=32,
        max_batch=512,
        calibrated=True,
        shapes=((16, 1, 2), (32, 1, 2), (48, 2, 3), (64, 2, 4), (96, 3, 4), (128, 4, 4), (192, 4, 6), (256, 6, 8)),
        dropout=((20, 0.0), (60, 0.1), (math.inf, 0.2)),
        # The recipe's learning rate was tuned with one layer.
        learning_rates=lambda recipe, width, depth: {"optim.lr": recipe.optim.lr / math.sqrt(depth)},
    )
}
