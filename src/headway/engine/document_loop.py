"""The loop that executes a program for the tokens of complete documents."""

from __future__ import annotations

import numpy as np

from headway.engine.document_attention import QUERIES, attend_queries, lay_out
from headway.engine.document_attention_bf16 import QUERIES_AT_ONCE, attend_queries_bf16, lay_out_bf16
from headway.engine.interpreter import Opcode, run
from headway.engine.machine import compiled, i64
from headway.engine.matrix_unit import acquire, release
from headway.engine.operations import at

CHUNK = QUERIES * QUERIES_AT_ONCE // 2  # queries of a head in one document that a thread takes at once: full tiles
_ATTEND, _BATCH = int(Opcode.ATTEND_DOCUMENTS), int(Opcode.BATCH)


@compiled
def attend_documents(
    op: np.ndarray, op_floats: np.ndarray, documents: int, scratch: int, thread: int, threads: int
) -> None:
    """One thread's share: chunks of queries of a head in a document, with about equal work per thread."""
    heads, group_heads, offsets, bf16 = op[3], op[3] // op[4], i64(documents), op[29] != 0
    if bf16:
        acquire(at(op[25], scratch))
    total = 0
    for n in range(offsets[0]):
        total += (offsets[n + 2] - offsets[n + 1]) * (offsets[n + 2] - offsets[n + 1]) * heads
    low, high = thread * total // threads, (thread + 1) * total // threads
    done, laid_out = 0, -1
    for n in range(offsets[0]):
        start, length = offsets[n + 1], offsets[n + 2] - offsets[n + 1]
        for h in range(heads):
            for first in range(0, length, CHUNK):
                last, here = min(first + CHUNK, length), done
                done += (last - first) * length
                if here < low or here >= high:
                    continue
                if laid_out != n * heads + h // group_heads:
                    if bf16:
                        lay_out_bf16(op, op_floats, start, length, h // group_heads, scratch)
                    else:
                        lay_out(op, op_floats, start, length, h // group_heads, scratch)
                    laid_out = n * heads + h // group_heads
                if bf16:
                    attend_queries_bf16(op, op_floats, n, start, length, h, first, last, scratch)
                else:
                    attend_queries(op, op_floats, n, start, length, h, first, last, scratch)
    if bf16:
        release()


@compiled
def run_documents(
    table: np.ndarray, floats: np.ndarray, documents: int, scratch: int, counter: int, thread: int, threads: int
) -> None:
    """Execute all instructions for the tokens of complete documents. `documents` is the address of int64: their number,
    the start of each, and the end of the last.
    """
    offsets = i64(documents)
    tokens = offsets[offsets[0] + 1]
    batch, start, count = tokens, 0, table.shape[0]
    while start < count:
        stop = start
        while stop < count and table[stop, 0] != _ATTEND and table[stop, 0] != _BATCH:
            stop += 1
        run(table[start:stop], floats[start:stop], documents, documents, batch, scratch, counter, thread, threads)
        if stop < count:
            op = table[stop]
            if op[0] == _ATTEND:
                attend_documents(op, floats[stop], documents, scratch, thread, threads)
            else:
                batch = offsets[0] * op[1] if op[1] else tokens
        start = stop + 1
