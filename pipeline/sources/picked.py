"""`Picked`: some rows and columns of a sparse source; picked out of each block, and the data never copied whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pipeline.kernels.sparse import SparseBlock, as_compressed
from pipeline.sources.source import ImplicitSource, Range, Source, even_cuts, joined_cuts
from pipeline.sources.sparse import apart

__all__ = ["Picked"]


@dataclass(frozen=True)
class Picked:
    """Rows and columns of `base` at `index`: a pair of slices without a step, or positions."""

    base: ImplicitSource
    index: tuple[slice | np.ndarray, slice | np.ndarray]
    implicit = True

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = (i.stop - i.start if isinstance(i, slice) else len(i) for i in self.index)
        return rows, cols

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def held(self) -> bool:
        return self.base.held

    @property
    def collections(self) -> tuple[Any, ...]:
        return self.base.collections

    @property
    def density(self) -> float:
        return self.base.density

    @property
    def layout(self) -> str:
        return f"{self.shape[0]} rows and {self.shape[1]} columns of {self.base.layout}"

    def block(self, rows: Range, cols: Range) -> SparseBlock:
        spans = [self._span(side, part) for side, part in enumerate((rows, cols))]
        array = cast(SparseBlock, self.base.block(*spans)).array
        for side, (part, span) in enumerate(zip((rows, cols), spans, strict=True)):
            index = self.index[side]
            where: Any = slice(*part)
            where = np.arange(index.start, index.stop)[where] if isinstance(index, slice) else index[where]
            if len(where) != span[1] - span[0] or (np.diff(where) != 1).any():
                array = array[where - span[0]] if side == 0 else array[:, where - span[0]]
        return SparseBlock(as_compressed(array))

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        part = self.block(rows, cols).array
        return part.toarray().astype(self.dtype, copy=False) if out is None else part.toarray(out=out)

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return even_cuts(self.shape[side], longest)

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        stored = 2.0 * self.density * self.dtype.itemsize * self.shape[0] * self.shape[1]
        return joined_cuts(cuts, apart(int(stored), self.shape[side], nbytes))

    def unit(self, side: int) -> int:
        return 1

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return self.base.touched(side, np.array([0, self.base.shape[side]]))

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return self.base.beside(side, np.array([0, self.base.shape[side]]), dtype)

    def inputs(self, side: int, start: int, stop: int) -> Any:
        span = self._span(side, (start, stop))
        inputs = self.base.inputs(side, *span)
        return None if inputs is None else [span[0], inputs]

    def given(self, side: int, start: int, inputs: Any) -> Source:
        first, inner = inputs
        return replace(self, base=cast(ImplicitSource, self.base.given(side, first, inner)))

    def hollow(self) -> Source:
        return replace(self, base=cast(ImplicitSource, self.base.hollow()))

    def _span(self, side: int, part: Range) -> Range:
        """The range of the base in which a range of this side lies."""
        if part == (0, self.shape[side]):
            return 0, self.base.shape[side]
        index = self.index[side]
        if isinstance(index, slice):
            return index.start + part[0], index.start + part[1]
        where = index[part[0] : part[1]]
        return (int(where.min()), int(where.max()) + 1) if len(where) else (0, 0)
