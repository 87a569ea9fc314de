"""A table of labelled texts for the tutorial: documentation strings of Python's standard library and their packages.

python examples/library_labels.py docstrings.csv [MOST]     # at most MOST texts per package (default: 200)
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from library_text import library

PACKAGES = ("asyncio", "email", "http", "logging", "multiprocessing", "tkinter", "unittest", "urllib", "xml")


def main() -> None:
    path, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    rows = []
    for package, texts in library().items():
        firsts = dict.fromkeys(text.split("\n\n")[0].replace("\n", " ") for text in texts)
        chosen = [text for text in firsts if len(text.split()) > 3 and package not in text.lower()]
        rows += [(text, package) for text in chosen[:most]] if package in PACKAGES else []
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    print(f"wrote {len(rows)} labelled texts to {path}")


if __name__ == "__main__":
    main()
