"""Training time of LSTM and GRU beside torch's bare layers of equal size: forward and backward over full rows.

python benchmarks/recurrent.py              # a few minutes
python benchmarks/recurrent.py 2 3          # 2 processes each, 3 repeats in each: a trial that writes nothing
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headway.layout import Layout
from headway.nn.mixers import GRUConfig, LSTMConfig
from measure import child, report, spread, write

WIDTH, LENGTH, BATCH = 256, 256, 16
PROCESSES, REPEATS, WARM = 5, 12, 2
KINDS = ("lstm", "gru", "gru of 2014")  # the last has no equal in torch: its time is set beside nn.GRU's
LIMIT = 1.05


def layer(kind: str, owner: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A layer and its forward pass over [B, T, D]. Neither has a projection after it."""
    if owner == "torch":
        bare = (nn.LSTM if kind == "lstm" else nn.GRU)(WIDTH, WIDTH, batch_first=True)
        return bare, lambda x: bare(x)[0]
    config = LSTMConfig(out=False) if kind == "lstm" else GRUConfig(out=False, reset_after=kind == "gru")
    mixer = config.build(WIDTH, nn.ModuleDict())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.uniform_(-(WIDTH**-0.5), WIDTH**-0.5)
    return mixer, lambda x: mixer.parallel(x, Layout.full(BATCH, LENGTH))


def part(kind: str, owner: str, repeats: int) -> None:
    """In a process of its own: seconds of each forward and backward pass after the first few."""
    module, forward = layer(kind, owner)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    seconds = []
    for _ in range(WARM + repeats):
        module.zero_grad(set_to_none=True)
        start = time.perf_counter()
        (forward(x) * weights).sum().backward()
        seconds.append(time.perf_counter() - start)
    report({"seconds": seconds[WARM:], "threads": torch.get_num_threads()})


def main(processes: int, repeats: int, keep: bool) -> None:
    result = {}
    for kind in KINDS:
        found: dict[str, list[float]] = {"headway": [], "torch": []}
        threads = 0
        for _ in range(processes):
            for owner in found:  # by turns, so that a machine that slows down slows both
                told = child("recurrent.py", "part", kind, owner, str(repeats))
                found[owner].append(statistics.median(told["seconds"]))
                threads = told["threads"]
        ratio = statistics.median(found["headway"]) / statistics.median(found["torch"])
        times = {owner: spread([round(s, 4) for s in seconds]) for owner, seconds in found.items()}
        result[kind] = {"ratio": round(ratio, 3), "threads": threads, "seconds": times}
        print(f"{kind}: {ratio:.3f} of torch's time", file=sys.stderr, flush=True)
    asked = {kind: result[kind]["ratio"] <= LIMIT for kind in ("lstm", "gru")}
    whole = {"width": WIDTH, "length": LENGTH, "batch": BATCH, "within_5_percent": asked, **result}
    if keep:
        write("recurrent", whole)
    else:
        print(whole)


if __name__ == "__main__":
    if sys.argv[1:2] == ["part"]:
        part(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        given = [int(word) for word in sys.argv[1:]]
        main(*(given or (PROCESSES, REPEATS)), keep=not given)
