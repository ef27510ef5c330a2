"""`Source`: where the entries of a matrix are, and how to read a rectangle of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from pipeline.kernels.implicit import ImplicitBlock

__all__ = [
    "COLUMNS",
    "ROWS",
    "Hollow",
    "ImplicitSource",
    "InMemory",
    "Range",
    "Source",
    "covered",
    "even_cuts",
    "joined_cuts",
    "rectangle_nbytes",
]

Range = tuple[int, int]
ROWS, COLUMNS = 0, 1  # the side along which a matrix is cut: blocks of whole rows, or of whole columns


class Source(Protocol):
    """An n x d table of numbers that can be read by rectangles; it is small, whatever the size of the data."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_features)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored entries."""
        ...

    @property
    def held(self) -> bool:
        """Whether the entries are in this process's memory (and must be sent to workers)."""
        ...

    @property
    def implicit(self) -> bool:
        """Whether its blocks can be had without being made dense: then it has `together` and `block` too."""
        ...

    @property
    def layout(self) -> str:
        """How the entries are stored, in words."""
        ...

    @property
    def collections(self) -> tuple[Any, ...]:
        """The Dask collections whose keys `inputs` names."""
        ...

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        """The rectangle as a dense array; into `out` (and cast to its dtype) where given."""
        ...

    def cuts(self, side: int, longest: int) -> np.ndarray:
        """Positions, 0 and the end among them, that cut a side in blocks of at most `longest`, along stored chunks."""
        ...

    def unit(self, side: int) -> int:
        """Length of a stored chunk along a side: blocks that are shorter open the same chunks again and again."""
        ...

    def touched(self, side: int, cuts: np.ndarray) -> int:
        """Decoded bytes of all chunks that a walk over the blocks between the cuts opens."""
        ...

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        """Bytes that are held beside a dense block of a dtype while it is read: its chunks as they are stored, too."""
        ...

    def inputs(self, side: int, start: int, stop: int) -> Any:
        """What a task needs to be given to read this stretch elsewhere: arrays, Dask keys; None when nothing."""
        ...

    def given(self, side: int, start: int, inputs: Any) -> Source:
        """The source with what `inputs` became, valid on that stretch."""
        ...

    def hollow(self) -> Source:
        """The source without the data (or the graph) that it holds: what is sent to workers, to be `given` inputs."""
        ...


class ImplicitSource(Source, Protocol):
    """A source whose entries are mostly zero, or not stored at all."""

    @property
    def density(self) -> float:
        """Share of the entries that are stored."""
        ...

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        """Those of the cuts between which a block that is not made dense has about so many bytes."""
        ...

    def block(self, rows: Range, cols: Range) -> ImplicitBlock:
        """The rectangle as it is."""
        ...


def rectangle_nbytes(source: Source, side: int, cuts: np.ndarray) -> int:
    """Bytes of the largest block between the cuts, in the dtype of the stored entries."""
    return int(np.diff(cuts).max()) * source.shape[1 - side] * source.dtype.itemsize


def joined_cuts(cuts: np.ndarray, most: float) -> np.ndarray:
    """Some of the cuts, the first and the last among them, at most so far apart where the cuts allow it.

    >>> joined_cuts(np.array([0, 2, 4, 6, 7]), 5).tolist()
    [0, 4, 7]
    """
    kept = [int(cuts[0])]
    for before, cut in pairwise(cuts[1:].tolist()):
        if cut - kept[-1] > most:
            kept.append(before)
    return np.array([*kept, int(cuts[-1])]) if len(cuts) > 1 else cuts


def even_cuts(length: int, longest: int, unit: int = 1, first: int | None = None) -> np.ndarray:
    """Cut [0, length) at multiples of `unit` (the first after `first`), as evenly as the limit allows.

    >>> even_cuts(10, 4, unit=2).tolist(), even_cuts(10, 5, unit=4, first=1).tolist()
    ([0, 4, 6, 10], [0, 1, 5, 9, 10])
    """
    if length == 0:
        return np.array([0, 0])
    first = unit if first is None else first
    units = 1 + max(0, -(-(length - first) // unit))
    per_block = max(1, min(units, longest // unit))
    blocks = -(-units // per_block)
    at = np.linspace(0, units, blocks + 1).round().astype(np.int64)
    return np.minimum(np.where(at == 0, 0, first + (at - 1) * unit), length)


def covered(start: Any, stop: Any, chunk: int, size: int) -> Any:
    """Length of the whole chunks that [start, stop) of an axis of `size` lies in: of one stretch, or of each of many.

    >>> covered(np.array([3, 9]), np.array([5, 10]), 4, 10).tolist()
    [8, 2]
    """
    return np.minimum(-(-stop // chunk) * chunk, size) - start // chunk * chunk


class InMemory:
    """A stretch of a matrix that was sent to a task as a dense array."""

    held = True
    implicit = False
    layout = "in memory"
    collections = ()

    def __init__(self, array: np.ndarray, side: int, start: int, shape: tuple[int, int]) -> None:
        self.array, self.side, self.start, self.shape = array, side, start, shape
        self.dtype = array.dtype

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        a, b = (self.start if side == self.side else 0 for side in (ROWS, COLUMNS))
        part = self.array[rows[0] - a : rows[1] - a, cols[0] - b : cols[1] - b]
        if out is None:
            return part
        out[...] = part
        return out

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return even_cuts(self.shape[side], longest)

    def unit(self, side: int) -> int:
        return 1

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return int(cuts[-1] - cuts[0]) * self.shape[1 - side] * self.dtype.itemsize

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return 0

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return None

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self

    def hollow(self) -> Source:
        return self


class Hollow(InMemory):
    """A source whose data comes with the task; `unpack` makes a dense array of it."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], unpack: Callable[[Any], np.ndarray]) -> None:
        self.shape, self.dtype, self.unpack = shape, dtype, unpack

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return InMemory(self.unpack(inputs), side, start, self.shape)
