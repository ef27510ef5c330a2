"""Blocks that are never made dense: what is asked of sparse ones, and of operators.

Both answer the same few questions, from which every fold follows: X R, X^H R, column sums and squares, and Gram
matrices. They compute in double precision, so that what centring takes out afterwards leaves digits enough; products
of a block in single precision are for those who measure what that costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

__all__ = ["ImplicitBlock", "stretches"]

_PANEL_BYTES = 32 << 20  # of a dense panel or a sparse product at a time


class ImplicitBlock(Protocol):
    """A block X (m, c) by its products; all results are float64 or complex128."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def times(self, thin: np.ndarray) -> np.ndarray:
        """X R (m, l)."""
        ...

    def adjoint(self, thin: np.ndarray) -> np.ndarray:
        """X^H R (c, l)."""
        ...

    def sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(c,) sums of the rows, each times its weight."""
        ...

    def squares(self, weights: np.ndarray | None = None, about: np.ndarray | None = None) -> np.ndarray:
        """(c,) weighted sums of squared magnitudes of the columns about `about` (c,), or zero."""
        ...

    def add_gram(self, out: np.ndarray, weights: np.ndarray | None, about: np.ndarray) -> None:
        """out (c, c) += X'^H diag(weights) X', X' = X - 1 about^T."""
        ...

    def add_dual_gram(self, out: np.ndarray, weights: np.ndarray, about: np.ndarray) -> None:
        """out (m, m) += X' diag(weights) X'^H, X' = X - 1 about^T."""
        ...

    def in_single(self) -> ImplicitBlock:
        """The same block for products in single precision, where it has such."""
        ...

    def shifted(self) -> tuple[ImplicitBlock, np.ndarray]:
        """The block less a pilot (c,), where that leaves it as sparse as it was; and the pilot.

        The mean^2 of a column of which a share f is stored is at most f / (1 - f) of its variance: only those that are
        full can lose digits by it.
        """
        ...

    def absent(self) -> np.ndarray:
        """(c,) bool: columns that are NaN in every row; raises NonfiniteError where one is NaN or Inf in part."""
        ...

    def without(self, absent: np.ndarray) -> ImplicitBlock:
        """The same block with zeros in those columns."""
        ...

    def observed(self, weights: np.ndarray | None = None) -> tuple[ImplicitBlock, np.ndarray, np.ndarray]:
        """The block with zeros in the place of NaN, the (c,) weight of those, and their (c,) numbers."""
        ...

    def wrong(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of the entries that are not finite."""
        ...

    def slabs(self) -> Iterator[np.ndarray]:
        """Its rows as dense arrays, a few at a time."""
        ...

    def toarray(self) -> np.ndarray:
        """All of it as a dense array."""
        ...


def stretches(length: int, across: int) -> Iterator[tuple[int, int]]:
    """Parts of so many rows that are few enough to be held as dense ones, `across` numbers wide."""
    step = max(1, _PANEL_BYTES // (8 * max(across, 1)))
    for start in range(0, length, step):
        yield start, min(start + step, length)
