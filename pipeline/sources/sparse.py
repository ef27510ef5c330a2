"""`Sparse`: a scipy.sparse matrix in memory; its blocks stay sparse, and cost what is stored of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from pipeline.kernels.sparse import SparseBlock, as_compressed
from pipeline.sources.source import COLUMNS, ROWS, Range, Source, even_cuts, joined_cuts

__all__ = ["Compressed", "Sparse", "SparseHollow", "apart", "gathered", "stretch"]

_THIN = 64 * 8  # bytes a row that products with a thin matrix take beside the entries


class Compressed:
    """What sparse matrices share, in memory or stored: a block is a part of them, and no chunk is cut by one."""

    shape: tuple[int, int]

    def _part(self, rows: Range, cols: Range) -> Any:
        """A rectangle, in CSR or CSC form."""
        raise NotImplementedError

    def block(self, rows: Range, cols: Range) -> SparseBlock:
        return SparseBlock(self._part(rows, cols))

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        part = self._part(rows, cols)
        return part.toarray() if out is None else part.astype(out.dtype, copy=False).toarray(out=out)

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return even_cuts(self.shape[side], longest)

    def unit(self, side: int) -> int:
        return 1

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return 0


class Sparse(Compressed):
    """Entries of a scipy.sparse matrix or array of any format, kept in CSR or CSC form.

    Parameters
    ----------
    array : scipy.sparse matrix or array
        Entries that are stored twice are added up.
    """

    held = True
    implicit = True
    collections = ()

    def __init__(self, array: Any) -> None:
        self.array = as_compressed(array)
        self.shape: tuple[int, int] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    @property
    def layout(self) -> str:
        return f"sparse {self.shape[0]} x {self.shape[1]}, {self.array.nnz} stored entries"

    @property
    def density(self) -> float:
        return self.array.nnz / max(self.shape[0] * self.shape[1], 1)

    @cached_property
    def by_rows(self) -> Any:
        """The matrix by rows; made when it is first walked that way, where it is not so yet."""
        return self.array if self.array.format == "csr" else self.array.tocsr()

    @cached_property
    def by_columns(self) -> Any:
        """The matrix by columns, likewise."""
        return self.array if self.array.format == "csc" else self.array.tocsc()

    @property
    def T(self) -> Sparse:
        """The transpose; nothing is copied."""
        return Sparse(self.array.T)

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        return joined_cuts(cuts, apart(self._nbytes, self.shape[side], nbytes))

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return self._nbytes

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return stretch(self.by_rows if side == ROWS else self.by_columns, start, stop)

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self.hollow().given(side, start, inputs)

    def hollow(self) -> SparseHollow:
        return SparseHollow(self.shape, self.dtype)

    @property
    def _nbytes(self) -> int:
        return int(self.array.data.nbytes + self.array.indices.nbytes + self.array.indptr.nbytes)

    def _part(self, rows: Range, cols: Range) -> Any:
        if cols == (0, self.shape[1]):
            return stretch(self.by_rows, *rows)
        part = stretch(self.by_columns, *cols)
        return part if rows == (0, self.shape[0]) else part[rows[0] : rows[1]]


class SparseHollow:
    """A sparse source whose entries come with the task: blocks that `gathered` takes, transposed where `turned`."""

    held = True
    implicit = True
    collections = ()
    layout = "sparse, in memory"
    density = 1.0

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], turned: bool = False) -> None:
        self.shape, self.dtype, self.turned = shape, dtype, turned

    def given(self, side: int, start: int, inputs: Any) -> Source:
        part = gathered(inputs)
        return _Stretch(part.T if self.turned else part, side, start, self.shape, self.dtype)

    def hollow(self) -> SparseHollow:
        return self

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError("a hollow source is given its entries first")

    def block(self, rows: Range, cols: Range) -> SparseBlock:
        raise NotImplementedError("a hollow source is given its entries first")

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return even_cuts(self.shape[side], longest)

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        return cuts

    def unit(self, side: int) -> int:
        return 1

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return 0

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return 0

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return None


class _Stretch(SparseHollow):
    """A stretch of a matrix that was sent to a task."""

    def __init__(self, array: Any, side: int, start: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        super().__init__(shape, dtype)
        self.part, self.side, self.start = Sparse(array), side, start

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        return self.part.read(*self._within(rows, cols), out)

    def block(self, rows: Range, cols: Range) -> SparseBlock:
        return self.part.block(*self._within(rows, cols))

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        return self.part.together(side, cuts, nbytes)

    def _within(self, rows: Range, cols: Range) -> tuple[Range, Range]:
        a, b = (self.start if side == self.side else 0 for side in (ROWS, COLUMNS))
        return (rows[0] - a, rows[1] - a), (cols[0] - b, cols[1] - b)


def apart(total: int, length: int, nbytes: int) -> float:
    """How many rows (columns) of `length` with `total` bytes in all make a block of so many bytes."""
    return nbytes / (total / max(length, 1) + _THIN)


def stretch(array: Any, start: int, stop: int) -> Any:
    """The rows [start, stop) of a CSR array, or such columns of a CSC array; nothing is copied but the pointers."""
    first, last = array.indptr[start], array.indptr[stop]
    across = array.shape[1] if array.format == "csr" else array.shape[0]
    shape = (stop - start, across) if array.format == "csr" else (across, stop - start)
    part = type(array)(shape, dtype=array.dtype)
    part.data, part.indices = array.data[first:last], array.indices[first:last]
    part.indptr = array.indptr[start : stop + 1] - first
    part.has_canonical_format = True
    return part


def gathered(blocks: Any) -> Any:
    """One sparse array of one block, or of a nested list of blocks that lie side by side."""
    if not isinstance(blocks, list):
        return as_compressed(blocks)
    from scipy.sparse import block_array

    rows = blocks if isinstance(blocks[0], list) else [[b] for b in blocks]
    return as_compressed(block_array([[as_compressed(b) for b in row] for row in rows], format="csr"))
