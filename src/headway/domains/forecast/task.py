"""The forecasting task: windows over series split by time, their scaling, quantiles of the values that follow, and
mixtures of network forecasts with simple ones, weighted by their validation errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.config import dumps, from_dict
from headway.config_kinds import register
from headway.data.series import Calendar, Series, SeriesColumns, forecast_windows, plot_axis, read_series, split_ends
from headway.data.splits import Splits
from headway.domains.forecast.exponential_smoothing import (
    LAST,
    LAST_SEASON,
    SmoothedSeries,
    SmoothingParams,
    select_params,
    smooth,
)
from headway.errors import ConfigError, UserError, nearest
from headway.io.durable import read_json, write_text
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, RngKey, spread_evenly
from headway.learn.objectives.quantiles import ForecastSamples, ForecastWindow, Quantiles
from headway.learn.recipe import batch_size_of
from headway.metrics.forecasts import seasonal_error, simple_forecasts
from headway.nn.models import ModelConfig, StatesEmbedConfig, StateVectorConfig, TransformerConfig

_SHARES = np.linspace(0, 1, 21)
_ERROR_TOLERANCE = 1.05  # shares with at most this multiple of the lowest error count as equally good
_NETWORK_WINDOWS, _WIDTH_WINDOWS = 2.0, 4.0  # number of independent windows at which the choice has half its weight
_MAX_WIDTH = 5.0


class Forecasts(NamedTuple):
    """Each forecaster's quantiles for the same windows, in the scale of the data."""

    network: Float[np.ndarray, "N S Q"]
    smoothing: Float[np.ndarray, "N S Q"]
    naive: Float[np.ndarray, "N S Q"]


