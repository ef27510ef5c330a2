"""Reduced factors of rows: each block becomes the subspace of its rows, and these are merged (Iwen and Ong 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources import ROWS
from pipeline.subspace import Subspace

__all__ = ["RowFactor"]


@dataclass(frozen=True, eq=False)
class RowFactor:
    """Fold to the subspace of all rows with the weights, scale and centring of another one.

    Parameters
    ----------
    dtype : dtype
        In which blocks are read.
    like : Subspace
        Of the same features; its numbers do not count.
    width : int
        How many components are kept on the way: exact where the rows have no more directions.
    weights : (n,) array, optional
        How much each row counts.
    """

    dtype: np.dtype[Any]
    like: Subspace
    width: int
    weights: np.ndarray | None = None
    side: int = ROWS

    def block(
        self, x: np.ndarray, at: tuple[int, int], held: Subspace | None, scratch: dict[str, np.ndarray]
    ) -> Subspace:
        part = self.like.of_rows(x, None if self.weights is None else self.weights[at[0] : at[1]])
        part = part.truncate(min(self.width, part.k)) if part.k else part
        return part if held is None else self.combine(held, part)

    def combine(self, a: Subspace, b: Subspace) -> Subspace:
        return a.merge(b, n_components=self.width)
