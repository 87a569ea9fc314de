"""Plans of Llama 3.1 8B on 8 and 128 H100 next to what torchtitan measured there: memory and tokens per second.

    python benchmarks/gpu_plans.py            # a minute; no GPU
    python benchmarks/gpu_plans.py --write

torchtitan's figures are its own (benchmarks/llama3_h100_202412_torchtitan.md in its repository, tables 1 and 3, FSDP
without compilation and without Float8): a micro-batch of 2 rows of 8,192 tokens, selective recomputing, and H100 with
96 GB at 500 W. headway has no selective recomputing of single operations; it recomputes every n-th block.
"""

from __future__ import annotations

import argparse

import headway as hw
from measure import write

PUBLISHED = {8: (82.4, 5762), 128: (67.0, 5605)}  # GiB, tokens per second and GPU
SETTINGS = {"model": "llama-8b", "optim": "adamw", "task.context": 8192, "train.batch_tokens": 16384}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    rows = []
    for gpus, (memory, rate) in PUBLISHED.items():
        for recompute in (0, 2, 1):
            settings = {**SETTINGS, "train.recompute": recompute, "parallel.shard": gpus}
            plan = hw.plan_gpus("text", gpus, "h100", set=settings)
            row = {
                "gpus": gpus,
                "recompute": recompute,
                "memory_gib": {name: round(size / 2**30, 2) for name, size in plan.memory.items()},
                "planned_gib": round(sum(plan.memory.values()) / 2**30, 1),
                "published_gib": memory,
                "planned_tokens_per_second": round(plan.tokens / plan.step_seconds / gpus),
                "published_tokens_per_second": rate,
            }
            rows.append(row)
            print(row, flush=True)
    if parser.parse_args().write:
        write("gpu-plans", {"rows": rows})


if __name__ == "__main__":
    main()
