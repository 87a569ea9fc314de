"""`headway forecast`: forecast time series as quantiles."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from headway.app.cli.options import add_data, add_server, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway forecast runs/forecast --steps 24
headway forecast runs/forecast --data new.csv --out forecast.csv --picture forecast.png
headway forecast forecast --data new.csv --server http://127.0.0.1:8000
"""
_SUFFIXES = (".png", ".svg", ".pdf")
_MAX_SHOWN = 24  # rows of the printed table, and series of the picture


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help="run of the forecast recipe")
    add_data(parser, "files with the series to forecast (default: the run's data)")
    add_verb(parser, "forecast")
    add_server(parser)
    add("--out", type=Path, metavar="FILE.csv", help="output file for all rows: series, time, q0.1 ... q0.9")
    add("--picture", type=Path, metavar="FILE", help=f"image file for a chart, ending in {', '.join(_SUFFIXES)}")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    if args.picture is not None and args.picture.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{args.picture} is not a supported image file; use a name such as forecast.png")
    for out in filter(None, (args.out, args.picture)):
        if not out.parent.is_dir():
            raise UserError(f"{out.parent} is not a folder; create it, or choose another path")
    with torch_options(args):
        model = load(args)
        forecasts = model.forecast(**verb_options(args, "forecast"))
    rows: list[dict[str, Any]] = [
        {"series": forecast.series, "time": time, **dict(zip(forecast.quantiles, values))}
        for forecast in forecasts
        for time, *values in zip(forecast.times, *forecast.quantiles.values())
    ]
    try:
        if args.out is not None:
            with args.out.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        if args.picture is not None:
            import numpy as np

            from headway.data.series import plot_axis
            from headway.learn.report.charts import Panel, forecast_figure

            if len(forecasts) > _MAX_SHOWN:
                terminal.note(f"the chart shows the first {_MAX_SHOWN} of {len(forecasts):,} series")
            panels = [
                Panel(
                    f"{forecast.series} to {forecast.times[-1]}",
                    plot_axis([*forecast.past_times, *forecast.times]),
                    np.array(forecast.past),
                    np.array([*zip(*forecast.quantiles.values())]),
                )
                for forecast in forecasts[:_MAX_SHOWN]
            ]
            forecast_figure(panels).savefig(args.picture, dpi=150)
    except OSError as error:
        path = error.filename or args.out or args.picture  # the error of a full disk has no file name
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another path") from None
    terminal.print_table(
        [{name: row[name] for name in ("series", "time", "q0.1", "q0.5", "q0.9")} for row in rows[:_MAX_SHOWN]]
    )
    if len(rows) > _MAX_SHOWN:
        terminal.print(f"... and {len(rows) - _MAX_SHOWN:,} more rows; write all with --out FILE.csv")
    files = {name: out for name, out in (("out", args.out), ("picture", args.picture)) if out is not None}
    terminal.print_result({"forecasts": [forecast._asdict() for forecast in forecasts], **files})
