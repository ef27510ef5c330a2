"""`Sparse`: a scipy.sparse matrix in memory; each block is made dense when it is read, the matrix never."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from pipeline.sources.source import ROWS, Hollow, Range, Source, even_cuts

__all__ = ["Sparse"]


class Sparse:
    """Entries of a scipy.sparse matrix or array of any format."""

    held = True
    collections = ()

    def __init__(self, array: Any) -> None:
        self.csr = array.tocsr()
        self.shape: tuple[int, int] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    @property
    def layout(self) -> str:
        return f"sparse {self.shape[0]} x {self.shape[1]}, {self.csr.nnz} stored entries"

    @cached_property
    def columns(self) -> Any:
        """The same matrix by columns, made when it is first walked that way."""
        return self.csr.tocsc()

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        if cols == (0, self.shape[1]):
            return self.csr[rows[0] : rows[1]].astype(self._target(out), copy=False).toarray(out=out)
        part = self.columns[:, cols[0] : cols[1]][rows[0] : rows[1]].astype(self._target(out), copy=False)
        return part.toarray(out=out) if out is not None else part.toarray()

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return even_cuts(self.shape[side], longest)

    def unit(self, side: int) -> int:
        return 1

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return int(self.csr.data.nbytes + self.csr.indices.nbytes + self.csr.indptr.nbytes)

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return self.csr[start:stop] if side == ROWS else self.columns[:, start:stop]

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self.hollow().given(side, start, inputs)

    def hollow(self) -> Source:
        return Hollow(self.shape, self.dtype, _toarray)

    def _target(self, out: np.ndarray | None) -> np.dtype[Any]:
        return self.dtype if out is None else out.dtype


def _toarray(part: Any) -> np.ndarray:
    return part.toarray()
