"""The loop that executes a program for the tokens of complete documents."""

from __future__ import annotations

from typing import Any

from headway.engine.document_attention import QUERIES, attend_queries, lay_out
from headway.engine.document_attention_bf16 import QUERIES_AT_ONCE, attend_queries_bf16, lay_out_bf16
from headway.engine.instructions import SIZE, Opcode
from headway.engine.interpreter import AttendDocuments, Batch, execute
from headway.engine.machine import compiled, i64
from headway.engine.matrix_unit import acquire, release
from headway.engine.operations import at

CHUNK = QUERIES * QUERIES_AT_ONCE // 2  # queries of a head in one document that a thread takes at once: full tiles


@compiled
def attend_documents(op: Any, documents: int, scratch: int, thread: int, threads: int) -> None:
    """One thread's share: chunks of queries of a head in a document, with about equal work per thread."""
    heads, group_heads, offsets, bf16 = op.heads, op.heads // op.groups, i64(documents), op.bf16 != 0
    if bf16:
        acquire(at(op.spare, scratch))
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
                        lay_out_bf16(op, start, length, h // group_heads, scratch)
                    else:
                        lay_out(op, start, length, h // group_heads, scratch)
                    laid_out = n * heads + h // group_heads
                if bf16:
                    attend_queries_bf16(op, n, start, length, h, first, last, scratch)
                else:
                    attend_queries(op, n, start, length, h, first, last, scratch)
    if bf16:
        release()


@compiled
def run_documents(
    program: int, count: int, documents: int, scratch: int, counter: int, thread: int, threads: int
) -> None:
    """Execute the `count` instructions at `program` for the tokens of complete documents. `documents` is the address of
    int64: their number, the start of each, and the end of the last.
    """
    offsets = i64(documents)
    tokens = offsets[offsets[0] + 1]
    batch = tokens
    for row in range(program, program + SIZE * count, SIZE):
        kind = i64(row)[0]
        if kind == Opcode.ATTEND_DOCUMENTS:
            attend_documents(AttendDocuments(row), documents, scratch, thread, threads)
        elif kind == Opcode.BATCH:
            batch = offsets[0] * Batch(row).rows if Batch(row).rows else tokens
        else:
            execute(row, documents, documents, batch, scratch, counter, thread, threads)
