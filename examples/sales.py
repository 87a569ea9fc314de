"""A table for the tutorial on time series: daily sales of two shops, with weekly and yearly seasons and a trend.

python examples/sales.py sales.csv [DAYS]         # DAYS per shop (default: 730)
"""

from __future__ import annotations

import csv
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np


def main() -> None:
    path, days = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 730
    rng, rows = np.random.default_rng(0), []
    for shop, level, growth in (("north", 120, 0.02), ("south", 80, 0.05)):
        for day in range(days):
            when = date(2023, 1, 1) + timedelta(days=day)
            weekday = (1.0, 0.9, 0.95, 1.0, 1.3, 1.6, 0.4)[when.weekday()]
            season = 1 + 0.25 * np.sin(2 * np.pi * day / 365.25)
            rows.append(
                (when.isoformat(), shop, round((level + growth * day) * weekday * season * rng.normal(1, 0.07), 1))
            )
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("date", "shop", "sales"), *rows])
    print(f"wrote {len(rows)} rows to {path}")


if __name__ == "__main__":
    main()
