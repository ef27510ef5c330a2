"""Blocks that are never made dense: sparse ones, and operators of which only products are known.

Both answer the same few questions, from which every fold follows: X R, X^H R, column sums and squares, and Gram
matrices. They compute in double precision, so that what centring takes out afterwards leaves digits enough; products
of a block in single precision are for those who measure what that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from pipeline.errors import InputError, NonfiniteError
from pipeline.kernels.blocks import doubled, magnitudes

__all__ = ["ImplicitBlock", "OperatorBlock", "SparseBlock", "as_compressed", "as_scipy"]

_PANEL_BYTES = 32 << 20  # of a dense panel or a sparse product at a time
_LINE = 8  # columns of a thin matrix that are multiplied at a time
_CROWDED = 0.06  # share of entries stored from which on dense products are faster than sparse ones


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


def as_scipy(block: Any) -> Any:
    """An array of pydata's `sparse` as one of scipy's, which knows neither float16 nor other machines' byte order."""
    dtype = np.dtype(np.float32) if block.dtype == np.float16 else block.dtype.newbyteorder("=")
    return block.astype(dtype, copy=False).to_scipy_sparse()


def as_compressed(block: Any) -> Any:
    """Anything sparse (scipy, `sparse` of pydata) or dense as a CSR or CSC array in canonical form.

    >>> as_compressed(sp.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 2))).toarray().tolist()
    [[0.0, 3.0]]
    """
    if hasattr(block, "to_scipy_sparse"):
        block = as_scipy(block)
    if not hasattr(block, "format"):
        return sp.csr_array(np.atleast_2d(np.asarray(block)))
    compressed = block if block.format in ("csr", "csc") else block.tocsr()
    kind = sp.csr_array if compressed.format == "csr" else sp.csc_array
    array = kind((compressed.data, compressed.indices, compressed.indptr), shape=compressed.shape)
    if not array.has_canonical_format:  # entries that are stored twice are to be squared once
        array = array.copy()
        array.sum_duplicates()
    return array


