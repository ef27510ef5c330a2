"""Some stretches of the rows, as they are: what an iteration can find its start from before it walks all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.sources import ROWS

__all__ = ["RowSample", "Sample", "spans", "spread_cuts"]


@dataclass(frozen=True)
class Sample:
    """Stretches of rows (m_i, d), in order."""

    stretches: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class RowSample:
    """Fold to every second one of the stretches between some cuts, from the second on; the others are not read."""

    dtype: np.dtype[Any]
    cuts: np.ndarray
    side: int = ROWS
    gathers: ClassVar[bool] = True

    def skips(self, at: tuple[int, int]) -> bool:
        return at[0] not in spans(self.cuts)[:, 0]

    def block(self, x: np.ndarray, at: tuple[int, int], held: Sample | None, scratch: dict[str, np.ndarray]) -> Sample:
        return Sample((*(held.stretches if held else ()), x))

    def combine(self, a: Sample, b: Sample) -> Sample:
        return Sample(a.stretches + b.stretches)


def spans(cuts: np.ndarray) -> np.ndarray:
    """(number, 2) beginnings and ends of the stretches that are taken between the cuts of `spread_cuts`."""
    return cuts[1:-1].reshape(-1, 2)


def spread_cuts(cuts: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Cuts of a walk that takes so many stretches, of so many rows at most in all, each the beginning of a block.

    >>> spread_cuts(np.arange(0, 1001, 10), number=4, rows=20)
    array([   0,  120,  125,  370,  375,  620,  625,  870,  875, 1000])
    """
    which = (2 * np.arange(number) + 1) * (len(cuts) - 1) // (2 * number)
    starts = cuts[which]
    stops = np.minimum(starts + max(rows // number, 1), cuts[which + 1])
    return np.concatenate([cuts[:1], np.column_stack([starts, stops]).ravel(), cuts[-1:]])
