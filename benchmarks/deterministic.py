"""What the deterministic mode costs: decoding and reading a prompt, beside the default.

python benchmarks/deterministic.py          # half a minute
"""

from __future__ import annotations

import time

import torch

from headway.layout import Layout
from headway.nn.kernels import deterministic
from headway.nn.models import Prompt, Transformer, build
from headway.nn.models.presets import decoder
from measure import spread, write

BATCH, PROMPT, STEPS = 8, 64, 16


def tokens_a_second(model: Transformer, exact: bool) -> dict[str, float]:
    ids = torch.randint(0, 1000, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), deterministic(exact):
        start = time.perf_counter()
        _, decoding = model.start(Prompt(ids, Layout.full(BATCH, PROMPT)), PROMPT + STEPS)
        read = time.perf_counter()
        for _ in range(STEPS):
            _, decoding = model.step(ids[:, 0], decoding)
        end = time.perf_counter()
    return {"prompt": BATCH * PROMPT / (read - start), "decode": BATCH * STEPS / (end - read)}


def main() -> None:
    model = build(decoder(256, 6, 8, 4, 704, 8000, 256)).eval()
    assert isinstance(model, Transformer)
    result = {}
    for name, exact in (("default", False), ("deterministic", True)):
        runs = [tokens_a_second(model, exact) for _ in range(4)][1:]
        result[name] = {key: spread([round(run[key], 1) for run in runs]) for key in ("prompt", "decode")}
    cost = {
        key: round(result["default"][key]["median"] / result["deterministic"][key]["median"], 1)
        for key in ("prompt", "decode")
    }
    write("deterministic", {"batch": BATCH, "prompt_tokens": PROMPT, "times_slower": cost, **result})


if __name__ == "__main__":
    main()
