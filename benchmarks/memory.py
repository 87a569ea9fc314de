"""Memory: what cross-entropy at 50,000 symbols adds to a training step, and what tokenising 1 GB of text takes.

    python benchmarks/memory.py                 # about 5 minutes

The step is that of a model of 12 layers and width 768 on 4 rows of 512 tokens. Its peak is measured twice in
processes of their own: with the chunked cross-entropy, and with a loss that needs no logits (the sum of the
features). The text is Shakespeare repeated to 1 GB, as one file.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from measure import child, data_folder, report, write

SYMBOLS, ROWS, LENGTH = 50_000, 4, 512


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(loss: str) -> dict[str, int]:
    import torch

    from headway.nn.models import Transformer, build
    from headway.nn.models.presets import gpt

    model = build(gpt(768, 12, 12, SYMBOLS, LENGTH))
    assert isinstance(model, Transformer)
    ids = torch.randint(0, SYMBOLS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        x = model(ids).x
        head = model.heads["vocabulary"]
        if loss == "chunked":
            total = head.loss(x, ids.roll(-1, 1)).total  # type: ignore[operator]
        elif loss == "whole":
            total = torch.nn.functional.cross_entropy(head(x).flatten(0, 1), ids.roll(-1, 1).flatten())
        else:  # as little as reaches all weights
            total = x.sum() + head.weight[:1].sum()  # type: ignore[index]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"peak_bytes": peak_bytes()}


def tokenise() -> dict[str, float]:
    from headway.codecs import train_codec
    from headway.data import open_tokens

    text = (data_folder() / "lm" / "tinyshakespeare.txt").read_text()
    codec = train_codec("bpe", [text], 4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.txt"
        with path.open("w") as file:
            for _ in range(1_000_000_000 // len(text)):
                file.write(text)
        size, start = path.stat().st_size, time.perf_counter()
        cache = open_tokens([path], codec)
        return {
            "text_bytes": size,
            "tokens": len(cache.ids),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_bytes": peak_bytes(),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["none", "chunked", "whole", "tokenise"])
    args = parser.parse_args()
    if args.part == "tokenise":
        report(tokenise())
    elif args.part:
        report(step(args.part))
    else:
        peaks = {loss: child("memory.py", loss)["peak_bytes"] for loss in ("none", "chunked", "whole")}
        added = peaks["chunked"] / peaks["none"] - 1
        write(
            "memory",
            {"peaks": peaks, "cross_entropy_adds": round(added, 4), "tokenising": child("memory.py", "tokenise")},
        )


if __name__ == "__main__":
    main()
