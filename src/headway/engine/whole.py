"""The loop for programs that do more than attend: compiled apart, so that who only attends does not wait for it."""

from __future__ import annotations

import numpy as np

from headway.engine.additive import add_attend
from headway.engine.cells import cell, combine
from headway.engine.experts import idle, route, weigh
from headway.engine.machine import compiled
from headway.engine.matrices import associate, link
from headway.engine.program import ADD_ATTEND, ASSOCIATE, CELL, COMBINE, LINK, ROUTE, SKIP, run


@compiled
def run_whole(
    table: np.ndarray,
    floats: np.ndarray,
    symbols: int,
    places: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
) -> None:
    """`program.run` with all instructions."""
    start, count = 0, table.shape[0]
    while start < count:
        stop = start
        while stop < count and table[stop, 0] < COMBINE:
            stop += 1
        run(table[start:stop], floats[start:stop], symbols, places, batch, scratch, counter, thread, threads)
        if stop < count:
            op, numbers = table[stop], floats[stop]
            kind = op[0]
            if kind == COMBINE:
                combine(op, batch, scratch)
            elif kind == CELL:
                cell(op, numbers, places, batch, thread, threads)
            elif kind == ASSOCIATE:
                associate(op, numbers, places, batch, scratch, thread, threads)
            elif kind == ADD_ATTEND:
                add_attend(op, batch, scratch, thread, threads)
            elif kind == LINK:
                link(op, numbers, places, batch, scratch, thread, threads)
            elif kind == ROUTE:
                route(op, batch, scratch, thread, threads)
            elif kind == SKIP:
                stop += op[4] if idle(op, batch, scratch) else 0
            else:
                weigh(op, batch, scratch, thread, threads)
        start = stop + 1
