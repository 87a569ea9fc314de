"""The forecasting task: windows of series split by time, their scaling, and the quantiles of what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.config import dumps, from_dict, register
from headway.data.calendar import Calendar, axis
from headway.data.series import Series, SeriesColumns, ends, places, read_series
from headway.data.splits import Splits
from headway.domains.forecast.mixture import ForecastMixture, Forecasts, Observed, choose_mixture
from headway.domains.forecast.smoothing import LAST, LAST_SEASON, Smoothed, SmoothingForm, best_forms, smoothed
from headway.errors import ConfigError, UserError, nearest
from headway.formats.durable import read_json, write_text
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Chance, Contents, spread
from headway.learn.objectives.quantiles import Around, Continued, Quantiles
from headway.learn.recipe import batch_size_of
from headway.metrics.forecasts import seasonal_error, simple_forecasts
from headway.nn.models import ModelConfig, NumbersConfig, StatesEmbedConfig, TransformerConfig

FILE = "forecast.json"  # next to a model: the windows it takes, and how its outputs are scaled
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_LONGEST = 1 << 24  # maximum steps of a context, a horizon or a season
_FLAT = 0.05  # times the deviation of the complete series: the minimum scale of a window


class Window(NamedTuple):
    """Patches as model inputs, and the simple quantiles and unit that scale its outputs."""

    inputs: Float[Tensor, "B T C"]
    simple: Float[np.ndarray, "B S Q"]
    unit: Float[np.ndarray, "B 1 1"]

    def scaled(self, said: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """Outputs in the scale of the data; sorted, which makes no quantile worse (Chernozhukov, Fernandez-Val and
        Galichon 2010).
        """
        return np.sort(self.simple + self.unit * said, -1)


@dataclass(frozen=True)
class WindowCodec:
    """The last `context` values as patches of `patch` steps, for the `horizon` next ones.

    Inputs are standardised values (z), plus the position of each step in the season. Outputs are differences from the
    quantiles of a simple forecast, in units of its mean training error `spread`: the forecast `line` plus the quantiles
    of its `errors` at each step of the horizon. An untrained model predicts exactly these. `unit` and `step` are those
    of the times. The `mixture` with simple forecasts is chosen after training.
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
        whole = min(*counts, self.step) > 0 and max(counts) <= _LONGEST and self.context % self.patch == 0
        fits = whole and self.spread > 0
        if not fits or len(self.errors) not in (1, self.horizon) or widths not in ({1}, {len(LEVELS)}):
            raise ConfigError(
                f"{FILE} does not fit together (context {self.context}, horizon {self.horizon}, season {self.season}, "
                f"patch {self.patch}, {len(self.errors)} rows of errors); restore it from a copy"
            )
        lines = simple_forecasts(np.zeros((1, self.context)), 1, self.season)
        if self.line not in lines:
            raise ConfigError(f"{FILE}: line is {self.line!r}; {nearest(self.line, lines)}")

    @property
    def numbers(self) -> int:
        """Values per patch."""
        return self.patch * (3 if self.season > 1 else 1)

    def read(
        self, past: Float[np.ndarray, "B C"], steps: Int[np.ndarray, "B"], least: Float[np.ndarray, "B"]
    ) -> Window:
        """Windows of the values before the steps with these indices; `min_scale` is from `flat_scale` of their
        series.
        """
        mean, unit = past.mean(1, keepdims=True), np.maximum(past.std(1), least)[:, None]
        parts = [(past - mean) / unit]
        if self.season > 1:
            turn = 2 * np.pi * ((steps[:, None] + np.arange(-self.context, 0)) % self.season) / self.season
            parts += [np.sin(turn), np.cos(turn)]
        inputs = torch.from_numpy(np.stack(parts, -1).astype(np.float32)).reshape(len(past), -1, self.numbers)
        line, unit = simple_forecasts(past, self.horizon, self.season)[self.line], unit[..., None] * self.spread
        return Window(inputs, line[..., None] + unit * np.array(self.errors), unit)

    @property
    def naive(self) -> SmoothingForm:
        """The seasonal naive forecast, or the last value if there are no seasons."""
        return LAST_SEASON if 1 < self.season <= self.context else LAST


def flat(values: Float[np.ndarray, "N"]) -> float:
    """The minimum scale of a series' windows, so that a constant one does not divide by zero."""
    return _FLAT * float(values.std()) or 1.0


_TOKENS = 32  # maximum patches per context
_JUDGED = 4096  # windows per split in an evaluation, spread evenly over it


