"""Blocks of sparse matrices by their products: centred and scaled without being made dense."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.errors import NonfiniteError
from pipeline.kernels.blocks import doubled, magnitudes
from pipeline.kernels.implicit import stretches

__all__ = ["SparseBlock", "as_compressed", "as_scipy"]

_LINE = 8  # columns of a thin matrix that are multiplied at a time
_CROWDED = 0.06  # share of entries stored from which on dense products are faster than sparse ones


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
            for (start, stop), slab in zip(stretches(m, c), self.slabs(), strict=True):
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
        for start, stop in stretches(*self.shape):
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


def _small(indices: np.ndarray, indptr: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in 32 bits where they fit: products read as many bytes of indices as of entries."""
    fits = max(longest, int(indptr[-1])) < 2**31
    kind = np.dtype(np.int32) if fits else indptr.dtype
    return indices.astype(kind, copy=False), indptr.astype(kind, copy=False)


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
    for start, stop in stretches(c, 2 * c):
        product = (left[start:stop] @ right).tocoo()
        out[start + product.row, product.col] += product.data
