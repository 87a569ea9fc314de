"""Sampling kernels: the next token of each row of logits, with penalties, biases, masks, filters, and log
probabilities.

One thread processes a row in one order, so a row's result depends only on the row. A row's settings stay in memory for
as long as the row exists; the threads that computed the logits take rows dynamically, within the same call
(`interpreter.run_step`). A row is processed in groups of 64 neighbours, whose largest elements are compared first: most
filters leave few tokens, and touch few groups. Thresholds are found by bisection over the ordered single-precision
floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headway.engine import codegen
from headway.engine.barrier import barrier, barriers_passed, claim_part, comes_last
from headway.engine.codegen import (
    F64,
    I1,
    I16,
    I32,
    I64,
    Double,
    Float,
    Int,
    Value,
    add,
    call,
    kernel,
    larger,
    vector,
    word,
)
from headway.engine.machine import F32, compiled, f32, f64, i32, i64
from headway.engine.vectors import FLOATS as SIXTEEN
from headway.engine.vectors import LANES, exponential

GROUP = 64  # tokens per group, whose maximum is stored
_PARTS = GROUP // LANES
_FEW = 64  # number of groups that are fast to process
_SPREAD = 16  # one group in this many is used to estimate a threshold
_NEAR = 1 << 19  # floats on either side of the estimate
_COMPACT_EVERY = 6  # probes after which elements outside the bounds are dropped
_LOWEST = -0x7F800000  # the ordinal of -inf
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30  # temperatures beyond these sample alike, and would overflow

# Settings of a row: addresses and sizes. MASK has a bit per token, or is 0. PENALISED are the tokens with penalties,
# TIMES their counts in the output; PENALISED_COUNT is 0 without penalties, BIASED_COUNT without biases. PENALISED,
# TIMES and BIASED are int32, BIASES single precision. TOP_K is 0 for no limit.
MASK, PENALISED, TIMES, PENALISED_COUNT, BIASED, BIASES, BIASED_COUNT, TOP_K, TOP = range(9)
# followed by floats in double precision
TEMPERATURE, TOP_P, MIN_P, UNIFORM, REPETITION, PRESENCE, FREQUENCY = range(7)
FIELDS, FLOATS = 9, 7
# The call of all threads: addresses and sizes (set by `SamplingBatch`). ROWS are pairs of the address of a row's
# settings and the row of its logits. Results go to CHOSEN (int64), LOGPROBS (double precision) and, MAX_TOP per row,
# TOPS and TOP_LOGPROBS.
LOGITS, STRIDE, VOCAB_SIZE, SCRATCH, SCRATCH_BYTES, ROWS, COUNT, MAX_TOP, CHOSEN, LOGPROBS, TOPS, TOP_LOGPROBS = range(
    12
)
CALL_FIELDS = 12


def _load(address: Value) -> list[Value]:
    """The vectors of a group."""
    return [(address.at(SIXTEEN) + part).load(align=4) for part in range(_PARTS)]


@kernel
def _at_least(group: Int, threshold: Float) -> Int:
    """Which elements of a group are at least a threshold, as bits, lowest first; NaN is not."""
    least, bits = threshold.broadcast(SIXTEEN), word(0)
    for number, part in enumerate([part >= least for part in _load(group)]):
        bits = bits | part.to(I16).to(I64, "zext") << LANES * number
    return bits


@kernel
def _count(bits: Int) -> Int:
    return call("ctpop.i64", I64, bits)


@kernel
def _first(bits: Int) -> Int:
    """The index of the lowest bit; at least one is set."""
    return call("cttz.i64", I64, bits, codegen.constant(I1, 1))


@kernel
def _largest_of(group: Int) -> Float:
    """The largest element of a group."""

    def after(a: Value, b: Value) -> Value:
        return larger(b, a)

    a, b, c, d = _load(group)
    return after(after(a, b), after(c, d)).reduce(after)


def _sum(parts: list[Value]) -> Value:
    """The sum of a group, in double precision and in one order."""
    a, b, c, d = (part.to(vector(F64, LANES), "fpext") for part in parts)
    return ((a + b) + (c + d)).reduce(add)


@kernel
def _sum_above(group: Int, threshold: Float) -> Double:
    """The sum of the elements of a group that are at least a threshold."""
    least = threshold.broadcast(SIXTEEN)
    return _sum([(part >= least).select(part, 0.0) for part in _load(group)])


def _exponentials(stored: bool) -> Any:
    @kernel
    def apply(group: Int, top: Float, factor: Float, out: Int) -> Double:
        """The sum of exp((x - top) factor) of a group, 0 below e^-87; each at `out` where they are stored."""
        largest, factors, values = top.broadcast(SIXTEEN), factor.broadcast(SIXTEEN), []
        for part, x in enumerate(_load(group)):
            power = (x - largest) * factors
            values.append((power < -87.0).select(0.0, exponential(power)))
            if stored:
                (out.at(SIXTEEN) + part).store(values[-1], align=4)
        return _sum(values)

    return apply


_mass_of, _weigh_group = _exponentials(False), _exponentials(True)


@kernel
def _copy_bits(group: Int, bits: Int, out: Int) -> None:
    """A group with -inf where the bits are 0."""
    for number, part in enumerate(_load(group)):
        allowed = bits.shift_unsigned(LANES * number).to(I16, "trunc").to(vector(I1, LANES))
        (out.at(SIXTEEN) + number).store(allowed.select(part, -math.inf), align=4)


@kernel
def _prefetch_group(group: Int) -> None:
    """Prefetch a group."""
    for part in range(_PARTS):
        (group.at(SIXTEEN) + part).prefetch()


@kernel
def _bits_of(number: Float) -> Int:
    return number.to(I32).to(I64, "sext")


@kernel
def _number_of(bits: Int) -> Float:
    return bits.to(I32, "trunc").to(codegen.F32)


@compiled
def _ordinal(number: F32) -> int:
    """The ordinal of a float among all single-precision floats; both zeros have the same."""
    bits = _bits_of(number)
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


@compiled
def _from_ordinal(ordinal: int) -> F32:
    return _number_of(ordinal if ordinal >= 0 else -ordinal | 0x80000000)


# A row of logits is at `x` in full groups; the remainder is at `tail`, padded with -inf.


@compiled
def _group(x: int, tail: int, full_groups: int, group: int) -> int:
    return x + 4 * GROUP * group if group < full_groups else tail


@compiled
def _find_maxima(x: int, tail: int, full_groups: int, groups: int, maxima: int) -> F32:
    """The largest element of each group, padded to full groups with -inf; returns the largest of all."""
    top, best = np.float32(-np.inf), f32(maxima)
    for group in range(groups):
        largest = _largest_of(_group(x, tail, full_groups, group))
        best[group] = largest
        top = largest if largest > top else top
    for group in range(groups, -(-groups // GROUP) * GROUP):
        best[group] = np.float32(-np.inf)
    return top


@compiled
def _amount(x: int, tail: int, full_groups: int, groups: int, threshold: F32, weighted: int, step: int) -> float:
    """How many elements of every `step`-th group are at least a threshold, or their sum."""
    total, count = 0.0, 0
    if weighted:
        for group in range(0, groups, step):
            total += _sum_above(_group(x, tail, full_groups, group), threshold)
        return total
    for group in range(0, groups, step):
        count += _count(_at_least(_group(x, tail, full_groups, group), threshold))
    return float(count)


@compiled
def _pad(x: int, count: int) -> int:
    """Pad with -inf to full groups; return the number of groups."""
    groups, values = -(-count // GROUP), f32(x)
    for n in range(count, groups * GROUP):
        values[n] = np.float32(-np.inf)
    return groups


@compiled
def _threshold(
    x: int,
    tail: int,
    full_groups: int,
    groups: int,
    lowest: F32,
    highest: F32,
    goal: float,
    weighted: int,
    scratch: int,
) -> F32:
    """The largest threshold for which the elements that reach it number at least `goal` or, weighted, sum to it. It is
    known to be between two bounds. For many elements, a few groups estimate it first.
    """
    low, high = _ordinal(lowest), _ordinal(highest)
    before, over, probes = 0.0, 0.0, 0  # amount of the elements dropped as too large
    near_low, near_high = low, low
    if groups > _FEW:
        from_low, from_high = low, high
        while from_high - from_low > _NEAR // 2:
            middle = from_low + (from_high - from_low + 1) // 2
            if _SPREAD * _amount(x, tail, full_groups, groups, _from_ordinal(middle), weighted, _SPREAD) >= goal:
                from_low = middle
            else:
                from_high = middle - 1
        near_low, near_high = from_low - _NEAR, from_high + _NEAR
    while low < high:
        middle = low + (high - low + 1) // 2
        if probes == 0 and low < near_low <= high:
            middle = near_low
        elif probes == 1 and low < near_high <= high:
            middle = near_high
        amount = before + _amount(x, tail, full_groups, groups, _from_ordinal(middle), weighted, 1)
        if amount >= goal:
            low = middle
        else:
            high, over = middle - 1, amount
        probes += 1
        if groups > _FEW and (probes == 2 or probes % _COMPACT_EVERY == 0):
            # Gather the elements between the bounds, in place if they are in scratch already.
            gathered, count = f32(scratch), 0
            least, above = _from_ordinal(low), _from_ordinal(high + 1)
            for group in range(groups):
                here = _group(x, tail, full_groups, group)
                values, bits = f32(here), _at_least(here, least) & ~_at_least(here, above)
                while bits:
                    gathered[count] = values[_first(bits)]
                    bits &= bits - 1
                    count += 1
            groups = _pad(scratch, count)
            x, full_groups, before = scratch, groups, over
    return _from_ordinal(low)


@compiled
def _gather(
    x: int, tail: int, full_groups: int, groups: int, maxima: int, threshold: F32, values: int, indices: int
) -> int:
    """The elements that are at least a threshold and their indices, padded to full groups; returns their number."""
    best, gathered, where, count = f32(maxima), f32(values), i32(indices), 0
    for group in range(groups):
        if best[group] >= threshold:
            here = _group(x, tail, full_groups, group)
            group_values, bits = f32(here), _at_least(here, threshold)
            while bits:
                lane = _first(bits)
                gathered[count], where[count] = group_values[lane], np.int32(group * GROUP + lane)
                bits &= bits - 1
                count += 1
    _pad(values, count)
    return count


@compiled
def _kth(
    x: int, tail: int, full_groups: int, groups: int, maxima: int, top: F32, k: int, scratch: int, indices: int
) -> F32:
    """The k-th largest element. At least k groups have an element as large as the k-th largest of the groups' maxima;
    if fewer have one other than -inf, those are processed.
    """
    lowest = _from_ordinal(_LOWEST)
    if 2 * k > groups:
        return _threshold(x, tail, full_groups, groups, lowest, top, float(k), 0, scratch)
    of_groups = -(-groups // GROUP)
    threshold = _threshold(maxima, maxima, of_groups, of_groups, _from_ordinal(_LOWEST + 1), top, float(k), 0, scratch)
    count = _gather(x, tail, full_groups, groups, maxima, threshold, scratch, indices)
    gathered_groups = -(-count // GROUP)
    return _threshold(scratch, scratch, gathered_groups, gathered_groups, lowest, top, float(k), 0, scratch)


@compiled
def _top_k(
    x: int, tail: int, full_groups: int, groups: int, maxima: int, top: F32, log_mass: float, count: int, scratch: int,
    tokens: int, logprobs: int,
) -> None:  # fmt: skip
    """The `count` most probable tokens, in decreasing order and ties by id, and their log probabilities."""
    indices = scratch + 4 * GROUP * groups
    threshold = _kth(x, tail, full_groups, groups, maxima, top, count, scratch, indices)
    gathered = _gather(x, tail, full_groups, groups, maxima, threshold, scratch, indices)
    values, where, best, best_where, filled = f32(scratch), i32(indices), f32(logprobs), i32(tokens), 0
    for n in range(gathered):
        if filled < count or values[n] > best[count - 1]:
            at = filled if filled < count else count - 1
            while at > 0 and best[at - 1] < values[n]:
                best[at], best_where[at] = best[at - 1], best_where[at - 1]
                at -= 1
            best[at], best_where[at] = values[n], where[n]
            filled = min(filled + 1, count)
    for n in range(filled, count):  # for rows of NaN
        best[n], best_where[n] = np.float32(np.nan), np.int32(0)
    for n in range(count):
        best[n] = np.float32(np.float64(best[n]) - np.float64(top) - log_mass)


@compiled
def _adjust(at: int, vocab_size: int, y: int) -> None:
    """Penalties and biases of the row whose settings are at this address."""
    row, floats = i64(at), f64(at + 8 * FIELDS)
    logits, penalised, times = f32(y), i32(row[PENALISED]), i32(row[TIMES])
    repetition, presence = np.float32(floats[REPETITION]), np.float32(floats[PRESENCE])
    frequency = np.float32(floats[FREQUENCY])
    for n in range(row[PENALISED_COUNT]):
        token = penalised[n]
        if token < vocab_size:
            x = logits[token]
            x = x / repetition if x > 0 else x * repetition
            if times[n] > 0:
                x = x - presence - frequency * np.float32(times[n])
            logits[token] = x
    biased, biases = i32(row[BIASED]), f32(row[BIASES])
    for n in range(row[BIASED_COUNT]):
        if biased[n] < vocab_size:
            logits[biased[n]] += biases[n]


@compiled
def _mask(group: int, vocab_size: int, mask: int) -> int:
    """The mask bits of a group, without bits beyond the vocabulary."""
    remaining = vocab_size - group * GROUP
    inside = -1 if remaining >= GROUP else (1 << remaining) - 1
    if not mask:
        return inside
    words = i32(mask)
    bits = words[2 * group] & 0xFFFFFFFF
    if remaining > 32:
        bits |= words[2 * group + 1] << 32
    return bits & inside


@compiled
def _weigh(x: int, tail: int, full_groups: int, groups: int, top: F32, factor: F32, weights: int, sums: int) -> float:
    """Unnormalised probabilities, with the sum of each group; returns the total."""
    group_sums, total = f64(sums), 0.0
    for group in range(groups):
        here = _group(x, tail, full_groups, group)
        group_sums[group] = _weigh_group(here, top, factor, weights + 4 * GROUP * group)
        total += group_sums[group]
    return total


@compiled
def _sample_token(
    x: int, tail: int, full_groups: int, groups: int, vocab_size: int, maxima: int, top: F32, at: int, scratch: int
) -> int:  # fmt: skip
    """A token that passes the filters, by the inverse of the cumulative distribution at the row's uniform number."""
    row, floats = i64(at), f64(at + 8 * FIELDS)
    size = 4 * GROUP * groups
    weights, indices, spare, sums = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    heat = min(max(floats[TEMPERATURE], _MIN_TEMPERATURE), _MAX_TEMPERATURE)
    threshold, count, gathered = np.float32(-np.inf), vocab_size, False
    if 0 < row[TOP_K] < vocab_size:
        threshold = _kth(x, tail, full_groups, groups, maxima, top, row[TOP_K], spare, indices)
    if floats[MIN_P] > 0:
        threshold = max(threshold, np.float32(top + heat * math.log(floats[MIN_P])))
    if threshold > np.float32(-np.inf):
        count = _gather(x, tail, full_groups, groups, maxima, threshold, weights, indices)
        gathered, groups = True, -(-count // GROUP)
        x, full_groups = weights, groups
    total = _weigh(x, tail, full_groups, groups, top, np.float32(1.0 / heat), weights, sums)
    threshold = np.float32(0.0)
    if floats[TOP_P] < 1:
        # Weights below this bound are outside the nucleus: together they are less than 1 - top_p.
        bound = np.float32(0.5 * (1.0 - floats[TOP_P]) * total / count)
        goal = floats[TOP_P] * total
        threshold = _threshold(weights, weights, groups, groups, bound, np.float32(1.0), goal, 1, spare)
        group_sums, total = f64(sums), 0.0
        for group in range(groups):
            group_sums[group] = _sum_above(weights + 4 * GROUP * group, threshold)
            total += group_sums[group]
    # The first index up to which the weights sum to more than the target, which is below the total; a weight of 0 is
    # never sampled.
    group_sums, target, reached, last, lane = f64(sums), floats[UNIFORM] * total, 0.0, 0, 0
    for group in range(groups):
        if group_sums[group] > 0:
            last = group
            if reached + group_sums[group] > target:
                break
            reached += group_sums[group]
    values = f32(weights + 4 * GROUP * last)
    for n in range(GROUP):
        if values[n] >= threshold and values[n] > 0:
            lane = n
            reached += values[n]
            if reached > target:
                break
    index = last * GROUP + lane
    return i32(indices)[index] if gathered else index


@compiled
def _fill_tail(x: int, vocab_size: int, tail: int) -> None:
    logits, copied, tail_start = f32(x), f32(tail), vocab_size // GROUP * GROUP
    for n in range(vocab_size - tail_start):
        copied[n] = logits[tail_start + n]
    _pad(tail, vocab_size - tail_start)


@compiled
def _sample_row(call_address: int, n: int, thread: int, threads: int) -> None:
    """The next token of a row, -1 if its mask allows none, and its log probability; also the most probable tokens that
    it requests. The next row's logits are prefetched while exponentials are computed.
    """
    call = i64(call_address)
    rows, vocab_size = i64(call[ROWS]), call[VOCAB_SIZE]
    at, x = rows[2 * n], call[LOGITS] + call[STRIDE] * rows[2 * n + 1]
    ahead = call[LOGITS] + call[STRIDE] * rows[2 * min(n + threads, call[COUNT] - 1) + 1]
    row, floats, scratch = i64(at), f64(at + 8 * FIELDS), call[SCRATCH] + call[SCRATCH_BYTES] * thread
    groups, full_groups, mass = -(-vocab_size // GROUP), vocab_size // GROUP, 0.0
    tail, maxima = scratch, scratch + 4 * GROUP
    copied = maxima + 4 * GROUP * -(-groups // GROUP)
    scratch = copied + 4 * GROUP * groups
    _fill_tail(x, vocab_size, tail)
    first = _find_maxima(x, tail, full_groups, groups, maxima)
    for group in range(groups):
        mass += _mass_of(_group(x, tail, full_groups, group), first, np.float32(1.0), 0)
        _prefetch_group(ahead + 4 * GROUP * group)
    log_mass = math.log(mass)
    if row[TOP]:
        to = 4 * n * call[MAX_TOP]
        _top_k(
            x, tail, full_groups, groups, maxima, first, log_mass, row[TOP], scratch, call[TOPS] + to,
            call[TOP_LOGPROBS] + to,
        )  # fmt: skip
    here, top = x, first
    if row[MASK] or row[PENALISED_COUNT] or row[BIASED_COUNT]:
        any_bits = 0
        for group in range(groups):
            bits = _mask(group, vocab_size, row[MASK])
            any_bits |= bits
            _copy_bits(_group(x, tail, full_groups, group), bits, copied + 4 * GROUP * group)
        if any_bits == 0:
            i64(call[CHOSEN])[n] = -1
            return
        _adjust(at, vocab_size, copied)
        here, full_groups = copied, groups
        top = _find_maxima(here, tail, full_groups, groups, maxima)
    if floats[TEMPERATURE] == 0 or not math.isfinite(top) or math.isnan(mass):
        token = 0  # the first of equal ones; 0 if there is none
        for group in range(groups):
            if f32(maxima)[group] >= top:
                token = group * GROUP + _first(_at_least(_group(here, tail, full_groups, group), top))
                break
    else:
        token = _sample_token(here, tail, full_groups, groups, vocab_size, maxima, top, at, scratch)
    i64(call[CHOSEN])[n] = token
    f64(call[LOGPROBS])[n] = np.float32(np.float64(f32(x)[token]) - np.float64(first) - log_mass)


@compiled
def sample_batch(call_address: int, counter: int, thread: int, threads: int) -> None:
    """Sample the next token of each row once all threads have arrived: idle threads take the next row. A single row is
    processed by the thread that arrives last, and nobody waits. `call_address` comes from `SamplingBatch.bind`.
    """
    count = i64(call_address)[COUNT]
    if threads == 1 or count == 1:
        if threads == 1 or comes_last(counter, threads):
            for n in range(count):
                _sample_row(call_address, n, thread, 1)
        return
    barrier(counter, threads)
    barriers = barriers_passed(counter, threads)
    n = claim_part(counter, 0, barriers, count)
    while n < count:
        _sample_row(call_address, n, thread, threads)
        n = claim_part(counter, 0, barriers, count)


@compiled
def find_top_k_share(
    logits: int, stride: int, rows: int, vocab_size: int, suppressed: int, suppressed_count: int, count: int,
    thread: int, threads: int, scratch: int, tokens_at: int, logprobs_at: int,
) -> None:  # fmt: skip
    """One thread's share of `sampling_batch.find_top_k`."""
    groups, full_groups, suppressed_ids = -(-vocab_size // GROUP), vocab_size // GROUP, i32(suppressed)
    tail, maxima = scratch, scratch + 4 * GROUP
    best, copied = f32(maxima), f32(tail)
    scratch = maxima + 4 * GROUP * -(-groups // GROUP)
    for n in range(thread, rows, threads):
        x, to, mass = logits + n * stride, 4 * n * count, 0.0
        row_logits = f32(x)
        _fill_tail(x, vocab_size, tail)
        top = _find_maxima(x, tail, full_groups, groups, maxima)
        for group in range(groups):
            mass += _mass_of(_group(x, tail, full_groups, group), top, np.float32(1.0), 0)
        largest = top
        if suppressed_count:
            for k in range(suppressed_count):
                token = suppressed_ids[k]
                row_logits[token] = np.float32(-np.inf)
                if token >= full_groups * GROUP:
                    copied[token - full_groups * GROUP] = np.float32(-np.inf)
                best[token // GROUP] = _largest_of(_group(x, tail, full_groups, token // GROUP))
            largest = np.float32(-np.inf)
            for group in range(groups):
                largest = max(largest, best[group])
        log_mass = math.log(mass) + np.float64(top) - np.float64(largest)
        _top_k(
            x, tail, full_groups, groups, maxima, largest, log_mass, count, scratch, tokens_at + to, logprobs_at + to
        )  # fmt: skip
