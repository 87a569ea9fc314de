"""Linear support-vector machines on sparse vectors."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float, Int

MAX_EPOCHS = 20
_TOLERANCE = 0.01  # largest change of a dual variable in the last epoch


class SparseRows(NamedTuple):
    """Sparse vectors: those of row i are from `offsets[i]` to `offsets[i + 1]`, int64 [N + 1]."""

    offsets: Int[np.ndarray, "N1"]
    columns: Int[np.ndarray, "K"]
    values: Float[np.ndarray, "K"]


def fit_support_vectors(
    rows: SparseRows,
    targets: Bool[np.ndarray, "N C"],
    columns: int,
    costs: Float[np.ndarray, "N"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "H C"], Float[np.ndarray, "C"]]:
    """The weights and biases of one machine per class, each against all others, with squared hinge loss; `costs` are
    the costs of errors of each row. Dual coordinate descent (Hsieh et al. 2008, algorithm 1), for all classes at once.
    """
    signs = np.where(targets, np.float32(1), np.float32(-1))
    weight, bias = np.zeros((columns, targets.shape[1]), np.float32), np.zeros(targets.shape[1], np.float32)
    dual, diagonal = np.zeros(targets.shape, np.float32), (0.5 / costs).astype(np.float32)
    for _ in range(MAX_EPOCHS):
        if _epoch(rng.permutation(len(signs)), *rows, signs, diagonal, dual, weight, bias) < _TOLERANCE:
            break
    return weight, bias


def margins(
    rows: SparseRows, weight: Float[np.ndarray, "H C"], bias: Float[np.ndarray, "C"]
) -> Float[np.ndarray, "N C"]:
    """The outputs of the machines."""
    out = np.tile(bias, (len(rows.offsets) - 1, 1))
    _add_products(*rows, weight, out)
    return out


@numba.njit
def _add_products(offsets, columns, values, weight, out):  # type: ignore[no-untyped-def]
    for row in range(len(out)):
        for k in range(offsets[row], offsets[row + 1]):
            for c in range(out.shape[1]):
                out[row, c] += values[k] * weight[columns[k], c]


@numba.njit
def _epoch(order, offsets, columns, values, signs, diagonal, dual, weight, bias):  # type: ignore[no-untyped-def]
    """Optimise each dual variable once, and return the largest change."""
    classes, largest = len(bias), np.float32(0)
    margins, changes = np.empty(classes, np.float32), np.empty(classes, np.float32)
    for row in order:
        start, stop = offsets[row], offsets[row + 1]
        square = np.float32(1) + diagonal[row]
        margins[:] = bias
        for k in range(start, stop):
            square += values[k] * values[k]
            for c in range(classes):
                margins[c] += values[k] * weight[columns[k], c]
        for c in range(classes):
            gradient = signs[row, c] * margins[c] - 1 + diagonal[row] * dual[row, c]
            updated = max(dual[row, c] - gradient / square, np.float32(0))
            change = updated - dual[row, c]
            largest = max(largest, abs(change))
            changes[c] = change * signs[row, c]
            dual[row, c] = updated
            bias[c] += changes[c]
        for k in range(start, stop):
            for c in range(classes):
                weight[columns[k], c] += values[k] * changes[c]
    return largest
