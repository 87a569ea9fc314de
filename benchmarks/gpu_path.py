"""What can be measured of the path for GPUs without a GPU: waits of a step, programs of decoding steps, shared steps.

    python benchmarks/gpu_path.py waits        # operations that wait, on a simulated device, per objective; 1 minute
    python benchmarks/gpu_path.py programs     # torch.export of a decoding step, per published family; 1 minute
    python benchmarks/gpu_path.py weights      # errors of logits with weights in bf16, int8 and int4; 20 seconds
    python benchmarks/gpu_path.py requests     # 8 requests at once against one after the other, on torch; 1 minute

Each part is added to results/gpu-path.json. The simulated device and the cases are those of the tests
(tests/simulated_gpu.py, tests/unit/test_gpu_waits.py, tests/parity/test_exported_steps.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from measure import RESULTS, ROOT, spread, write

sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "unit", "parity")]

REQUESTS, TOKENS, PROMPT, REPEATS = 8, 16, 16, 3
NAME = "gpu-path"


def waits() -> dict[str, Any]:
    """Operations that wait in the second training step of each objective, with exact sums, and in a decoding step."""
    from test_gpu_waits import DECODERS, SAMPLINGS, STEPS, decoder, opened, two_steps

    from headway.generate import Limits
    from headway.generate.scheduler import Request, Scheduler
    from simulated_gpu import Waits, device

    steps: dict[str, int] = {}
    decoding: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in STEPS:
            recipe, task = opened(Path(folder), name)
            with Waits() as counted:
                two_steps(recipe, task, device(), counted.counts)
                steps[name] = counted.total
            task.close()
        recipe, task = opened(Path(folder), "next token", {"parallel.exact": True, "optim": "adamw"})
        with Waits() as counted:
            two_steps(recipe, task, device(), counted.counts)
            exact = counted.total
    for name in DECODERS:
        for sampling, settings in SAMPLINGS.items():
            with Waits() as counted:
                scheduler = Scheduler(decoder(name).to(device()))
                for prompt in ([3, 4, 5], [6]):
                    scheduler.submit(Request(prompt, settings, Limits(4)))
                scheduler.step()
                counted.clear()
                scheduler.step()
                decoding[f"{name}, {sampling}"] = counted.total
    return {"training": steps, "exact": exact, "decoding": decoding}


def programs() -> dict[str, Any]:
    """Whether a decoding step of each published family of decoders can be exported."""
    from test_exported_steps import FAMILIES, NOT_EXPORTED, test_a_decoding_step_is_one_program

    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            test_a_decoding_step_is_one_program(name, Path(folder))
    return {"exported": [name for name in FAMILIES if name not in NOT_EXPORTED], "not exported": NOT_EXPORTED}


def weights() -> dict[str, Any]:
    """Relative errors of logits, on a CPU: bf16 per published family of decoders; int8 and int4 by torch's kernels."""
    from test_exported_steps import FAMILIES, family_model
    from test_kernel_weights import CPU, decoded, model_of, relative

    from headway.formats.native import named_tensors
    from headway.generate.kernel_weights import KernelWeight, store_for_kernels
    from headway.generate.torch_weights import store_in_bf16

    errors: dict[str, Any] = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            model = family_model(name, Path(folder)).eval()
        exact = decoded(model)
        store_in_bf16(model)
        errors[name] = round(relative(decoded(model), exact), 5)
    few: dict[str, Any] = {}
    for bits in ("int8", "int4"):
        model, restored, exact = model_of(), model_of(), decoded(model_of())
        store_for_kernels(model, bits, CPU)
        stored = dict(named_tensors(model))
        for name, parameter in named_tensors(restored):
            tensor = stored[name]
            parameter.data = (tensor.values() if isinstance(tensor, KernelWeight) else tensor.detach()).float()
        outputs = decoded(model)
        few[bits] = {
            "restored": round(relative(outputs, decoded(restored)), 5),
            "fp32": round(relative(outputs, exact), 5),
        }
    return {"bf16 against fp32": errors, "few bits against": few}


def requests() -> dict[str, Any]:
    """Tokens per core-second of requests at once and one after the other, and whether their bits are equal."""
    from headway.generate import Limits, Sampling
    from headway.generate.scheduler import Request, Scheduler
    from headway.nn.kernels import deterministic
    from headway.nn.models.presets import preset

    model = preset("gpt-10m").build(1).eval()
    for parameter in model.parameters():  # the random start predicts nearly equal tokens
        parameter.data.mul_(2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(model.config.vocab_size, (REQUESTS, PROMPT), generator=generator).tolist()  # type: ignore[union-attr]

    def generate(at_once: bool) -> tuple[float, dict[int, list[tuple[int | None, float]]]]:
        scheduler, events, start = Scheduler(model), dict[int, list[tuple[int | None, float]]](), time.process_time()
        for number, row in enumerate(rows):
            ticket = scheduler.submit(Request(row, Sampling(seed=number), Limits(TOKENS)))
            events[ticket] = []
            while (not at_once or ticket == REQUESTS) and (step := scheduler.step()):
                for event in step:
                    events[event.ticket].append((event.id, event.logprob))
        return REQUESTS * TOKENS / (time.process_time() - start), events

    results: dict[str, Any] = {"model": "gpt-10m", "requests": REQUESTS, "prompt": PROMPT, "tokens": TOKENS}
    for name, enabled in (("default", False), ("deterministic", True)):
        with deterministic(enabled):
            generate(True)
            pairs = [(generate(True), generate(False)) for _ in range(REPEATS)]
        together, alone = ([pair[i][0] for pair in pairs] for i in (0, 1))
        results[name] = {
            "tokens per core-second at once": spread(together),
            "tokens per core-second one after the other": spread(alone),
            "times as fast": spread([a / b for a, b in zip(together, alone)]),
            "equal bits": all(a[1] == b[1] for a, b in pairs),
            "equal tokens": all(
                [[token for token, _ in row] for row in a[1].values()]
                == [[token for token, _ in row] for row in b[1].values()]
                for a, b in pairs
            ),
        }
    return results


if __name__ == "__main__":
    parts = {"waits": waits, "programs": programs, "weights": weights, "requests": requests}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    part = parser.parse_args().part
    torch.set_num_threads(1)
    started = time.process_time()
    result = {**parts[part](), "core seconds": round(time.process_time() - started, 1), "torch": torch.__version__}
    path = RESULTS / f"{NAME}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: earlier[name] for name in parts if name in earlier}
    write(NAME, {**kept, part: result})
