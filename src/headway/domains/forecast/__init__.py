"""Time series forecasting: quantiles of future values from past values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.forecast.predictors import Forecast

__all__ = ["RECIPES", "TASKS", "VERBS", "Forecast"]
RECIPES = ("forecast",)
TASKS = {"forecast": "task"}
VERBS = {"forecast": "is_forecaster"}
lazy_exports(__name__, {".predictors": ("Forecast",)})
