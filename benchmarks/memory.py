"""Memory: what cross-entropy at 50,000 symbols adds to a training step, what tokenising 1 GB of text takes, and what
decoding in 8 bits takes beyond what importing torch does.

    python benchmarks/memory.py                 # about 5 minutes
    python benchmarks/memory.py decoding        # one part of it; the others stay as they were

The step is that of a model of 12 layers and width 768 on 4 rows of 512 tokens. Its peak is measured twice in
processes of their own: with the chunked cross-entropy, and with a loss that needs no logits (the sum of the
features). The text is Shakespeare repeated to 1 GB, as one file. Decoding is that of `headway bench decode` with the
shape of a 135M Llama, after another shape for which all is compiled: its peak, less that of `import torch` alone, is
held to 1.5 times the weights and the keys and values.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.bench.benchmark import BenchRequest, run
from measure import RESULTS, child, data_folder, report, write

MOST = 1.5  # times weights, keys and values
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


def cross_entropy() -> dict[str, Any]:
    peaks = {loss: child("memory.py", loss)["peak_bytes"] for loss in ("none", "chunked", "whole")}
    return {"peaks": peaks, "cross_entropy_adds": round(peaks["chunked"] / peaks["none"] - 1, 4)}


def decoding() -> dict[str, Any]:
    request = BenchRequest("decode", "llama-135m", ("int8",), repeats=1, threads=os.cpu_count())
    run(replace(request, shape="gpt-10m"))  # compiles, if that is still to be done
    found = run(request)["programs"]["headway int8"]
    held = found["weight_bytes"] + int(found["cache_bytes"]["max"])
    script = "import torch; print(next(s for s in open('/proc/self/status') if s.startswith('VmHWM')).split()[1])"
    bare = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    alone = 1024 * int(bare.stdout)
    beyond = (found["peak_bytes"] - alone) / held
    return {
        "importing_torch_bytes": alone,
        "peak_bytes": found["peak_bytes"],
        "weight_and_cache_bytes": held,
        "beyond_torch": round(beyond, 3),
        "enough": beyond < MOST,
    }


WHOLE: dict[str, Callable[[], dict[str, Any]]] = {
    "cross-entropy": cross_entropy,
    "tokenising": lambda: {"tokenising": child("memory.py", "tokenise")},
    "decoding": lambda: {"decoding": decoding()},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["none", "chunked", "whole", "tokenise", *WHOLE])
    args = parser.parse_args()
    if args.part == "tokenise":
        report(tokenise())
    elif args.part and args.part not in WHOLE:
        report(step(args.part))
    else:
        path = RESULTS / "memory.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name in ("benchmark", "date", "machine"):
            found.pop(name, None)
        for name, part in WHOLE.items():
            if args.part in (None, name):
                found |= part()
                found["measured"] = {**found.get("measured", {}), name: time.strftime("%Y-%m-%d")}
        write("memory", found)


if __name__ == "__main__":
    main()
