"""A product over some stretches of the rows only: what an iteration finds its start from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.folds.products import RowProduct

__all__ = ["SampleProduct", "spans", "spread_cuts"]


@dataclass(frozen=True, eq=False)
class SampleProduct(RowProduct):
    """The same of every second one of the stretches between some cuts, from the second on; the others are not read."""

    cuts: np.ndarray = field(kw_only=True)

    @classmethod
    def of(cls, whole: RowProduct, cuts: np.ndarray) -> SampleProduct:
        """That of all rows, of which nothing is measured."""
        return cls(whole.dtype, whole.lens, whole.squares, None, whole.weights, cuts=cuts)

    def skips(self, at: tuple[int, int]) -> bool:
        return at[0] not in spans(self.cuts)[:, 0]


def spans(cuts: np.ndarray) -> np.ndarray:
    """(number, 2) beginnings and ends of the stretches that are taken between the cuts of `spread_cuts`."""
    return cuts[1:-1].reshape(-1, 2)


def spread_cuts(cuts: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Cuts of a walk that takes so many stretches, of so many rows at most each, the beginnings of blocks.

    >>> spread_cuts(np.arange(0, 1001, 10), number=4, rows=5)
    array([   0,  120,  125,  370,  375,  620,  625,  870,  875, 1000])
    """
    which = (2 * np.arange(number) + 1) * (len(cuts) - 1) // (2 * number)
    starts = cuts[which]
    stops = np.minimum(starts + rows, cuts[which + 1])
    return np.concatenate([cuts[:1], np.column_stack([starts, stops]).ravel(), cuts[-1:]])
