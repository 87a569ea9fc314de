"""llama.cpp's part of a benchmark: `python -m headway.bench.peers.llama_cpp prepare|measure JOB`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from headway.bench.run import NEW, WARM, Job, answer, seconds_of, seconds_of_a_step
from headway.errors import UserError

_NAME = "llama.cpp"
_TYPES = {"int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Suppress llama.cpp's log on stderr."""


def prepare(job: Job) -> None:
    """Write the model as a GGUF file in fp32, and let llama.cpp quantise all its matrices."""
    from headway.app.exchange import export_model
    from headway.formats.open import open_model

    target = job.place(_NAME)
    whole = target if job.form == "fp32" else target.with_name("whole.gguf")
    export_model(open_model(job.model), whole, "gguf")
    if whole is target:
        return
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = _TYPES[job.form], job.threads, True
    failed = llama_cpp.llama_model_quantize(os.fsencode(whole), os.fsencode(target), ctypes.pointer(settings))
    whole.unlink()
    if failed:
        raise UserError(f"llama.cpp cannot quantise this shape to {job.form}; remove it from --against")


class _Sequences:
    """Rows of a batch that grow together, one sequence each."""

    def __init__(self, path: Path, prompts: Sequence[Sequence[int]], room: int, threads: int) -> None:
        self.prompts = prompts
        tokens = sum(map(len, prompts))
        self._model: Any = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = len(prompts) * (max(map(len, prompts)) + room)
        settings.n_batch = max(tokens, 1)
        settings.n_seq_max = len(prompts)
        settings.n_threads = settings.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, settings) if self._model else None
        if self._context is None:
            raise UserError(f"llama.cpp cannot open {path.name}; remove it from --against")
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        vocabulary: Any = llama_cpp.llama_model_get_vocab(self._model)
        self._symbols = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.lengths = [0] * len(prompts)

    def read(self) -> list[int]:
        """Decode the prompts, and return the most probable token after each."""
        memory: Any = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        self.lengths = [0] * len(self.prompts)
        return self.extend(self.prompts)

    def extend(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Decode further tokens of each row, and return the most probable token after them."""
        batch, count, last = self._batch, 0, []
        for row, symbols in enumerate(rows):
            for place, symbol in enumerate(symbols, self.lengths[row]):
                batch.token[count], batch.pos[count] = symbol, place
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                batch.logits[count] = 0
                count += 1
            batch.logits[count - 1] = 1
            last.append(count - 1)
            self.lengths[row] += len(symbols)
        batch.n_tokens = count
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = (llama_cpp.llama_get_logits_ith(self._context, place) for place in last)
        return [int(np.ctypeslib.as_array(each, (self._symbols,)).argmax()) for each in logits]


def decode(job: Job) -> dict[str, float]:
    """Greedy steps after the prompts."""
    rows = _Sequences(job.place(_NAME), job.prompts(), NEW, job.threads)
    symbols = rows.read()

    def steps(count: int) -> None:
        nonlocal symbols
        for _ in range(count):
            symbols = rows.extend([[symbol] for symbol in symbols])

    steps(WARM)
    return {"tokens_per_second": job.rows * (NEW - WARM) / seconds_of(lambda: steps(NEW - WARM))}


def prefill(job: Job) -> dict[str, float]:
    """The prompts and the logits after each."""
    rows = _Sequences(job.place(_NAME), job.prompts(), 1, job.threads)
    return {"tokens_per_second": sum(map(len, rows.prompts)) / seconds_of_a_step(rows.read)}


_WORK: dict[str, Callable[[Job], dict[str, Any]]] = {"decode": decode, "prefill": prefill}


def measure(job: Job) -> dict[str, float]:
    return _WORK[job.kind](job)


if __name__ == "__main__":
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    answer(measure, prepare)
