"""The recipe for any time series of the user's."""

from __future__ import annotations

from headway.domains.forecast.task import ForecastConfig
from headway.learn import MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.learn.objectives.quantiles import HEAD
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    NumbersConfig,
    PooledHeadConfig,
    StackConfig,
    StatesEmbedConfig,
    TransformerConfig,
)
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.positions import RotaryConfig


def forecast() -> Recipe:
    """The last patch says all quantiles of the horizon at once; a head of zeros says those of a simple forecast."""
    mixer, feed = AttentionConfig(2, rotary=RotaryConfig()), MLPConfig(activation="relu_squared")
    return Recipe(
        name="forecast",
        domain="forecast",
        description="any time series: .csv, .tsv or .jsonl with a column of times, one or many series",
        data=(),
        model=TransformerConfig(
            16,
            stack=StackConfig((BlockConfig(mixer, None, feed, dropout=0.2),)),
            embed=StatesEmbedConfig(NumbersConfig(), normalise=False),
            heads={HEAD: PooledHeadConfig(1, "last")},
            tie="none",
            init=InitConfig("fan_in", head="zero"),
        ),
        task=ForecastConfig(),
        optim=MuonConfig(weight_decay=0.1, adam_lr=2e-3, adam_weight_decay=0.05),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=300, batch_size=32),
        expected="a minute of one core; --minutes chooses size and steps for your data",
    )


RECIPES = (forecast,)
