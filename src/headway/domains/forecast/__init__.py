"""Forecasts of time series: quantiles of what comes, from what came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.forecast.predictors import Forecast, forecast

__all__ = ["RECIPES", "TASKS", "Forecast", "forecast"]
RECIPES = ("forecast",)
TASKS = {"forecast": "task"}
lazily(__name__, {".predictors": ("Forecast", "forecast")})
