"""Sums over rows that are first drawn in to a ball, so that no single row counts for more than is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.sources import ROWS

__all__ = ["Clipped", "RowClipped"]

_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Clipped:
    """Number of rows, their sums (d,) and second moments (d, d) about the centre, in weighted units."""

    n: int
    sums: np.ndarray
    scatter: np.ndarray


@dataclass(frozen=True, eq=False)
class RowClipped:
    """Fold to the sums of z = (x - centre) factor, each row shortened to a norm of at most `row_norm`."""

    centre: np.ndarray
    factor: np.ndarray
    row_norm: float
    dtype: np.dtype[Any] = _FLOAT64
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Clipped | None, scratch: dict[str, Any]) -> Clipped:
        if not np.isfinite(x).all():
            raise NonfiniteError("NaN or Inf among the entries")
        z = (x - self.centre) * self.factor
        norms = np.sqrt(np.einsum("ij,ij->i", z, z))
        z *= np.minimum(1.0, self.row_norm / np.maximum(norms, self.row_norm))[:, None]
        found = Clipped(len(z), z.sum(axis=0), z.T @ z)
        return found if held is None else self.combine(held, found)

    def combine(self, a: Clipped, b: Clipped) -> Clipped:
        return Clipped(a.n + b.n, a.sums + b.sums, a.scatter + b.scatter)
