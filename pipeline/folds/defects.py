"""Where the entries of a matrix are not numbers: what an error message needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources import ROWS

__all__ = ["Defects", "Found"]


@dataclass(frozen=True)
class Found:
    """Rows read; for each feature how many entries are NaN, how many not finite, and the first row with such a one."""

    rows: int
    nan: np.ndarray
    bad: np.ndarray
    first: np.ndarray

    def place(self, present: np.ndarray | None = None) -> tuple[int, int, int] | None:
        """(row, feature, number of entries) of the first entry that is no number.

        Features that are NaN everywhere do not count, or, where `present` (d,) is given, those outside of it.
        """
        guilty = (self.bad > 0) & (self.nan < self.rows if present is None else present)
        if not guilty.any():
            return None
        rows = np.where(guilty, self.first, np.iinfo(np.int64).max)
        return int(rows.min()), int(rows.argmin()), int(self.bad[guilty].sum())


@dataclass(frozen=True, eq=False)
class Defects:
    """Fold to the place of the first NaN or Inf."""

    dtype: np.dtype[Any]
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Found | None, scratch: dict[str, np.ndarray]) -> Found:
        wrong = ~np.isfinite(x)
        first = np.where(wrong.any(axis=0), at[0] + wrong.argmax(axis=0), np.iinfo(np.int64).max)
        found = Found(len(x), np.isnan(x).sum(axis=0), wrong.sum(axis=0), first)
        return found if held is None else self.combine(held, found)

    def combine(self, a: Found, b: Found) -> Found:
        return Found(a.rows + b.rows, a.nan + b.nan, a.bad + b.bad, np.minimum(a.first, b.first))
