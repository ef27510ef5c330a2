"""Means of the observed entries of every feature: what missing ones are filled with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.kernels.blocks import doubled, slab_rows
from pipeline.sources import ROWS

__all__ = ["Observed", "RowMeans"]


@dataclass(frozen=True)
class Observed:
    """For each feature the weight of its observed entries, their mean (0 where there is none) and how many are NaN."""

    weight: np.ndarray
    mean: np.ndarray
    missing: np.ndarray
    rows: int


@dataclass(frozen=True, eq=False)
class RowMeans:
    """Fold to the mean of what is observed; rows may have weights (n,)."""

    dtype: np.dtype[Any]
    weights: np.ndarray | None = None
    side: int = ROWS

    def block(
        self, x: np.ndarray, at: tuple[int, int], held: Observed | None, scratch: dict[str, np.ndarray]
    ) -> Observed:
        rows = np.ones(len(x)) if self.weights is None else self.weights[at[0] : at[1]]
        height = slab_rows(x.shape[1])
        for start in range(0, len(x), height):
            part = slice(start, start + height)
            found = self._observed(x[part], rows[part])
            held = found if held is None else self.combine(held, found)
        assert held is not None
        return held

    @staticmethod
    def _observed(x: np.ndarray, rows: np.ndarray) -> Observed:
        seen = ~np.isnan(x)
        weight = rows @ seen
        # About the first observed entry of each feature, so that large means keep their digits.
        pilot = x[seen.argmax(axis=0), np.arange(x.shape[1])].astype(doubled(x.dtype))
        shift = rows @ np.where(seen, x - pilot, 0.0)
        mean = np.where(weight > 0, pilot + shift / np.where(weight > 0, weight, 1.0), 0.0)
        return Observed(weight, mean, (~seen).sum(axis=0), len(x))

    def combine(self, a: Observed, b: Observed) -> Observed:
        weight = a.weight + b.weight
        share = np.divide(b.weight, weight, out=np.zeros_like(weight), where=weight > 0)
        mean = a.mean + (b.mean - a.mean) * share
        return Observed(weight, mean, a.missing + b.missing, a.rows + b.rows)
