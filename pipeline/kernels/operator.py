"""Blocks of which only products with thin matrices are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import InputError, NonfiniteError
from pipeline.kernels.blocks import doubled, magnitudes
from pipeline.kernels.implicit import stretches

__all__ = ["OperatorBlock"]


class OperatorBlock:
    """A block (m, c) of which only X R and X^H R can be asked."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: Any,
        matmat: Callable[[np.ndarray], np.ndarray],
        rmatmat: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.shape = shape
        self.dtype = doubled(dtype)
        self._matmat, self._rmatmat = matmat, rmatmat

    def times(self, thin: np.ndarray) -> np.ndarray:
        return self._called("matmat", self._matmat, thin, self.shape[0])

    def adjoint(self, thin: np.ndarray) -> np.ndarray:
        return self._called("rmatmat", self._rmatmat, thin, self.shape[1])

    def sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        return self.adjoint(np.ones(self.shape[0]) if weights is None else weights).conj()

    def squares(self, weights: np.ndarray | None = None, about: np.ndarray | None = None) -> np.ndarray:
        squares = np.empty(self.shape[1])
        for a, b, panel in self._panels():
            panel = panel if about is None else panel - about[a:b]
            squares[a:b] = magnitudes(panel).T @ (np.ones(self.shape[0]) if weights is None else weights)
        return squares

    def add_gram(self, out: np.ndarray, weights: np.ndarray | None, about: np.ndarray) -> None:
        for a, b, panel in self._panels():
            panel = panel - about[a:b]
            panel = panel if weights is None else panel * weights[:, None]
            out[:, a:b] += self.adjoint(panel) - np.outer(about.conj(), panel.sum(axis=0))

    def add_dual_gram(self, out: np.ndarray, weights: np.ndarray, about: np.ndarray) -> None:
        for a, b, panel in self._panels():
            panel = panel - about[a:b]
            out += (panel * weights[a:b]) @ panel.conj().T

    def in_single(self) -> OperatorBlock:
        return self

    def shifted(self) -> tuple[OperatorBlock, np.ndarray]:
        return self, np.zeros(self.shape[1])

    def absent(self) -> np.ndarray:
        if not np.isfinite(self.sums()).all():
            raise NonfiniteError("NaN or Inf among the entries")
        return np.zeros(self.shape[1], bool)

    def without(self, absent: np.ndarray) -> OperatorBlock:
        return self

    def observed(self, weights: np.ndarray | None = None) -> tuple[OperatorBlock, np.ndarray, np.ndarray]:
        return self, np.zeros(self.shape[1]), np.zeros(self.shape[1], np.int64)

    def wrong(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, columns, values, start = [], [], [], 0
        for slab in self.slabs():
            at = np.nonzero(~np.isfinite(slab))
            rows.append(start + at[0])
            columns.append(at[1])
            values.append(slab[at])
            start += len(slab)
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)

    def slabs(self) -> Iterator[np.ndarray]:
        for start, stop in stretches(*self.shape):
            yield self.adjoint(_units(self.shape[0], start, stop)).conj().T

    def toarray(self) -> np.ndarray:
        return np.concatenate([panel for *_, panel in self._panels()], axis=1)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """X[:, start:stop] (m, stop - start), from products with columns of the identity."""
        return self.times(_units(self.shape[1], start, stop))

    def _panels(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Its columns, some at a time: in bounded memory."""
        for start, stop in stretches(self.shape[1], max(self.shape)):
            yield start, stop, self.columns(start, stop)

    def _called(self, name: str, product: Any, thin: np.ndarray, length: int) -> np.ndarray:
        columns = thin if thin.ndim == 2 else thin[:, None]
        result = np.asarray(product(columns))
        if result.shape != (length, columns.shape[1]):
            raise InputError(
                f"{name} of the operator gives the shape {result.shape} for an input of {columns.shape}: "
                f"({length}, {columns.shape[1]}) is needed"
            )
        if result.dtype.kind == "c" and self.dtype.kind != "c":
            raise InputError(f"{name} of the operator gives {result.dtype}: give the operator a complex dtype")
        result = result.astype(self.dtype, copy=False)
        return result if thin.ndim == 2 else result[:, 0]


def _units(length: int, start: int, stop: int) -> np.ndarray:
    """Columns [start, stop) of an identity matrix."""
    units = np.zeros((length, stop - start))
    units[np.arange(start, stop), np.arange(stop - start)] = 1.0
    return units
