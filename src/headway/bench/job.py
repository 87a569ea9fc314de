"""What one process of a benchmark is asked to do, and how it answers: a line of JSON."""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headway.errors import UserError

Kind = Literal["decode", "prefill", "translate", "train", "load"]

PROMPT, NEW, WARM = 128, 128, 16  # decode: symbols read, symbols written, and those of them that are not timed
READ = 512  # prefill: symbols of the longest prompt
SHORTEST, LONGEST, WRITTEN, BEAM = 15, 35, 32, 4  # translate: symbols of sources and of each translation
END = 0  # translate: the symbol that ends a sentence


@dataclass(frozen=True)
class Job:
    """The work of one process. `form` is what its weights are in; `folder` holds what was prepared for all."""

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
    cache: Literal["fp32", "int8"] = "fp32"

    @property
    def model(self) -> Path:
        """The folder of the drawn model: in a published format where a peer reads it."""
        return Path(self.folder) / "model"

    def place(self, program: str) -> Path:
        """Where a program finds, or puts, the model in its own form."""
        return Path(self.folder) / f"{program}-{self.form}"

    def prompts(self) -> list[list[int]]:
        """Of one row, the longest; of several, lengths spread evenly between half of that and all of it."""
        longest = READ if self.kind == "prefill" else PROMPT
        return self._drawn(longest // 2 if self.rows > 1 else longest, longest, 0, self.symbols)

    def sources(self) -> list[list[int]]:
        """Sentences to translate, with their end. The last symbol, which starts a translation, is in none."""
        return [[*row, END] for row in self._drawn(SHORTEST - 1, LONGEST - 1, END + 1, self.symbols - 1)]

    def _drawn(self, shortest: int, longest: int, low: int, high: int) -> list[list[int]]:
        generator = random.Random(self.seed)
        last = max(1, self.rows - 1)
        lengths = [round(shortest + (longest - shortest) * row / last) for row in range(self.rows)]
        generator.shuffle(lengths)
        return [[generator.randrange(low, high) for _ in range(length)] for length in lengths]


def answer(measure: Callable[[Job], dict[str, float]], prepare: Callable[[Job], None] | None = None) -> None:
    """Do what the command line of this process says, `prepare` or `measure` and a job, and print what came of it."""
    action, text = sys.argv[1:]
    job = Job(**json.loads(text))
    try:
        if action == "prepare" and prepare is not None:
            prepare(job)
            found: dict[str, Any] = {}
        else:
            found = {**measure(job), "peak_bytes": peak_bytes()}
    except UserError as error:
        found = {"error": str(error)}
    print(json.dumps(found), flush=True)


def peak_bytes() -> int:
    """The most memory that this process has had. What resource says would count its parent's on Linux."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
