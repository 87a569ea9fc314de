"""Sums with the same bits in any order, so that a run does not depend on its number of processes.

Floating-point addition rounds after each term, so a sum depends on the order. Integer addition does not round: each
gradient is rounded once, to a 64-bit integer at a power-of-two scale per tensor, and then added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from headway.errors import UserError
from headway.layout import to_device
from headway.learn.optim import FlatParameters
from headway.learn.parallel.processes import Processes

_SUM_BITS = 62  # a sum stays below 2^62, so that it fits in an int64 with its sign
_GROWTH_BITS = 16  # a tensor's maximum may grow by 2^16 between two steps before the second is repeated
_VALUE_BITS = 24  # the significant bits of an fp32 number; the largest element keeps at least these
_MAX_EXPONENT = 126  # fp32 represents 2^126 and 2^-126 as normal numbers
_CHUNK = 1 << 16  # elements per temporary tensor, which fits in a processor's cache
_SQUARE_BITS = 36  # of a squared element, so that float64 adds a chunk of them without rounding


class ExactSum:
    """Sums the gradients of a step's micro-batches as 64-bit integers.

    Gradients are complete tensors or any of their rows: each element is rounded by itself, at the scale 2^k of its
    complete tensor, which follows from the largest element in all micro-batches of the previous step. All processes
    make these calls in each step:

    1. `begin()`. If `has_scales` is False (before a run's first step), the process with micro-batch 0 also passes its
       gradients to `observe`; then all call `agree()`, which sets the scales, and `begin()` again.
    2. `add(...)` for each micro-batch. The integers in `totals` have the gradients' shapes and start at 0; sum them
       over processes, or scatter the sums, by any integer collective.
    3. `agree()`. If it returns False, a gradient was too large for its scale, or so small that it would lose bits: set
       the integers to 0 and repeat from 1 with the same batches, carried states and random numbers. A second
       repetition is never necessary.
    4. `convert(...)` rounds the summed integers to floating point, once.

    A tensor whose largest element is 0 keeps its scale; in the first step, it gets that of the tensor with the largest
    element. Infinity and NaN do not change scales, and `convert` sets that complete tensor to NaN.
    """

    def __init__(
        self,
        names: Sequence[str],
        accumulate: int,
        processes: Processes,
    ) -> None:
        """`accumulate` is the number of micro-batches per step."""
        self.names, self.processes = list(names), processes
        self._max_bits = _SUM_BITS - (accumulate - 1).bit_length()  # of one micro-batch's integers
        self._exponents: dict[str, int] = {}  # k for each tensor in the current or next step
        self._used: dict[str, int] = {}  # k for each tensor in the step that ended last
        self._maxima = torch.zeros(len(self.names), dtype=torch.float64, device=processes.device)
        self._indices = {name: index for index, name in enumerate(self.names)}
        self._not_finite: set[str] = set()

    @property
    def has_scales(self) -> bool:
        """Whether an earlier step, a checkpoint or `observe` has set the scales."""
        return bool(self._exponents)

    def begin(self) -> None:
        """Start a step, or its repetition."""
        self._maxima.zero_()

    def observe(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        """Include gradients in the maxima."""
        for name, gradient in zip(names, gradients):
            maximum = self._maxima[self._indices[name]]
            torch.maximum(maximum, _largest(gradient), out=maximum)

    def add(
        self,
        names: Sequence[str],
        gradients: Sequence[Tensor],
        totals: Sequence[Tensor],
    ) -> None:
        """Add one micro-batch's gradients to the int64 tensors `totals`."""
        self.observe(names, gradients)
        for name, gradient, total in zip(names, gradients, totals):
            scale = 2.0 ** self._exponents[name]
            for values, integers in _chunks(gradient, total):
                rounded = (values * scale).round_()  # scaling is exact
                integers.add_(rounded.to(torch.int64))

    def agree(self) -> bool:
        """Compare the largest elements in all processes with the scales, which are set for the next step or for the
        repetition; return whether this step's sums are valid.
        """
        maxima = dict(zip(self.names, self.processes.maximum(self._maxima).tolist()))
        self._not_finite = {name for name, maximum in maxima.items() if math.isinf(maximum)}
        bits = {name: math.frexp(maximum)[1] for name, maximum in maxima.items() if 0 < maximum < math.inf}
        self._used, goal = self._exponents, self._max_bits - _GROWTH_BITS
        default = _clamp(goal - max(bits.values(), default=0))
        self._exponents = {
            name: _clamp(goal - bits[name]) if name in bits else self._used.get(name, default) for name in self.names
        }
        return bool(self._used) and all(
            _VALUE_BITS <= size + self._used[name] <= self._max_bits or self._used[name] == self._exponents[name]
            for name, size in bits.items()
        )

    def convert(
        self,
        names: Sequence[str],
        totals: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        """Write the sums to `gradients`, with one rounding, after `agree` has returned True."""
        for name, total, gradient in zip(names, totals, gradients):
            if name in self._not_finite:
                gradient.fill_(math.nan)
            else:
                for values, integers in _chunks(gradient, total):
                    values.copy_(integers).mul_(2.0 ** -self._used[name])  # scaling is exact

    def state_dict(self) -> dict[str, Tensor]:
        """The scale of each tensor for the next step, as `exponent.NAME`."""
        return {f"exponent.{name}": torch.tensor(exponent) for name, exponent in self._exponents.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load saved scales; raise UserError for one that is missing."""
        for name in self.names:
            if f"exponent.{name}" not in state:
                raise UserError(f"the checkpoint has no exponent.{name}, which parallel.exact needs; start a new run")
        self._exponents = {name: _clamp(int(state[f"exponent.{name}"])) for name in self.names}


class ExactGradients:
    """The exact sum of the gradients in flat parameters that each process has completely, and of the statistics after
    them.
    """

    def __init__(
        self,
        flat: FlatParameters,
        accumulate: int,
        processes: Processes,
    ) -> None:
        self.flat, self.processes = flat, processes
        self.sums = ExactSum(flat.names, accumulate, processes)
        size, width = flat.grads.numel(), flat.tail.numel()
        # The statistics of each micro-batch come from one process, so adding their bits as integers to zeros is exact.
        self._integers = torch.zeros(size + accumulate * width, dtype=torch.int64, device=flat.data.device)
        self._table = self._integers[size:].view(torch.float64).view(accumulate, width)
        self._totals = [view for _, view in flat.views(self._integers[:size])]
        self._gradients = [view for _, view in flat.views(flat.grads)]

    def sum(self, compute: Callable[[], Iterator[int]]) -> Float[Tensor, "F"]:
        """Leave the summed gradients in `flat`, and return the summed statistics. `compute` yields the number of each
        micro-batch in the step when its gradients and statistics are in `flat`; it may be called again.
        """
        sums, names = self.sums, self.flat.names
        if not sums.has_scales:
            sums.begin()
            self._observe(compute)
            sums.agree()
        is_valid = False
        while not is_valid:
            sums.begin()
            self._integers.zero_()
            for number in compute():
                self._table[number] = self.flat.tail
                self._add()
            is_valid = sums.agree()
        self._reduce()
        sums.convert(names, self._totals, self._gradients)
        return reduce(torch.add, self._table, torch.zeros_like(self._table[0]))  # in the order of the micro-batches

    def _observe(self, compute: Callable[[], Iterator[int]]) -> None:
        """Observe the gradients of micro-batch 0."""
        if self.processes.is_main:
            next(compute())
            self.sums.observe(self.flat.names, self._gradients)

    def _add(self) -> None:
        """Add the gradients of a micro-batch."""
        self.sums.add(self.flat.names, self._gradients, self._totals)

    def _reduce(self) -> None:
        """Sum the integers over all processes."""
        self.processes.sum(self._integers)

    def norm(self) -> Float[Tensor, ""]:
        """The norm of the summed gradients."""
        sizes = {name: shape.numel() for name, shape in self.flat.shapes.items()}
        if self.flat.data.device.type != "cpu":
            return _device_norm([*sizes.values()], self._gradients)
        return torch.tensor(exact_norm(sizes, self._gradients), dtype=torch.float64, device=self.flat.data.device)


def exact_norm(
    sizes: Mapping[str, int],
    gradients: Sequence[Tensor],
    maximum: Callable[[Tensor], Tensor] = lambda values: values,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> float:
    """The Euclidean norm of all gradients, with the same bits for any division into rows; NaN if one is not finite.

    Squares are rounded to integers at a power-of-two scale per tensor. `sizes` has the number of elements of each
    complete tensor; `gradients` has each one's rows in this process. `maximum` and `total` reduce a tensor over the
    processes that share the rows.
    """
    maxima = maximum(torch.stack([_largest(gradient) for gradient in gradients]))
    largest = maxima.tolist()
    if not all(map(math.isfinite, largest)):
        return math.nan
    sums = torch.zeros(len(gradients), dtype=torch.int64, device=maxima.device)
    exponents = []
    for index, (size, gradient) in enumerate(zip(sizes.values(), gradients)):
        bits = min(_SQUARE_BITS, _SUM_BITS - (size - 1).bit_length())
        exponents.append(_clamp(bits // 2 - math.frexp(largest[index])[1]))
        for (values,) in _chunks(gradient):
            squares = (values * 2.0 ** exponents[-1]).square_().round_()
            sums[index] += squares.sum(dtype=torch.float64).to(torch.int64)  # below 2^53, so the sum is exact
    terms = zip(total(sums).tolist(), exponents)
    return math.sqrt(math.fsum(math.ldexp(value, -2 * exponent) for value, exponent in terms))


def _device_norm(sizes: Sequence[int], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """`exact_norm` of complete gradients without waiting for their device. Its sum of the tensors' terms is rounded."""
    largest = torch.stack([_largest(gradient) for gradient in gradients])
    bits = [min(_SQUARE_BITS, _SUM_BITS - (size - 1).bit_length()) // 2 for size in sizes]
    exponents = to_device(torch.tensor(bits, dtype=torch.int32), largest.device) - torch.frexp(largest).exponent
    exponents = exponents.clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    scales = torch.ldexp(torch.ones_like(largest), exponents)
    sums = torch.zeros(len(gradients), dtype=torch.int64, device=largest.device)
    for scale, total, gradient in zip(scales, sums, gradients):
        for (values,) in _chunks(gradient):
            squares = (values * scale).square_().round_()
            total += squares.sum(dtype=torch.float64).to(torch.int64)
    norm = torch.ldexp(sums.double(), -2 * exponents).sum().sqrt()
    return torch.where(largest.isfinite().all(), norm, math.nan)


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude, in float64; infinity for NaN, which a collective maximum may drop."""
    if not values.numel():
        return torch.zeros((), dtype=torch.float64, device=values.device)
    low, high = torch.aminmax(values)
    return torch.nan_to_num(torch.maximum(-low, high).double(), nan=math.inf, posinf=math.inf)


def _clamp(exponent: int) -> int:
    return max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The elements of contiguous tensors of one shape, in chunks."""
    return zip(*(tensor.view(-1).split(_CHUNK) for tensor in tensors))
