"""Pairs of lines for the tutorials on translation and architectures: dates as people write them, and in ISO 8601.

python examples/dates.py dates.tsv [COUNT]       # COUNT pairs (default: 5000)
"""

from __future__ import annotations

import random
import sys
from datetime import date, timedelta
from pathlib import Path

FORMATS = ("%A, %d %b %Y", "%d %B %Y", "%B %d, %Y", "%d/%m/%Y", "%d.%m.%y")


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    rng = random.Random(0)
    days = [date(1970, 1, 1) + timedelta(days=rng.randrange(20_000)) for _ in range(count)]
    lines = [f"{day.strftime(rng.choice(FORMATS))}\t{day.isoformat()}" for day in days]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {count} pairs to {path}")


if __name__ == "__main__":
    main()