class Observed(NamedTuple):
    """The actual values in windows, which of them are valid, and the scale of their errors."""

    values: Float[np.ndarray, "N S"]
    valid: Bool[np.ndarray, "N S"]
    scales: Float[np.ndarray, "N"]

    def error(self, quantiles: Float[np.ndarray, "N S Q"]) -> float:
        """The mean absolute scaled error of the medians."""
        return float(
            (np.abs(self.values - quantiles[..., quantiles.shape[-1] // 2]) / self.scales[:, None])[self.valid].mean()
        )


@dataclass(frozen=True)
class ForecastMixture:
    """Averages the quantiles from the network, exponential smoothing and the seasonal naive forecast, weighted by
    `shares`, and then multiplies their distances from the median by `widths`, below and above it. `errors` are the mean
    absolute scaled errors of the three on the validation split.
    """

    shares: tuple[float, float, float]
    widths: tuple[float, float]
    errors: tuple[float, float, float]

    def __post_init__(self) -> None:
        are_shares = all(0 <= share <= 1 for share in self.shares) and abs(sum(self.shares) - 1) < 1e-3
        if not are_shares or not all(0 < width <= _MAX_WIDTH for width in self.widths):
            problem = f"invalid shares {self.shares} or widths {self.widths}"
            raise ConfigError(f"the forecast mixture has {problem}; restore forecast.json from a copy")

    def mix(self, forecasts: Forecasts) -> Float[np.ndarray, "N S Q"]:
        quantiles = np.sum([share * forecast for share, forecast in zip(self.shares, forecasts) if share], 0)
        median_index = forecasts.network.shape[-1] // 2
        factors = np.array([self.widths[0]] * median_index + [1.0] + [self.widths[1]] * median_index)
        return quantiles[..., median_index, None] + factors * (quantiles - quantiles[..., median_index, None])

    def __str__(self) -> str:
        errors = [f"{error:.3g}" for error in self.errors]
        shares = [f"{100 * share:.0f} %" for share in self.shares]
        return (
            f"forecasts mix {shares[0]} network, {shares[1]} exponential smoothing and {shares[2]} seasonal naive; on "
            f"the validation split their mean absolute scaled errors are {errors[0]}, {errors[1]} and {errors[2]}"
        )


def choose_mixture(
    simple: tuple[Float[np.ndarray, "M S Q"], Float[np.ndarray, "M S Q"]],
    past: Observed,
    predicted: Forecasts,
    actual: Observed,
) -> ForecastMixture:
    """Choose the mixture for validation windows from the forecasts `predicted` and the values `actual`. The relative
    weights of the simple forecasts also use training windows, `simple` (smoothing, naive) and `past`, because these
    forecasts have few fitted parameters.

    A share is the mean of all shares that are about as good as the best. The fewer windows there are, the lower the
    network's share and the closer the widths are to 1. The widths leave a tenth of the values beyond each edge.
    """
    naive = _best_share(*simple, past)
    simple_mix = (1 - naive) * predicted.smoothing + naive * predicted.naive
    num_windows = predicted.network.shape[0] / predicted.network.shape[1]
    network = _best_share(simple_mix, predicted.network, actual) * num_windows / (num_windows + _NETWORK_WINDOWS)
    shares = (round(network, 4), round((1 - network) * (1 - naive), 4), round((1 - network) * naive, 4))
    quantiles = ForecastMixture(shares, (1.0, 1.0), (0.0, 0.0, 0.0)).mix(predicted)[actual.valid]
    median, confidence = quantiles[:, quantiles.shape[1] // 2], num_windows / (num_windows + _WIDTH_WINDOWS)
    widths = []
    for edge in (quantiles[:, 0], quantiles[:, -1]):  # the factors that leave a tenth of the values beyond each edge
        nonzero = edge != median
        ratios = (actual.values[actual.valid] - median)[nonzero] / (edge - median)[nonzero]
        width = float(np.clip(np.quantile(ratios, 0.9), 1 / _MAX_WIDTH, _MAX_WIDTH)) if len(ratios) else 1.0
        widths.append(width**confidence)
    network, smoothing, naive = map(actual.error, predicted)
    return ForecastMixture(shares, (round(widths[0], 4), round(widths[1], 4)), (network, smoothing, naive))


def _best_share(first: Float[np.ndarray, "N S Q"], second: Float[np.ndarray, "N S Q"], actual: Observed) -> float:
    """The share of `second`."""
    median_index = first.shape[-1] // 2
    first, second = (forecast[..., median_index : median_index + 1] for forecast in (first, second))
    errors = np.array([actual.error((1 - share) * first + share * second) for share in _SHARES])
    return float(_SHARES[errors <= _ERROR_TOLERANCE * errors.min()].mean())


FILE = "forecast.json"  # next to a model: its input windows, and how its outputs are scaled
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MAX_STEPS = 1 << 24  # maximum steps of a context, a horizon or a season
_MIN_SCALE = 0.05  # minimum scale of a window, relative to the standard deviation of the complete series


class ScaledWindow(NamedTuple):
    """Patches as model inputs, and the simple quantiles and unit that scale its outputs."""

    inputs: Float[Tensor, "B T C"]
    base_quantiles: Float[np.ndarray, "B S Q"]
    unit: Float[np.ndarray, "B 1 1"]

    def unscale(self, outputs: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """Outputs in the scale of the data, sorted, which never makes a quantile worse (Chernozhukov, Fernandez-Val and
        Galichon 2010).
        """
        return np.sort(self.base_quantiles + self.unit * outputs, -1)


@dataclass(frozen=True)
class WindowCodec:
    """The last `context` values as patches of `patch` steps, to predict the next `horizon` values.

    Inputs are standardised values (z) plus each step's position in the season. Outputs are differences from the
    quantiles of a simple forecast, in units of its mean training error `spread`. These quantiles are the forecast
    `line` plus the quantiles of its `errors` at each step of the horizon; an untrained model predicts exactly these.
    `unit` and `step` describe the times. The `mixture` with simple forecasts is chosen after training.
    """

    context: int
    horizon: int
    season: int
    patch: int
    unit: str
    step: int
    line: str = "last"
    spread: float = 1.0
    errors: tuple[tuple[float, ...], ...] = ((0.0,),)
    mixture: ForecastMixture | None = None

    def __post_init__(self) -> None:
        counts = (self.context, self.horizon, self.season, self.patch)
        widths = {len(row) for row in self.errors}
        valid_counts = min(*counts, self.step) > 0 and max(counts) <= _MAX_STEPS and self.context % self.patch == 0
        valid = valid_counts and self.spread > 0
        if not valid or len(self.errors) not in (1, self.horizon) or widths not in ({1}, {len(LEVELS)}):
            raise ConfigError(
                f"{FILE} is inconsistent (context {self.context}, horizon {self.horizon}, season {self.season}, patch "
                f"{self.patch}, {len(self.errors)} rows of errors); restore it from a copy"
            )
        lines = simple_forecasts(np.zeros((1, self.context)), 1, self.season)
        if self.line not in lines:
            raise ConfigError(f"{FILE}: line is {self.line!r}; {nearest(self.line, lines)}")

    @property
    def values_per_patch(self) -> int:
        """Values per patch."""
        return self.patch * (3 if self.season > 1 else 1)

    def encode(
        self, past: Float[np.ndarray, "B C"], steps: Int[np.ndarray, "B"], min_scale: Float[np.ndarray, "B"]
    ) -> ScaledWindow:
        """Windows with the values before these step indices; `min_scale` comes from their series' `flat_scale`."""
        mean, unit = past.mean(1, keepdims=True), np.maximum(past.std(1), min_scale)[:, None]
        channels = [(past - mean) / unit]
        if self.season > 1:
            angle = 2 * np.pi * ((steps[:, None] + np.arange(-self.context, 0)) % self.season) / self.season
            channels += [np.sin(angle), np.cos(angle)]
        inputs = torch.from_numpy(np.stack(channels, -1).astype(np.float32)).reshape(
            len(past), -1, self.values_per_patch
        )
        line, unit = simple_forecasts(past, self.horizon, self.season)[self.line], unit[..., None] * self.spread
        return ScaledWindow(inputs, line[..., None] + unit * np.array(self.errors), unit)

    @property
    def naive(self) -> SmoothingParams:
        """The seasonal naive forecast, or the last value if there are no seasons."""
        return LAST_SEASON if 1 < self.season <= self.context else LAST


def flat_scale(values: Float[np.ndarray, "N"]) -> float:
    """The minimum scale of a series' windows, which avoids dividing by zero for a constant window."""
    return _MIN_SCALE * float(values.std()) or 1.0


_MAX_PATCHES = 32  # maximum patches per context
_EVAL_WINDOWS = 4096  # windows per split in an evaluation, spread evenly over it


@register("forecast")
@dataclass(frozen=True)
class ForecastConfig(TaskConfig):
    """Predict the quantiles 0.1, ..., 0.9 for the `horizon` steps that follow `context` steps of a series.

    The last `test` share of each series (at least one horizon) and the `validation` share before it are held out.
    `time`, `series` and `value` name the columns if these cannot be inferred.
    """

    extra_files: ClassVar[tuple[str, ...]] = (FILE,)
    season: int | None = None  # steps per season, 1 for no season; none: derived from the time step
    context: int | None = None  # input steps; none: derived from the season and the data
    horizon: int | None = None  # predicted steps; none: derived from the season and the data
    validation: float = 0.15  # share of each series' steps
    test: float = 0.15  # share of each series' steps, at its end
    time: str | None = None  # time column
    series: str | None = None  # column with series names, in tables with one row per value
    value: str | None = None  # value column
    fill: bool = False  # whether to interpolate missing values linearly

    def __post_init__(self) -> None:
        for name in ("season", "context", "horizon"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose 1 or more, or none")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError(
                f"task.validation is {self.validation} and task.test {self.test}; choose shares of at least 0 that sum "
                "to less than 1"
            )

    def read_data(self, paths: Sequence[Path]) -> tuple[list[Series], Calendar]:
        """The series in the files."""
        return read_series(paths, SeriesColumns(self.time, self.series, self.value), self.fill)

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read or are too small."""
        embed = recipe.model.embed if isinstance(recipe.model, TransformerConfig) else None
        if not isinstance(embed, StatesEmbedConfig):
            raise ConfigError("this model does not take time series; use the model from the forecast recipe")
        return Task(SeriesWindows(self, recipe, *self.read_data(recipe.files(data)), workspace), Quantiles(LEVELS))

    def codec(self, shortest: Series, calendar: Calendar) -> WindowCodec:
        """The windows for series at least as long as `shortest`. UserError if that one is too short."""
        season, num_values = self.season or calendar.season_length, len(shortest.values)
        horizon = self.horizon or max(1, min(season if season >= 12 else max(8, 2 * season), num_values // 8))
        train_steps = int(split_ends(np.array([num_values]), horizon, (self.validation, self.test))[0][0])
        context = self.context or min(max(3 * season, 4 * horizon, 24), (train_steps - horizon) // 2)
        if train_steps < context + horizon or not (self.context or context >= max(4, season)):
            raise UserError(
                f"the series {shortest.name!r} has {num_values:,} values, of which {max(0, train_steps):,} are for "
                f"training: too few for a season of {season} and a horizon of {horizon}; add more values, or choose a "
                "shorter task.season, task.context or task.horizon"
            )
        patch = -(-context // _MAX_PATCHES)
        return WindowCodec(context - context % patch, horizon, season, patch, calendar.unit, calendar.step)


class SeriesWindows(ForecastSamples):
    """Windows over time series."""

    def __init__(
        self, config: ForecastConfig, recipe: Recipe, series: Sequence[Series], calendar: Calendar, workspace: Path
    ) -> None:
        self.series, self.calendar = series, calendar
        self.seed, self.batch_size = recipe.train.seed, batch_size_of(recipe)
        self.values, self.observed = (
            np.concatenate([getattr(one_series, name) for one_series in series]) for name in ("values", "seen")
        )
        self.starts = np.array([one_series.start // calendar.step for one_series in series])
        stored = read_codec(workspace, calendar)
        self.codec = stored or config.codec(min(series, key=lambda one_series: len(one_series.values)), calendar)
        self.horizon = self.codec.horizon
        self.windows = forecast_windows(series, self.codec.context, self.horizon, (config.validation, config.test))
        eval_rows = {
            split: spread_evenly(self.windows.splits[split], _EVAL_WINDOWS) for split in ("validation", "test")
        }
        all_rows = spread_evenly(np.arange(len(self.windows.series)), _EVAL_WINDOWS)
        self.splits = Splits({**self.windows.splits, **eval_rows}, all_rows, "windows", "longer series")
        season, train_ends = self.codec.season, self.windows.train_ends.tolist()
        train_values = [
            one_series.values[: train_end if train_end > season else None]
            for one_series, train_end in zip(series, train_ends)
        ]
        self.min_scales = np.array([flat_scale(part) for part in train_values])
        self.scales = np.array([seasonal_error(part, season) for part in train_values])
        self._smoothed: dict[tuple[int, bool], tuple[SmoothedSeries, SmoothedSeries]] = {}
        if stored is None:  # use the simple forecast with the lowest training error, and its errors
            rows = spread_evenly(self.splits.rows("train"), _EVAL_WINDOWS)
            windows, units = self.forecast_window(rows), self.scaled_window(rows).unit[..., 0]
            forecasts = simple_forecasts(windows.before, self.horizon, season)
            errors = {name: (windows.after - forecast) / units for name, forecast in forecasts.items()}
            best_line = min(errors, key=lambda name: np.abs(errors[name]).mean())
            mean_error = max(float(np.abs(errors[best_line]).mean()), 1e-3)
            quantiles = np.quantile(errors[best_line] / mean_error, LEVELS, axis=0).T.round(4).tolist()
            self.codec = replace(self.codec, line=best_line, spread=mean_error, errors=tuple(map(tuple, quantiles)))

    def contents(self) -> Contents:
        return {
            "series": ([series.name for series in self.series],),
            "values": (self.values, self.observed, self.starts),
        }

    def forecast_window(self, rows: np.ndarray) -> ForecastWindow:
        starts = self.windows.values[rows][:, None]
        future, past = starts + np.arange(self.horizon), self.values[starts + np.arange(-self.codec.context, 0)]
        simple = simple_forecasts(past, self.horizon, self.codec.season)
        naive, scale = simple.get("season", simple["last"]), self.scales[self.windows.series[rows]]
        return ForecastWindow(past, self.values[future], self.observed[future], naive, scale)

    def scaled_window(self, rows: np.ndarray) -> ScaledWindow:
        """The model inputs of windows."""
        series = self.windows.series[rows]
        indices = self.windows.values[rows][:, None] + np.arange(-self.codec.context, 0)
        return self.codec.encode(
            self.values[indices], self.starts[series] + self.windows.steps[rows], self.min_scales[series]
        )

    def scaled(self, rows: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
        return self.scaled_window(rows).unscale(quantiles)

    def simple_quantiles(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles [N, S, Q] from exponential smoothing and from the seasonal naive forecast, fitted to the values
        before each row's split.
        """
        series, steps = self.windows.series[rows], self.windows.steps[rows]
        quantiles = np.empty((2, len(rows), self.horizon, len(LEVELS)))
        is_test = steps >= self.windows.validation_ends[series]
        for tested in (False, True):
            indices = np.unique(series[is_test == tested]).tolist()
            missing = [index for index in indices if (index, tested) not in self._smoothed]
            if missing:
                season, fit_ends = (
                    self.codec.season,
                    self.windows.validation_ends if tested else self.windows.train_ends,
                )
                values = [self.series[index].values for index in missing]
                ends = [int(fit_ends[index]) for index in missing]
                lengths = [end if end > season else len(part) for end, part in zip(ends, values)]
                fitted = select_params([part[:length] for part, length in zip(values, lengths)], season)
                for index, part, length, params in zip(missing, values, lengths, fitted):
                    naive = smooth(part, length, self.codec.naive, season)
                    self._smoothed[index, tested] = smooth(part, length, params, season), naive
            for index in indices:
                mask = (is_test == tested) & (series == index)
                for output, smoothed_series in zip(quantiles, self._smoothed[index, tested]):
                    output[mask] = smoothed_series.quantiles(steps[mask], self.horizon, LEVELS)
        return quantiles[0], quantiles[1]

    def final_forecast(self, rows: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
        mixture = self.codec.mixture
        return quantiles if mixture is None else mixture.mix(Forecasts(quantiles, *self.simple_quantiles(rows)))

    def classical_forecast(self, rows: np.ndarray) -> np.ndarray:
        return self.simple_quantiles(rows)[0]

    def baselines(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {} if self.codec.mixture is None else {"smoothing": self.simple_quantiles(rows)[0]}

    def choose_combination(self, rows: np.ndarray, quantiles: np.ndarray) -> str:
        """Choose the mixture from the network's predictions for the validation rows."""
        scales = np.where(np.isfinite(self.scales), self.scales, self.min_scales)

        def observe(row_subset: np.ndarray) -> Observed:
            window = self.forecast_window(row_subset)
            return Observed(window.after, window.valid, scales[self.windows.series[row_subset]])

        earlier_rows = spread_evenly(np.concatenate([self.splits.rows("train"), rows]), _EVAL_WINDOWS)
        forecasts = Forecasts(quantiles, *self.simple_quantiles(rows))
        mixture = choose_mixture(self.simple_quantiles(earlier_rows), observe(earlier_rows), forecasts, observe(rows))
        self.codec = replace(self.codec, mixture=mixture)
        return str(mixture)

    @property
    def remarks(self) -> tuple[str, ...]:
        mixture = self.codec.mixture
        return (*super().remarks, *(() if mixture is None else (f"{mixture}.".capitalize(),)))

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Patches, and the targets: values minus each quantile of the simple forecast, in its unit."""
        window, actual = self.scaled_window(rows), self.forecast_window(rows)
        targets = torch.from_numpy(((actual.after[..., None] - window.base_quantiles) / window.unit).astype(np.float32))
        tokens = window.inputs.shape[0] * window.inputs.shape[1]
        return Batch((window.inputs,), (targets, torch.from_numpy(actual.valid)), int(actual.valid.sum()), tokens)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)  # checked by the task
        embed = replace(cast(StatesEmbedConfig, model.embed), states=StateVectorConfig(self.codec.values_per_patch))
        return replace(model, embed=embed, context=self.codec.context // self.codec.patch)

    def latest_rows(self, count: int) -> np.ndarray:
        rows = self.splits.rows(self.final_split)[::-1]
        if len(self.series) > 1:
            _, first_rows = np.unique(self.windows.series[rows], return_index=True)
            return rows[first_rows][spread_evenly(np.arange(len(first_rows)), count)]
        return rows[:: self.horizon][:count][::-1]

    def times(self, row: int) -> np.ndarray:
        steps = self.windows.steps[row] + np.arange(-self.codec.context, self.horizon)
        ticks = self.series[self.windows.series[row]].start + steps * self.codec.step
        return plot_axis(map(self.calendar.format, ticks.tolist()))

    def describe_row(self, row: int) -> str:
        series = self.series[self.windows.series[row]]
        return (
            f"{series.name} from {self.calendar.format(series.start + int(self.windows.steps[row]) * self.codec.step)}"
        )

    def save(self, directory: Path) -> None:
        write_text(directory / FILE, dumps(self.codec))


def read_codec(directory: Path, calendar: Calendar) -> WindowCodec | None:
    """The window codec of a run or its start model; None if there is none. UserError for data with other time steps."""
    if not (directory / FILE).is_file():
        return None
    codec = from_dict(WindowCodec, read_json(directory / FILE), FILE)
    if (codec.unit, codec.step) != (calendar.unit, calendar.step):
        trained = replace(calendar, unit=codec.unit, step=codec.step).step_text
        raise UserError(
            f"the data have one value per {calendar.step_text}, but the model was trained on one per {trained}; "
            "resample the data"
        )
    return codec
