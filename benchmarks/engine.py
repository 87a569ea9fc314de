"""The table of the CPU engine: decoding, prompts, translation, training and loading, beside other programs.

    python benchmarks/engine.py                              # each row but that of 1.1B once
    python benchmarks/engine.py --only decode-1.1b decode-135m --repeats 3   # 15 GB of disk
    HEADWAY_FORM=avx2 python benchmarks/engine.py            # as on a lesser processor
    python benchmarks/engine.py --device cuda --repeats 3    # on a GPU, with the programs that run there

It calls what `headway bench` calls: every program in a process of its own, the programs in turn, the same drawn weights
and threads. A machine is one file of results/machines, with its rows, what was asked for and whether it was reached; a
GPU is one file of results/gpus, without targets.
nanoGPT is on no registry; its share of a machine's peak (134 and 112 GFLOP/s where fp32 products gave 184 at most, 6
flop a weight) is what headway's share here is held to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from headway.bench.benchmark import PEERS, BenchRequest, run
from measure import RESULTS, kind_of_machine, write

ALL = ("transformers", "ctranslate2", "llama.cpp")


@dataclass(frozen=True)
class Goal:
    """That `ours`, a program of the result, is at least `times` as fast as the fastest of `theirs`; or, without these,
    that it has at least that share of what the machine gives.
    """

    ours: str
    times: float
    theirs: tuple[str, ...] = ()

    def judged(self, result: dict[str, Any]) -> dict[str, Any]:
        programs, goal = result["programs"], result["goal"]
        if not self.theirs:
            reached = programs[self.ours]["share_of_bound"]
            return {"program": self.ours, "of": "the machine", **self._verdict(reached)}
        fastest = max(self.theirs, key=lambda title: programs[title][goal]["median"])
        reached = programs[self.ours][goal]["median"] / programs[fastest][goal]["median"]
        return {"program": self.ours, "of": fastest, **self._verdict(reached)}

    def _verdict(self, reached: float) -> dict[str, Any]:
        return {"asked": self.times, "reached": round(reached, 3), "enough": reached >= self.times}


FP32, INT8, INT4 = "headway fp32", "headway int8", "headway int4"
BF16, HF_BF16 = "headway bf16", "transformers bf16"
HF, CT2, CT2_INT8 = "transformers fp32", "ctranslate2 fp32", "ctranslate2 int8"
F32, Q8, Q4 = "llama.cpp F32", "llama.cpp Q8_0", "llama.cpp Q4_0"
NANOGPT = {"train-10m": 134 / 184, "train-30m": 112 / 184}  # of the most that products gave on its machine

ROWS: dict[str, tuple[BenchRequest, list[Goal]]] = {
    "decode-135m": (
        BenchRequest("decode", "llama-135m", against=ALL),
        [
            Goal(FP32, 2.8, (HF,)),
            Goal(FP32, 1.1, (F32,)),
            Goal(FP32, 0.8),
            Goal(INT8, 1.6, (Q8,)),
            Goal(INT8, 7.0, (CT2_INT8,)),
            Goal(INT4, 1.6, (Q4,)),
        ],
    ),
    "decode-135m-8": (
        BenchRequest("decode", "llama-135m", against=ALL, rows=8),
        [Goal(FP32, 2.0, (HF, CT2, F32)), Goal(INT8, 2.2, (CT2_INT8, Q8)), Goal(INT4, 2.2, (Q4,))],
    ),
    "decode-135m-32": (
        BenchRequest("decode", "llama-135m", ("int8", "int4"), ("llama.cpp",), rows=32),
        [Goal(INT8, 3.0, (Q8,)), Goal(INT4, 3.0, (Q4,))],
    ),
    "decode-135m-32-cache": (
        BenchRequest("decode", "llama-135m", ("int8", "int4"), ("llama.cpp",), rows=32, cache="int8"),
        [Goal(INT8, 3.0, (Q8,)), Goal(INT4, 3.0, (Q4,))],
    ),
    "decode-1.1b": (
        BenchRequest("decode", "llama-1.1b", ("int8", "int4"), ("llama.cpp",)),
        [Goal(INT8, 1.2, (Q8,)), Goal(INT4, 1.2, (Q4,))],
    ),
    "prefill-135m": (
        BenchRequest("prefill", "llama-135m", against=ALL),
        [Goal(FP32, 1.0, (HF, CT2, F32)), Goal(INT8, 1.5, (CT2_INT8, Q8))],
    ),
    "translate": (
        BenchRequest("translate", "marian-base", against=("transformers", "ctranslate2")),
        [Goal(INT8, 1.5, (CT2_INT8,)), Goal(FP32, 4.0, (HF,)), Goal(INT8, 4.0, (HF,))],
    ),
    "translate-cache": (
        BenchRequest("translate", "marian-base", ("int8",), ("transformers", "ctranslate2"), cache="int8"),
        [Goal(INT8, 1.5, (CT2_INT8,)), Goal(INT8, 4.0, (HF,))],
    ),
    "train-10m": (
        BenchRequest("train", "gpt-10m", against=("transformers",)),
        [Goal(FP32, 1.2, (HF,)), Goal(BF16, 1.2, (HF_BF16,)), Goal(FP32, NANOGPT["train-10m"])],
    ),
    "train-30m": (
        BenchRequest("train", "gpt-30m", against=("transformers",)),
        [Goal(FP32, 1.2, (HF,)), Goal(FP32, NANOGPT["train-30m"])],
    ),
    "train-1m": (
        BenchRequest("train", "gpt-1m", against=("transformers",)),
        [Goal(FP32, 2.0, (HF,)), Goal(BF16, 2.0, (HF_BF16,))],
    ),
    "load-135m": (BenchRequest("load", "llama-135m", against=("transformers",)), []),
}
QUICK = [row for row in ROWS if row != "decode-1.1b"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=ROWS, default=QUICK, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    for row in args.only:
        request, goals = ROWS[row]
        request = replace(request, threads=args.threads, repeats=args.repeats, device=args.device)
        if args.device != "cpu":
            if request.cache is not None:
                continue
            against = tuple(name for name in request.against if PEERS[name].runs_on_gpus)
            request, goals = replace(request, dtypes=(), against=against), []
        result = run(request, lambda line: print(line, file=sys.stderr, flush=True))
        asked = [goal.judged(result) for goal in goals if goal.ours in result["programs"]]  # not each trains in bf16
        for each in asked:
            print(each, file=sys.stderr, flush=True)
        gpu = result["machine"].get("gpu")
        name = f"machines/{kind_of_machine()}" if gpu is None else f"gpus/{'-'.join(gpu.lower().split())}"
        path = RESULTS / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
        rows[row] = {"date": time.strftime("%Y-%m-%d"), **result, "asked": asked}
        write(name, {"rows": {each: rows[each] for each in ROWS if each in rows}})


if __name__ == "__main__":
    main()
