"""llama.cpp's part of a benchmark: `python -m headway.bench.peers.llama_cpp prepare|measure JOB`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from headway.bench.measurement import NEW_TOKENS, WARMUP_TOKENS, BenchJob, run_job, time_call, time_step
from headway.errors import UserError

_NAME = "llama.cpp"
_TYPES = {"int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Suppress llama.cpp's log on stderr."""


def prepare(job: BenchJob) -> None:
    """Write the model as a GGUF file in fp32, and let llama.cpp quantise all its matrices."""
    from headway.app.conversion import export_model
    from headway.formats.open import open_model

    target = job.converted_path(_NAME)
    unquantized = target if job.form == "fp32" else target.with_name("whole.gguf")
    export_model(open_model(job.model), unquantized, "gguf")
    if unquantized is target:
        return
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = _TYPES[job.form], job.threads, True
    failed = llama_cpp.llama_model_quantize(os.fsencode(unquantized), os.fsencode(target), ctypes.pointer(settings))
    unquantized.unlink()
    if failed:
        raise UserError(f"llama.cpp cannot quantise this shape to {job.form}; remove it from --against")


class _Sequences:
    """Rows in a batch that grow together, one sequence each."""

    def __init__(self, path: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int, threads: int) -> None:
        self.prompts = prompts
        tokens = sum(map(len, prompts))
        self._model: Any = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = len(prompts) * (max(map(len, prompts)) + max_new_tokens)
        settings.n_batch = max(tokens, 1)
        settings.n_seq_max = len(prompts)
        settings.n_threads = settings.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, settings) if self._model else None
        if self._context is None:
            raise UserError(f"llama.cpp cannot open {path.name}; remove it from --against")
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        vocabulary: Any = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.lengths = [0] * len(prompts)

    def prefill(self) -> list[int]:
        """Decode the prompts, and return the most probable token after each."""
        memory: Any = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        self.lengths = [0] * len(self.prompts)
        return self.extend(self.prompts)

    def extend(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Decode more tokens in each row, and return the most probable token after them."""
        batch, count, last = self._batch, 0, []
        for row, tokens in enumerate(rows):
            for position, token in enumerate(tokens, self.lengths[row]):
                batch.token[count], batch.pos[count] = token, position
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                batch.logits[count] = 0
                count += 1
            batch.logits[count - 1] = 1
            last.append(count - 1)
            self.lengths[row] += len(tokens)
        batch.n_tokens = count
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = (llama_cpp.llama_get_logits_ith(self._context, position) for position in last)
        return [int(np.ctypeslib.as_array(row_logits, (self._vocab_size,)).argmax()) for row_logits in logits]


def decode(job: BenchJob) -> dict[str, float]:
    """Greedy steps after the prompts."""
    rows = _Sequences(job.converted_path(_NAME), job.prompts(), NEW_TOKENS, job.threads)
    tokens = rows.prefill()

    def steps(count: int) -> None:
        nonlocal tokens
        for _ in range(count):
            tokens = rows.extend([[token] for token in tokens])

    steps(WARMUP_TOKENS)
    return {
        "tokens_per_second": job.rows
        * (NEW_TOKENS - WARMUP_TOKENS)
        / time_call(lambda: steps(NEW_TOKENS - WARMUP_TOKENS))
    }


def prefill(job: BenchJob) -> dict[str, float]:
    """The prompts and the logits after each."""
    rows = _Sequences(job.converted_path(_NAME), job.prompts(), 1, job.threads)
    return {"tokens_per_second": sum(map(len, rows.prompts)) / time_step(rows.prefill)}


_WORK: dict[str, Callable[[BenchJob], dict[str, Any]]] = {"decode": decode, "prefill": prefill}


def measure(job: BenchJob) -> dict[str, float]:
    return _WORK[job.kind](job)


if __name__ == "__main__":
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    run_job(measure, prepare)
