"""Loading 1.1B parameters from fp16 shards: seconds and peak memory, beside transformers.

    python benchmarks/load.py                     # about 5 minutes, 5 GB of disk and 8 GB of memory

The model is the preset llama-1.1b with drawn weights, in two safetensors files that the system holds in memory (they
were just written, and each is read once before). Each load has a process of its own, the programs in turn. Seconds run
from the call, when all of the program is imported, to a model of which every page has been looked at; memory is the
peak above what the process held before the call. The targets are fp32, which `headway.load` gives, and fp16 as stored.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, spread, write

SHAPE, PROGRAMS, TARGETS, REPEATS, SHARDS = "llama-1.1b", ("headway", "transformers"), ("float32", "float16"), 3, 2
PAGE = 4096  # bytes


def make(folder: Path) -> dict[str, Any]:
    """Write the model in our own published form, then cut the file into shards."""
    import torch
    from safetensors.torch import load_file, save_file

    from headway.formats.published import INDEX, WEIGHTS, save_published
    from headway.nn.models import build
    from headway.nn.models.presets import preset

    config = preset(SHAPE)
    with torch.no_grad():
        save_published(build(config).half(), config, folder)
    whole = load_file(folder / WEIGHTS)
    names = sorted(whole)
    places = {
        name: f"model-{i * SHARDS // len(names) + 1:05}-of-{SHARDS:05}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(places.values())):
        held = {name: whole[name] for name in names if places[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return {"bytes": size}


def read(folder: Path) -> dict[str, float]:
    """Seconds that reading the files takes, and nothing else: the second time, when the system holds them."""
    for _ in range(2):
        started = time.perf_counter()
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                block = bytearray(1 << 24)
                while file.readinto(block):
                    pass
    return {"seconds": round(time.perf_counter() - started, 3)}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load(program: str, target: str, folder: Path) -> dict[str, float]:
    import torch

    dtype = getattr(torch, target)
    if program == "headway":
        import headway
        from headway.formats.open import open_model

        def call() -> Any:
            return headway.load(folder).module if target == "float32" else open_model(folder, dtype).model
    else:
        from transformers import LlamaForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()

        def call() -> Any:
            return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)

    before, started = resident(), time.perf_counter()
    model = call()
    for parameter in model.parameters():
        parameter.data.view(-1)[:: PAGE // parameter.element_size()].sum()
    seconds = time.perf_counter() - started
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"seconds": round(seconds, 3), "peak_bytes": peak, "model_bytes": size}


def measured(folder: Path) -> dict[str, Any]:
    size = child("load.py", "make", str(folder))["bytes"]
    result: dict[str, Any] = {"model": SHAPE, "file_bytes": size, "read": child("load.py", "read", str(folder))}
    for target in TARGETS:
        runs: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
        for _ in range(REPEATS):
            for program in PROGRAMS:
                runs[program].append(child("load.py", "load", str(folder), program, target))
                print(target, program, runs[program][-1], file=sys.stderr)
        result[target] = {
            program: {
                "seconds": spread([each["seconds"] for each in found]),
                "peak_over_model": spread([round(each["peak_bytes"] / each["model_bytes"], 3) for each in found]),
            }
            for program, found in runs.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["make", "read", "load"])
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args()
    if args.part == "make":
        report(make(Path(args.rest[0])))
    elif args.part == "read":
        report(read(Path(args.rest[0])))
    elif args.part:
        report(load(*args.rest[1:], folder=Path(args.rest[0])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write("load", measured(Path(folder)))


if __name__ == "__main__":
    main()
