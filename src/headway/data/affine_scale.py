"""States and actions in the range that models learn well: shifted and scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MIN_SPREAD = 1e-6  # a smaller spread counts as constant: only the shift is subtracted


@dataclass(frozen=True)
class AffineScale:
    """Values minus `shift`, divided by `scale`, along the last axis."""

    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Scale values, float32 [..., A]."""
        scaled = (values - np.array(self.shift, np.float32)) / np.array(self.scale, np.float32)
        return scaled.astype(np.float32, copy=False)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """The values before they were scaled, [..., A]."""
        return values * np.array(self.scale, np.float32) + np.array(self.shift, np.float32)

    @classmethod
    def by_deviation(cls, values: np.ndarray) -> AffineScale:
        """The mean and standard deviation of values [N, A]; constant values are divided by 1."""
        return cls._fit(values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64))

    @classmethod
    def by_range(cls, values: np.ndarray) -> AffineScale:
        """The centre and half the range of values [N, A]; constant values are divided by 1."""
        low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
        return cls._fit((high + low) / 2, (high - low) / 2)

    @classmethod
    def _fit(cls, shift: np.ndarray, spread: np.ndarray) -> AffineScale:
        return cls(tuple(shift.tolist()), tuple(np.where(spread > _MIN_SPREAD, spread, 1.0).tolist()))
