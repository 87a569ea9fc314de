"""llama.cpp's part of llama_reads.py, in an interpreter that needs no package but llama-cpp-python.

python benchmarks/llama_worker.py JOB      # a JSON file: prompt, files to read, files to make, texts
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Suppress llama.cpp's log on stderr."""


def logits(path: Path, prompt: Sequence[int]) -> np.ndarray:
    """Logits after each token of the prompt: (tokens, vocabulary)."""
    model: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp does not open it")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32  # a cache in fp16 would round
    context: Any = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(prompt), 0, 1)
    for position, token in enumerate(prompt):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
    batch.n_tokens = len(prompt)
    code = llama_cpp.llama_decode(context, batch)
    if code:
        raise RuntimeError(f"llama_decode returned {code}")
    vocabulary: Any = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    rows = (llama_cpp.llama_get_logits_ith(context, position) for position in range(len(prompt)))
    found = np.stack([np.ctypeslib.as_array(row, (size,)).copy() for row in rows])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def tokens(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, without the tokens around them; what looks like a special token is text."""
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise RuntimeError("llama.cpp does not open it")
    vocabulary: Any = llama_cpp.llama_model_get_vocab(model)
    found = []
    for text in texts:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), False, False)
        found.append(list(buffer[:count]))
    llama_cpp.llama_model_free(model)
    return found


def quantize(source: Path, target: Path, number: int, sizes: Mapping[str, int]) -> None:
    """Write `target` in one of llama.cpp's formats of files; i-quants of 1 to 3 bits need importances of columns, which
    are drawn: `sizes` of them by tensor.
    """
    draws = np.random.default_rng(1)
    held = {name: draws.uniform(0.5, 1.5, size).astype(np.float32) for name, size in sizes.items()}
    kind = llama_cpp.llama_model_imatrix_data
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [kind(name.encode(), each.ctypes.data_as(pointer), each.size) for name, each in held.items()]
    importance = (kind * (len(entries) + 1))(*entries)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = number, 1, True
    if entries:
        settings.imatrix = ctypes.cast(importance, type(settings.imatrix))
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.pointer(settings)):
        raise RuntimeError("llama.cpp does not quantise it")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    failures: dict[str, str] = {}
    for source, target, kind in job["made"]:
        try:
            sizes = {} if kind == "ALL_F32" else job["sizes"]
            quantize(Path(source), Path(target), getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), sizes)
        except (RuntimeError, AttributeError) as error:
            failures[target] = str(error)
    for path in job["read"]:
        try:
            if Path(path).exists():
                np.save(f"{path}.npy", logits(Path(path), job["prompt"]))
        except RuntimeError as error:
            failures[path] = str(error)
    ids = tokens(Path(job["tokenizer"]), job["texts"]) if "texts" in job else None
    print(json.dumps({"version": llama_cpp.__version__, "failures": failures, "ids": ids}))


if __name__ == "__main__":
    main()
