"""`Dasked`: a Dask array seen as a matrix; a block is made of whole chunks that the array's own tasks compute."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import scipy.sparse

from pipeline.kernels.sparse import SparseBlock
from pipeline.sources.source import COLUMNS, ROWS, Hollow, Range, Source, rectangle_nbytes
from pipeline.sources.sparse import SparseHollow, gathered
from pipeline.sources.window import Window

__all__ = ["Dasked", "is_dasked"]


def is_dasked(x: Any) -> bool:
    """Whether x is a Dask array: who has none does not wait for the import of `dask.array`.

    >>> import dask.array as da
    >>> is_dasked(da.zeros(3)), is_dasked([0, 0, 0])
    (True, False)
    """
    known = sys.modules.get("dask.array")
    return known is not None and isinstance(x, known.Array)


@dataclass(frozen=True)
class Dasked:
    """Entries of a Dask array of known shape; `axes` as in `Grid`."""

    array: Any
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    held = False

    @property
    def layout(self) -> str:
        return (
            f"dask {' x '.join(map(str, self.array.shape))} in chunks of {' x '.join(map(str, self.array.chunksize))}"
        )

    @property
    def implicit(self) -> bool:
        return _is_sparse(self.array._meta) and self.array.ndim == 2

    @property
    def density(self) -> float:
        return 0.05  # nobody knows before it is computed

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        return cuts

    def block(self, rows: Range, cols: Range) -> SparseBlock:
        a, b = (slice(*part) for part in (rows, cols))
        part = gathered(self.array[self._placed(a, b)].compute(scheduler="synchronous"))
        return SparseBlock(part if self.axes[ROWS] == (0,) else part.T)

    @property
    def collections(self) -> tuple[Any, ...]:
        return (self.array,)

    def rows(self, start: int, stop: int) -> Source:
        """The source of the rows [start, stop): sliced by Dask, so that its chunks are known."""
        if len(self.axes[ROWS]) > 1:
            return Window(self, start, stop)
        where = [slice(None)] * self.array.ndim
        where[self.axes[ROWS][0]] = slice(start, stop)
        return replace(self, array=self.array[tuple(where)])

    def even(self, height: int) -> Dasked:
        """The same with chunks that end at every multiple of `height` along its first sample dim."""
        axis = self.axes[ROWS][0]
        if np.isin(np.arange(height, self.array.shape[axis], height), np.cumsum(self.array.chunks[axis])).all():
            return self
        return replace(self, array=self.array.rechunk({axis: height}))

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = (prod(self.array.shape[a] for a in axes) for axes in self.axes)
        return rows, cols

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.array.dtype)

    @cached_property
    def keys(self) -> np.ndarray:
        """The array's keys, as an object array of the shape of its blocks."""
        keys = np.empty(self.array.numblocks, dtype=object)
        for at in np.ndindex(*self.array.numblocks):
            keys[at] = (self.array.name, *at)
        return keys

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        if cols == (0, self.shape[1]):
            side, (start, stop) = ROWS, rows
        elif rows == (0, self.shape[0]):
            side, (start, stop) = COLUMNS, cols
        else:
            return self.read(rows, (0, self.shape[1]), None)[:, cols[0] : cols[1]]
        axis, inner = self.axes[side][0], self._inner(side)
        slab = [slice(None)] * self.array.ndim
        slab[axis] = slice(start // inner, -(-stop // inner))
        block = _flat(_dense(self.array[tuple(slab)].compute()), self.axes)
        at = start - start // inner * inner
        part = block[at : at + stop - start] if side == ROWS else block[:, at : at + stop - start]
        if out is None:
            return part
        out[...] = part
        return out

    def cuts(self, side: int, longest: int) -> np.ndarray:
        # The chunks are in memory as they are: as many as fit are taken together, none is cut.
        edges = self._edges[side].tolist()
        cuts = [0]
        for last, edge in pairwise(edges):
            if edge - cuts[-1] > longest and last > cuts[-1]:
                cuts.append(last)
        return np.array([*cuts, edges[-1]])

    def unit(self, side: int) -> int:
        return 1  # chunks are taken whole however long a block was to be

    def touched(self, side: int, cuts: np.ndarray) -> int:
        edges = self._edges[side]
        first, last = np.searchsorted(edges, cuts[0], "right") - 1, np.searchsorted(edges, cuts[-1])
        return int(edges[last] - edges[first]) * self.shape[1 - side] * self.dtype.itemsize

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return 4 * rectangle_nbytes(self, side, cuts)  # chunks, also of the next block, and the arrays they come to

    def inputs(self, side: int, start: int, stop: int) -> Any:
        first, last = np.searchsorted(self._edges[side], [start, stop])
        return np.take(self.keys, range(first, last), axis=self.axes[side][0]).tolist()

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self.hollow().given(side, start, inputs)

    def hollow(self) -> Source:
        if self.implicit:
            return SparseHollow(self.shape, self.dtype, turned=self.axes[ROWS] != (0,))
        return Hollow(self.shape, self.dtype, partial(_flat, axes=self.axes))

    def _placed(self, rows: slice, cols: slice) -> tuple[slice, ...]:
        """Where rows and columns of a matrix lie in the array."""
        return (rows, cols) if self.axes[ROWS] == (0,) else (cols, rows)

    def _inner(self, side: int) -> int:
        return max(1, prod(self.array.shape[a] for a in self.axes[side][1:]))

    @cached_property
    def _edges(self) -> tuple[np.ndarray, ...]:
        """Where chunks begin and end along rows and columns of the matrix."""
        chunks = (self.array.chunks[axes[0]] for axes in self.axes)
        return tuple(np.cumsum([0, *c]) * self._inner(side) for side, c in enumerate(chunks))


def _flat(blocks: Any, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    """The matrix of a nested list of blocks that lie side by side."""
    from dask.array.core import concatenate3

    block = concatenate3(_dense(blocks)) if isinstance(blocks, list) else blocks
    block = np.transpose(block, axes[ROWS] + axes[COLUMNS])
    return block.reshape(prod(block.shape[: len(axes[ROWS])]), -1)


def _is_sparse(block: Any) -> bool:
    return scipy.sparse.issparse(block) or hasattr(block, "to_scipy_sparse")


def _dense(block: Any) -> Any:
    """A nested list of blocks, sparse ones made dense."""
    if isinstance(block, list):
        return [_dense(part) for part in block]
    if hasattr(block, "toarray"):
        return block.toarray()
    return block.todense() if hasattr(block, "todense") else np.asarray(block)
