"""`Grid`: an n-dimensional array (NumPy, Zarr, lazily indexed) as a matrix: some dims are samples, others features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import prod
from typing import Any, ClassVar

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from pipeline.sources.plain import PlainChunks
from pipeline.sources.source import COLUMNS, ROWS, Hollow, Range, Source, covered, even_cuts, rectangle_nbytes

__all__ = ["Decoded", "Grid", "boxes"]

Index = slice | np.ndarray


def boxes(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """Hyperrectangles that cover the flat C-order range [start, stop) of a grid, in order.

    >>> [[(s.start, s.stop) for s in box] for box in boxes((4, 3), 2, 9)]
    [[(0, 1), (2, 3)], [(1, 3), (0, 3)]]
    """
    if stop <= start:
        return
    if len(sizes) == 1:
        yield (slice(start, stop),)
        return
    inner = prod(sizes[1:])
    head = min(stop, -(-start // inner) * inner)
    tail = max(head, stop // inner * inner)
    if start < head:
        i = start // inner
        for box in boxes(sizes[1:], start - i * inner, head - i * inner):
            yield (slice(i, i + 1), *box)
    if head < tail:
        yield (slice(head // inner, tail // inner), *(slice(0, n) for n in sizes[1:]))
    if tail < stop:
        i = tail // inner
        for box in boxes(sizes[1:], tail - i * inner, stop - i * inner):
            yield (slice(i, i + 1), *box)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A stored array as xarray decodes it: packed numbers, fill values, times.

    Parameters
    ----------
    variable : xarray Variable
        What decodes.
    stored : zarr Array
        What is decoded.
    """

    variable: Any
    stored: zarr.Array[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.variable.dtype)

    def __getitem__(self, where: Any) -> Any:
        return self.variable[where]