class SparseBlock:
    """A block of scipy.sparse in CSR or CSC form, canonical; in double precision if no dtype is given."""

    def __init__(self, array: Any, dtype: np.dtype[Any] | None = None) -> None:
        wide = doubled(array.dtype) if dtype is None else dtype
        parts = array.data.astype(wide, copy=False), *_small(array.indices, array.indptr, max(array.shape))
        self.array = type(array)(parts, shape=array.shape)
        self.shape: tuple[int, int] = array.shape
        self.dtype: np.dtype[Any] = wide

    def __sizeof__(self) -> int:
        return sum(part.nbytes for part in (self.array.data, self.array.indices, self.array.indptr))

    def times(self, thin: np.ndarray) -> np.ndarray:
        return _product(self.array, thin)

    def adjoint(self, thin: np.ndarray) -> np.ndarray:
        if self.dtype.kind != "c":
            return _product(self.array.T, thin)
        return _product(self.array.T, thin.conj()).conj()

    def sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        return self._sums if weights is None else self.array.T @ weights

    @cached_property  # a block that is kept is asked again in every pass
    def _sums(self) -> np.ndarray:
        return self.array.T @ np.ones(self.shape[0])

    def squares(self, weights: np.ndarray | None = None, about: np.ndarray | None = None) -> np.ndarray:
        w = np.ones(self.shape[0]) if weights is None else weights
        if about is None:
            return self._like(magnitudes(self.array.data)).T @ w
        # Stored entries about the mean, and as many times the mean as there are zeros: nothing cancels.
        squares = self._like(magnitudes(self.array.data - about[self._columns()])).T @ w
        stored = self._like(np.ones(self.array.data.size)).T @ w
        return squares + np.maximum(w.sum() - stored, 0.0) * magnitudes(about)

    def add_gram(self, out: np.ndarray, weights: np.ndarray | None, about: np.ndarray) -> None:
        m, c = self.shape
        roots = np.ones(m) if weights is None else np.sqrt(weights)
        if self.array.nnz > _CROWDED * m * c:  # so many entries that slabs of rows are multiplied faster as dense ones
            for (start, stop), slab in zip(_stretches(m, c), self.slabs(), strict=True):
                slab -= about
                slab *= roots[start:stop, None]
                out += slab.conj().T @ slab
            return
        _add_gram(out, self.array if weights is None else self._like(self.array.data * roots[self._rows()]))
        sums = self.sums(weights)
        out -= np.outer(sums.conj(), about)
        out -= np.outer(about.conj(), sums - float(roots @ roots) * about)

    def add_dual_gram(self, out: np.ndarray, weights: np.ndarray, about: np.ndarray) -> None:
        _add_gram(out, self._like(self.array.data * np.sqrt(weights)[self._columns()]).conj().T)
        middle = self.times((weights * about.conj())[:, None])
        out -= middle
        out -= middle.conj().T - float(weights @ magnitudes(about))

    def in_single(self) -> SparseBlock:
        return self._single

    @cached_property  # a block that is kept is multiplied in every pass
    def _single(self) -> SparseBlock:
        dtype = np.dtype(np.complex64 if self.dtype.kind == "c" else np.float32)
        return SparseBlock(self._like(self.array.data.astype(dtype)), dtype)

    def shifted(self) -> tuple[SparseBlock, np.ndarray]:
        return self._shifted

    @cached_property
    def _shifted(self) -> tuple[SparseBlock, np.ndarray]:
        columns = self._columns()
        full = np.bincount(columns, minlength=self.shape[1]) == max(self.shape[0], 1)
        pilot = np.where(full, self.sums() / max(self.shape[0], 1), 0.0)
        return (SparseBlock(self._like(self.array.data - pilot[columns])) if full.any() else self), pilot

    def absent(self) -> np.ndarray:
        return self._absent

    @cached_property
    def _absent(self) -> np.ndarray:
        wrong = ~np.isfinite(self.array.data)
        none = np.zeros(self.shape[1], bool)
        if not wrong.any():
            return none
        where = self._columns()
        absent = np.bincount(where[np.isnan(self.array.data)], minlength=self.shape[1]) == self.shape[0]
        if not absent[where[wrong]].all():
            raise NonfiniteError("NaN or Inf among the entries")
        return absent

    def without(self, absent: np.ndarray) -> SparseBlock:
        if not absent.any():
            return self
        return SparseBlock(self._like(np.where(absent[self._columns()], 0, self.array.data)))

    def observed(self, weights: np.ndarray | None = None) -> tuple[SparseBlock, np.ndarray, np.ndarray]:
        missing = np.isnan(self.array.data)
        if not missing.any():
            return self, np.zeros(self.shape[1]), np.zeros(self.shape[1], np.int64)
        number = np.bincount(self._columns()[missing], minlength=self.shape[1])
        unseen = 1.0 * number if weights is None else self._like(1.0 * missing).T @ weights
        return SparseBlock(self._like(np.where(missing, 0, self.array.data))), unseen, number

    def filled(self, fill: np.ndarray) -> SparseBlock:
        """The block with the entries of `fill` (c,) in the place of NaN."""
        missing = np.isnan(self.array.data)
        if not missing.any():
            return self
        return SparseBlock(self._like(np.where(missing, fill[self._columns()], self.array.data)))

    def marked(self, code: float) -> SparseBlock:
        """The block with NaN in the place of stored entries that equal a code."""
        found = self.array.data == code
        return SparseBlock(self._like(np.where(found, np.nan, self.array.data))) if found.any() else self

    def wrong(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of the entries that are not finite."""
        at = np.flatnonzero(~np.isfinite(self.array.data))
        return self._rows()[at], self._columns()[at], self.array.data[at]

    def slabs(self) -> Iterator[np.ndarray]:
        rows = self.array.tocsr()
        for start, stop in _stretches(*self.shape):
            yield rows[start:stop].toarray()

    def toarray(self) -> np.ndarray:
        return self.array.toarray()

    def _like(self, data: np.ndarray) -> Any:
        """The same pattern with other entries."""
        return type(self.array)((data, self.array.indices, self.array.indptr), shape=self.shape)

    def _columns(self) -> np.ndarray:
        """Column of each stored entry."""
        return self.array.indices if self.array.format == "csr" else self._major()

    def _rows(self) -> np.ndarray:
        return self._major() if self.array.format == "csr" else self.array.indices

    def _major(self) -> np.ndarray:
        return np.repeat(np.arange(self.array.indptr.size - 1), np.diff(self.array.indptr))


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
        for start, stop in _stretches(*self.shape):
            yield self.adjoint(_units(self.shape[0], start, stop)).conj().T

    def toarray(self) -> np.ndarray:
        return np.concatenate([panel for *_, panel in self._panels()], axis=1)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """X[:, start:stop] (m, stop - start), from products with columns of the identity."""
        return self.times(_units(self.shape[1], start, stop))

    def _panels(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Its columns, some at a time: in bounded memory."""
        for start, stop in _stretches(self.shape[1], max(self.shape)):
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


def _small(indices: np.ndarray, indptr: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in 32 bits where they fit: products read as many bytes of indices as of entries."""
    fits = max(longest, int(indptr[-1])) < 2**31
    kind = np.dtype(np.int32) if fits else indptr.dtype
    return indices.astype(kind, copy=False), indptr.astype(kind, copy=False)


def _units(length: int, start: int, stop: int) -> np.ndarray:
    """Columns [start, stop) of an identity matrix."""
    units = np.zeros((length, stop - start))
    units[np.arange(start, stop), np.arange(stop - start)] = 1.0
    return units


def _panel(across: int) -> int:
    """How many rows of so many numbers are held at a time."""
    return max(1, _PANEL_BYTES // (8 * max(across, 1)))


def _stretches(length: int, across: int) -> Iterator[tuple[int, int]]:
    step = _panel(across)
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _product(a: Any, thin: np.ndarray) -> np.ndarray:
    """a @ thin, some columns at a time: what is gathered for an entry is then a line of the cache."""
    width = thin.shape[1] if thin.ndim == 2 else 1
    if width <= 2 * _LINE:
        return a @ thin
    product = np.empty((a.shape[0], width), np.result_type(a.dtype, thin.dtype))
    for start in range(0, width, _LINE):
        product[:, start : start + _LINE] = a @ np.ascontiguousarray(thin[:, start : start + _LINE])
    return product


def _add_gram(out: np.ndarray, a: Any) -> None:
    """out += a^H a for a CSR or CSC array, in panels whose product stays small."""
    c = a.shape[1]
    left, right = a.conj().T.tocsr(), a.tocsr()
    for start, stop in _stretches(c, 2 * c):
        product = (left[start:stop] @ right).tocoo()
        out[start + product.row, product.col] += product.data