@register("forecast")
@dataclass(frozen=True)
class ForecastConfig(TaskConfig):
    """Predict the quantiles 0.1, ..., 0.9 of the `horizon` steps after `context` steps of a series.

    The last `test` share of each series is held out (at least one horizon), and the `validation` share before it.
    `time`, `series` and `value` name the columns if they cannot be inferred.
    """

    beside: ClassVar[tuple[str, ...]] = (FILE,)
    season: int | None = None  # steps per season, 1 for no season; none: derived from the time step
    context: int | None = None  # input steps; none: derived from the season and the data
    horizon: int | None = None  # predicted steps; none: derived from the season and the data
    validation: float = 0.15  # share of each series' steps
    test: float = 0.15  # share of each series' steps, its last ones
    time: str | None = None  # column of times
    series: str | None = None  # column of series names, in tables with one row per value
    value: str | None = None  # column of values
    fill: bool = False  # whether to interpolate missing values linearly

    def __post_init__(self) -> None:
        for name in ("season", "context", "horizon"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose 1 or more, or none")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError(
                f"task.validation is {self.validation} and task.test {self.test}; "
                "choose shares of at least 0 that sum to less than 1"
            )

    def read(self, paths: Sequence[Path]) -> tuple[list[Series], Calendar]:
        """The series in the files."""
        return read_series(paths, SeriesColumns(self.time, self.series, self.value), self.fill)

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read or are too small."""
        embed = recipe.model.embed if isinstance(recipe.model, TransformerConfig) else None
        if not isinstance(embed, StatesEmbedConfig):
            raise ConfigError("this model does not take time series; use the model of the recipe forecast")
        return Task(Windows(self, recipe, *self.read(recipe.files(data)), workspace), Quantiles(LEVELS))

    def codec(self, shortest: Series, calendar: Calendar) -> WindowCodec:
        """The windows for series at least as long as `shortest`. UserError if it is too short."""
        season, count = self.season or calendar.season, len(shortest.values)
        ahead = self.horizon or max(1, min(season if season >= 12 else max(8, 2 * season), count // 8))
        train = int(ends(np.array([count]), ahead, (self.validation, self.test))[0][0])
        past = self.context or min(max(3 * season, 4 * ahead, 24), (train - ahead) // 2)
        if train < past + ahead or not (self.context or past >= max(4, season)):
            raise UserError(
                f"the series {shortest.name!r} has {count:,} values, {max(0, train):,} to train on, too few for a "
                f"season of {season} and a horizon of {ahead}; "
                "add more values, or choose a shorter task.season, context and horizon"
            )
        patch = -(-past // _TOKENS)
        return WindowCodec(past - past % patch, ahead, season, patch, calendar.unit, calendar.step)


class Windows(Continued):
    """Windows of time series."""

    def __init__(
        self, config: ForecastConfig, recipe: Recipe, found: Sequence[Series], calendar: Calendar, workspace: Path
    ) -> None:
        self.found, self.calendar = found, calendar
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.values, self.seen = (np.concatenate([getattr(one, name) for one in found]) for name in ("values", "seen"))
        self.starts = np.array([one.start // calendar.step for one in found])
        known = read_codec(workspace, calendar)
        self.codec = known or config.codec(min(found, key=lambda one: len(one.values)), calendar)
        self.horizon = self.codec.horizon
        self.at = places(found, self.codec.context, self.horizon, (config.validation, config.test))
        judged = {side: spread(self.at.sides[side], _JUDGED) for side in ("validation", "test")}
        every = spread(np.arange(len(self.at.series)), _JUDGED)
        self.splits = Splits({**self.at.sides, **judged}, every, "windows", "longer series")
        season, trained = self.codec.season, self.at.ends.tolist()
        parts = [one.values[: n if n > season else None] for one, n in zip(found, trained)]
        self.least = np.array([flat(part) for part in parts])
        self.scales = np.array([seasonal_error(part, season) for part in parts])
        self._smoothed: dict[tuple[int, bool], tuple[Smoothed, Smoothed]] = {}
        if known is None:  # use the simple forecast with the lowest training error, and its errors
            rows = spread(self.splits.rows("train"), _JUDGED)
            windows, unit = self.around(rows), self.window(rows).unit[..., 0]
            simple = simple_forecasts(windows.before, self.horizon, season)
            errors = {name: (windows.after - said) / unit for name, said in simple.items()}
            best = min(errors, key=lambda name: np.abs(errors[name]).mean())
            mean = max(float(np.abs(errors[best]).mean()), 1e-3)
            quantiles = np.quantile(errors[best] / mean, LEVELS, axis=0).T.round(4).tolist()
            self.codec = replace(self.codec, line=best, spread=mean, errors=tuple(map(tuple, quantiles)))

    def contents(self) -> Contents:
        return {"series": ([one.name for one in self.found],), "values": (self.values, self.seen, self.starts)}

    def around(self, rows: np.ndarray) -> Around:
        places = self.at.values[rows][:, None]
        ahead, before = places + np.arange(self.horizon), self.values[places + np.arange(-self.codec.context, 0)]
        simple = simple_forecasts(before, self.horizon, self.codec.season)
        naive, scale = simple.get("season", simple["last"]), self.scales[self.at.series[rows]]
        return Around(before, self.values[ahead], self.seen[ahead], naive, scale)

    def window(self, rows: np.ndarray) -> Window:
        """The model inputs of windows."""
        series, past = self.at.series[rows], self.at.values[rows][:, None] + np.arange(-self.codec.context, 0)
        return self.codec.read(self.values[past], self.starts[series] + self.at.steps[rows], self.least[series])

    def scaled(self, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
        return self.window(rows).scaled(said)

    def simple(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles [N, S, Q] by exponential smoothing and by the seasonal naive forecast, fitted to the values before
        each row's split.
        """
        series, steps = self.at.series[rows], self.at.steps[rows]
        found = np.empty((2, len(rows), self.horizon, len(LEVELS)))
        tested = steps >= self.at.tests[series]
        for late in (False, True):
            numbers = np.unique(series[tested == late]).tolist()
            self._smooth([number for number in numbers if (number, late) not in self._smoothed], late)
            for number in numbers:
                some = (tested == late) & (series == number)
                for each, known in zip(found, self._smoothed[number, late]):
                    each[some] = known.quantiles(steps[some], self.horizon, LEVELS)
        return found[0], found[1]

    def _smooth(self, numbers: Sequence[int], late: bool) -> None:
        """Smooth the series with these indices, fitted to the values before validation or, if `tested`, before the test
        split.
        """
        season, ends = self.codec.season, self.at.tests if late else self.at.ends
        values = [self.found[number].values for number in numbers]
        lengths = [int(ends[n]) if ends[n] > season else len(each) for n, each in zip(numbers, values)]
        forms = best_forms([each[:length] for each, length in zip(values, lengths)], season) if numbers else []
        for number, each, length, form in zip(numbers, values, lengths, forms):
            naive = smoothed(each, length, self.codec.naive, season)
            self._smoothed[number, late] = smoothed(each, length, form, season), naive

    def final(self, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
        mixture = self.codec.mixture
        return said if mixture is None else mixture.mixed(Forecasts(said, *self.simple(rows)))

    def baselines(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {} if self.codec.mixture is None else {"smoothing": self.simple(rows)[0]}

    def settle(self, rows: np.ndarray, said: np.ndarray) -> str:
        """Choose the mixture by the network's predictions of the validation rows."""
        scales = np.where(np.isfinite(self.scales), self.scales, self.least)

        def came(some: np.ndarray) -> Observed:
            known = self.around(some)
            return Observed(known.after, known.there, scales[self.at.series[some]])

        before = spread(np.concatenate([self.splits.rows("train"), rows]), _JUDGED)
        found = Forecasts(said, *self.simple(rows))
        mixture = choose_mixture(self.simple(before), came(before), found, came(rows))
        self.codec = replace(self.codec, mixture=mixture)
        return str(mixture)

    @property
    def remarks(self) -> tuple[str, ...]:
        mixture = self.codec.mixture
        return (*super().remarks, *(() if mixture is None else (f"{mixture}.".capitalize(),)))

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Patches, and the targets: values minus each quantile of the simple forecast, in its unit."""
        read, known = self.window(rows), self.around(rows)
        right = torch.from_numpy(((known.after[..., None] - read.simple) / read.unit).astype(np.float32))
        tokens = read.inputs.shape[0] * read.inputs.shape[1]
        return Batch((read.inputs,), (right, torch.from_numpy(known.there)), int(known.there.sum()), tokens)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)  # checked by the task
        embed = replace(cast(StatesEmbedConfig, model.embed), states=NumbersConfig(self.codec.numbers))
        return replace(model, embed=embed, context=self.codec.context // self.codec.patch)

    def latest(self, count: int) -> np.ndarray:
        rows = self.splits.rows(self.final_split)[::-1]
        if len(self.found) > 1:
            _, first = np.unique(self.at.series[rows], return_index=True)
            return rows[first][spread(np.arange(len(first)), count)]
        return rows[:: self.horizon][:count][::-1]

    def times(self, row: int) -> np.ndarray:
        steps = self.at.steps[row] + np.arange(-self.codec.context, self.horizon)
        ticks = self.found[self.at.series[row]].start + steps * self.codec.step
        return axis(map(self.calendar.text, ticks.tolist()))

    def shown(self, row: int) -> str:
        one = self.found[self.at.series[row]]
        return f"{one.name} from {self.calendar.text(one.start + int(self.at.steps[row]) * self.codec.step)}"

    def save(self, directory: Path) -> None:
        write_text(directory / FILE, dumps(self.codec))


def read_codec(directory: Path, calendar: Calendar) -> WindowCodec | None:
    """The windows of a run or of its start model; None if there are none. UserError for data with other time steps."""
    if not (directory / FILE).is_file():
        return None
    codec = from_dict(WindowCodec, read_json(directory / FILE), FILE)
    if (codec.unit, codec.step) != (calendar.unit, calendar.step):
        theirs, own = (f"steps of {some.step:,} {some.unit}s" for some in (calendar, codec))
        raise UserError(f"the data have {theirs}, but the model was trained on {own}; resample the data to these")
    return codec