@dataclass(frozen=True)
class Grid:
    """Entries of an n-dimensional array.

    Parameters
    ----------
    array : array
        Anything with `shape`, `dtype` and orthogonal indexing by slices and integer arrays.
    axes : pair of tuples of int
        The axes that are samples and those that are features, each in the order of the flat index.
    index : tuple of slices or integer arrays
        What is selected along each axis, in the array's own order.
    chunks : tuple of int
        Length of the stored chunks along each axis.
    """

    array: Any
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    index: tuple[Index, ...]
    chunks: tuple[int, ...]
    implicit: ClassVar[bool] = False

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Selected lengths of the sample axes and of the feature axes."""
        rows, cols = (tuple(_length(self.index[a]) for a in axes) for axes in self.axes)
        return rows, cols

    @property
    def shape(self) -> tuple[int, int]:
        return prod(self.sizes[ROWS]), prod(self.sizes[COLUMNS])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.array.dtype)

    @property
    def held(self) -> bool:
        return isinstance(self.array, np.ndarray)

    @property
    def collections(self) -> tuple[Any, ...]:
        return ()

    @property
    def layout(self) -> str:
        kind = "memory" if self.held else type(self.array).__name__
        kind = "zarr" if isinstance(self.array, zarr.Array | Decoded) else kind
        cut = "" if self.held else " in chunks of " + " x ".join(map(str, self.chunks))
        by = ", decompressed in place" if self._plain else ", decoded by zarrs" if self._by_zarrs else ""
        return f"{kind} {' x '.join(map(str, self.array.shape))}{cut}{by}"

    @cached_property
    def _plain(self) -> PlainChunks | None:
        """The files of its chunks, where they can be decompressed into what is read."""
        return PlainChunks.of(self.array) if self._straight(self.dtype) else None

    @property
    def _by_zarrs(self) -> bool:
        """Whether chunks are decoded where they are to be."""
        pipeline = getattr(getattr(self.array, "async_array", None), "codec_pipeline", None)
        return type(pipeline).__name__ == "ZarrsCodecPipeline"

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        shape = (rows[1] - rows[0], cols[1] - cols[0])
        pieces = list(product(boxes(self.sizes[ROWS], *rows), boxes(self.sizes[COLUMNS], *cols)))
        if len(pieces) == 1 and (out is None or self._lands_in(out)):
            return self._box(*pieces[0], shape=shape, out=out)
        if out is None:
            out = np.empty(shape, self.dtype)
        r = c = 0
        for row_box, col_box in pieces:
            height, width = (prod(s.stop - s.start for s in box) for box in (row_box, col_box))
            out[r : r + height, c : c + width] = self._box(row_box, col_box, shape=(height, width))
            c += width
            if c == shape[1]:
                r, c = r + height, 0
        return out

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return self._cuts(self.axes[side], self.sizes[side], longest)

    def unit(self, side: int) -> int:
        if self.held:
            return 1
        axis, *inner = self.axes[side]
        return min(self.chunks[axis], max(self.sizes[side][0], 1)) * prod(self.sizes[side][1 : len(inner) + 1])

    def touched(self, side: int, cuts: np.ndarray) -> int:
        across = prod(
            self._covered(a, slice(0, n)) for a, n in zip(self.axes[1 - side], self.sizes[1 - side], strict=True)
        )
        total, axes = 0, self.axes[side]
        if len(axes) == 1 and isinstance(index := self.index[axes[0]], slice):  # all at once: there may be many
            at = index.start + cuts
            total = int(covered(at[:-1], at[1:], self.chunks[axes[0]], self.array.shape[axes[0]]).sum())
            return total * across * self.dtype.itemsize
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            for box in boxes(self.sizes[side], start, stop):
                total += prod(self._covered(a, s) for a, s in zip(self.axes[side], box, strict=True))
        return total * across * self.dtype.itemsize

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        whole = rectangle_nbytes(self, side, cuts)
        if self.held:
            return 0 if all(isinstance(i, slice) for i in self.index) else whole
        touched = self.touched(side, cuts)
        if self._plain and dtype == self.dtype and touched == prod(self.shape) * dtype.itemsize:
            ragged = any(n % chunk for n, chunk in zip(self.array.shape, self.chunks, strict=True))
            return (1 + ragged) * prod(self.chunks) * dtype.itemsize  # as it is stored; the last one, which is cut, too
        at_once = int(zarr.config.get("async.concurrency", 10)) * prod(self.chunks) * self.dtype.itemsize
        chunks = min(at_once, touched // (len(cuts) - 1))
        # As they are stored and, where they are decoded elsewhere than they are to be, or in part of no use, decoded.
        chunks *= 1 if self._by_zarrs and touched <= prod(self.shape) * self.dtype.itemsize else 2
        if isinstance(self.array, Decoded):  # and what becomes of them when they are scaled and masked
            return chunks + 3 * whole
        return chunks + (0 if self._straight(dtype) else whole)

    def inputs(self, side: int, start: int, stop: int) -> Any:
        if not self.held:
            return None
        rows, cols = ((start, stop) if s == side else (0, self.shape[s]) for s in (ROWS, COLUMNS))
        return self.read(rows, cols)

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self if inputs is None else self.hollow().given(side, start, inputs)

    def hollow(self) -> Source:
        return Hollow(self.shape, self.dtype, np.asarray) if self.held else self

    def _lands_in(self, out: np.ndarray) -> bool:
        """Whether Zarr can decode straight into `out`."""
        return out.flags.c_contiguous and self._straight(out.dtype)

    def _straight(self, dtype: np.dtype[Any]) -> bool:
        """Whether entries lie as they are stored: same dtype, same order of axes, plain slices."""
        return (
            isinstance(self.array, zarr.Array)
            and dtype == self.dtype
            and self.axes[ROWS] + self.axes[COLUMNS] == tuple(range(len(self.index)))
            and all(isinstance(i, slice) for i in self.index)
        )

    def _box(
        self, rows: Sequence[slice], cols: Sequence[slice], *, shape: tuple[int, int], out: Any = None
    ) -> np.ndarray:
        order = self.axes[ROWS] + self.axes[COLUMNS]
        where: list[Index] = [slice(None)] * len(order)
        for axis, part in zip(order, (*rows, *cols), strict=True):
            index = self.index[axis]
            if isinstance(index, slice):
                where[axis] = slice(index.start + part.start, index.start + part.stop)
            else:
                where[axis] = index[part]
        if out is not None:
            slices = [w for w in where if isinstance(w, slice)]
            grid = out.reshape(tuple(w.stop - w.start for w in slices))
            if self._plain and self._plain.read(slices, grid):
                return out
            self.array.get_basic_selection(
                tuple(slices), out=default_buffer_prototype().nd_buffer.from_numpy_array(grid)
            )
            return out
        return np.transpose(_fetch(self.array, where), order).reshape(shape)

    def _cuts(self, axes: Sequence[int], sizes: Sequence[int], longest: int) -> np.ndarray:
        size, inner = sizes[0], prod(sizes[1:])
        if size * inner == 0:
            return np.array([0, 0])
        if inner > longest and len(sizes) > 1:
            # One step along the first dim is too much: cut inside each of its slabs.
            within = self._cuts(axes[1:], sizes[1:], longest)
            return np.unique((np.arange(size)[:, None] * inner + within[None, :]).reshape(-1))
        steps, chunk, index = max(1, longest // max(inner, 1)), self.chunks[axes[0]], self.index[axes[0]]
        if not isinstance(index, slice):
            return even_cuts(size, steps) * inner
        first = chunk - index.start % chunk
        if chunk > steps:  # a chunk is taller than a block may be: its parts are read by several blocks
            edges = np.unique(np.clip(np.append(np.arange(first, size, chunk), [0, size]), 0, size))
            parts = [a + even_cuts(int(b - a), steps) for a, b in pairwise(edges)]
            return np.unique(np.concatenate(parts)) * inner
        return even_cuts(size, steps, chunk, first) * inner

    def _covered(self, axis: int, part: slice) -> int:
        index, chunk, size = self.index[axis], self.chunks[axis], self.array.shape[axis]
        if isinstance(index, slice):
            return int(covered(index.start + part.start, index.start + part.stop, chunk, size))
        starts = np.unique(index[part] // chunk) * chunk
        return int(np.sum(np.minimum(chunk, size - starts)))


def _length(index: Index) -> int:
    return index.stop - index.start if isinstance(index, slice) else len(index)


def _fetch(array: Any, where: Sequence[Index]) -> np.ndarray:
    if all(isinstance(w, slice) for w in where):
        return np.asarray(array[tuple(where)])
    if isinstance(array, np.ndarray):
        ranges = [np.arange(n)[w] if isinstance(w, slice) else w for w, n in zip(where, array.shape, strict=True)]
        return array[np.ix_(*ranges)]
    # Variables of xarray index orthogonally by themselves.
    return np.asarray(getattr(array, "oindex", array)[tuple(where)])
