"""What a process of a benchmark measures: its job, clocks that wait for a GPU, and its peak memory."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from headway.errors import UserError
from headway.nn.models import CacheDtype

_WARMUP_STEPS, _MIN_STEPS, _MIN_SECONDS = 2, 5, 2.0


def time_call(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds until `work` is done, also on a GPU, which computes while the program runs on."""
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def time_step(step: Callable[[], object], device: str = "cpu") -> float:
    """The mean time over several steps and seconds, after warm-up steps."""
    for _ in range(_WARMUP_STEPS):
        step()
    _synchronize(device)
    count, started = 0, time.perf_counter()
    while count < _MIN_STEPS or time.perf_counter() - started < _MIN_SECONDS:
        step()
        count += 1
    _synchronize(device)
    return (time.perf_counter() - started) / count


def _synchronize(device: str) -> None:
    """Wait for all earlier work of a GPU."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


Kind = Literal["decode", "prefill", "translate", "train", "load"]

# decode: prompt tokens, new tokens, and how many of the new tokens are warm-up
PROMPT_TOKENS, NEW_TOKENS, WARMUP_TOKENS = 128, 128, 16
TIMELINE_STEPS = 8  # decode: extra steps for the timeline
PREFILL_TOKENS = 512  # prefill: tokens in the longest prompt
# translate: source length range, target length, beam width
MIN_SOURCE_TOKENS, MAX_SOURCE_TOKENS, TARGET_TOKENS, BEAM_WIDTH = 15, 35, 32, 4
EOS_ID = 0  # translate: the eos token


@dataclass(frozen=True)
class BenchJob:
    """The work for one process. `form` is the weights' number format; `folder` contains the prepared models."""

    kind: Kind
    form: str
    folder: str
    rows: int
    threads: int
    seed: int
    symbols: int
    context: int | None
    backend: Literal["auto", "torch", "cpu"] = "auto"
    deterministic: bool = False
    cache: CacheDtype | None = None  # None: headway's default for these weights
    timeline: str | None = None  # output file for headway's instruction timeline
    device: str = "cpu"

    @property
    def model(self) -> Path:
        """The folder with the random model, in a published format if a peer reads it."""
        return Path(self.folder) / "model"

    def converted_path(self, program: str) -> Path:
        """The path of the model converted for a program."""
        return Path(self.folder) / f"{program}-{self.form}"

    def prompts(self) -> list[list[int]]:
        """Random prompts: one row has the maximum length; several rows have lengths spread between half of it and all
        of it.
        """
        max_length = PREFILL_TOKENS if self.kind == "prefill" else PROMPT_TOKENS
        return self._random_rows(max_length // 2 if self.rows > 1 else max_length, max_length, 0, self.symbols)

    def sources(self) -> list[list[int]]:
        """Random sources to translate, with eos. The last token of the vocabulary is reserved as the decoder start."""
        return [
            [*row, EOS_ID]
            for row in self._random_rows(MIN_SOURCE_TOKENS - 1, MAX_SOURCE_TOKENS - 1, EOS_ID + 1, self.symbols - 1)
        ]

    def _random_rows(self, min_length: int, max_length: int, low: int, high: int) -> list[list[int]]:
        generator = random.Random(self.seed)
        last_row = max(1, self.rows - 1)
        lengths = [round(min_length + (max_length - min_length) * row / last_row) for row in range(self.rows)]
        generator.shuffle(lengths)
        return [[generator.randrange(low, high) for _ in range(length)] for length in lengths]


def run_job(measure: Callable[[BenchJob], dict[str, float]], prepare: Callable[[BenchJob], None] | None = None) -> None:
    """Run the action on this process's command line (`prepare` or `measure`, and a job), and print the result."""
    action, job_json = sys.argv[1:]
    job = BenchJob(**json.loads(job_json))
    try:
        if action == "prepare" and prepare is not None:
            prepare(job)
            output: dict[str, Any] = {}
        else:
            output = {**measure(job), "peak_bytes": peak_bytes(job.device)}
    except UserError as error:
        output = {"error": str(error)}
    print(json.dumps(output), flush=True)


def peak_bytes(device: str) -> int:
    """The peak memory of this process, on an NVIDIA GPU that of its tensors there. On Linux, `ru_maxrss` would include
    the parent's.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
