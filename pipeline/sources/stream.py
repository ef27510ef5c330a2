"""`Stream`: blocks of rows that come once, in an order and number that are not known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import InputError, NonfiniteError, PipelineError, StoreError
from pipeline.sources.source import COLUMNS, Range, Source

__all__ = ["Stream"]

_PIECE_BYTES = 32 << 20
_UNKNOWN = 1 << 40  # rows, until the last block has come


class Stream:
    """An iterator of blocks (m, d), of any heights, as a source that can be walked along its rows, once.

    Rows are put together to pieces of one height, so that the answer does not depend on how they came.
    """

    held = True
    implicit = False
    layout = "a stream of row blocks, read once"
    collections = ()

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks = (_checked(block, i) for i, block in enumerate(blocks))
        self._first: np.ndarray | None = next(self._blocks, None)
        if self._first is None:
            raise InputError("the stream holds no blocks (or was read already): a stream can be read only once")
        self.dtype = self._first.dtype
        self._width = self._first.shape[1]
        self._rows: int | None = None
        self.height = max(1, _PIECE_BYTES // max(1, self._width * self.dtype.itemsize))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_features); a very large number of samples as long as the end is not reached."""
        return _UNKNOWN if self._rows is None else self._rows, self._width

    def pieces(self, dtype: np.dtype[Any]) -> Iterator[tuple[int, np.ndarray]]:
        """First row and rows (height, d) of each piece, the last of which may be lower.

        Raises InputError when the stream was read already, or blocks differ in width, and StoreError where what makes
        the blocks fails.
        """
        if self._first is None:
            raise InputError("a stream can be read only once: write it to a store for solvers that read again")
        block: np.ndarray | None = self._first
        self._first = None
        start = filled = 0
        piece = np.empty((self.height, self._width), dtype)
        while block is not None:
            if block.shape[1] != self._width:
                raise InputError(
                    f"the stream's first block has {self._width} features, and one after row {start + filled} has "
                    f"{block.shape[1]}"
                )
            taken = 0
            while taken < len(block):
                part = block[taken : taken + self.height - filled]
                piece[filled : filled + len(part)] = part
                taken, filled = taken + len(part), filled + len(part)
                if filled == self.height:
                    yield start, piece
                    start, filled = start + filled, 0
            block = self._next(start + filled)
        self._rows = start + filled
        if filled:
            yield start, piece[:filled]

    def _next(self, row: int) -> np.ndarray | None:
        try:
            return next(self._blocks, None)
        except (PipelineError, MemoryError):
            raise
        except Exception as error:
            raise StoreError(f"the stream broke off after row {row} ({type(error).__name__}: {error})") from error

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        raise InputError("a stream can be read only once, and by fit: write it to a store to read parts of it")

    def cuts(self, side: int, longest: int) -> np.ndarray:
        return np.array([0, self._width if side == COLUMNS else self.height])

    def unit(self, side: int) -> int:
        return 1

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return 0 if self._rows is None else self._rows * self._width * self.dtype.itemsize

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return 0

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return None

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self

    def hollow(self) -> Source:
        return self


def _checked(block: Any, i: int) -> np.ndarray:
    """A block as a dense array (m, d) of numbers."""
    if hasattr(block, "toarray"):
        block = block.toarray()
    try:
        array = np.atleast_2d(np.asarray(block))
    except (TypeError, ValueError) as error:
        raise InputError(f"block {i} of the stream is no array: {error}") from error
    if array.ndim != 2 or array.dtype.kind not in "biuf" or array.shape[1] == 0:
        raise InputError(
            f"block {i} of the stream has shape {array.shape} and holds {array.dtype}: real numbers (m, d) are needed"
        )
    return array


def first_defect(x: np.ndarray, start: int) -> NonfiniteError | InputError:
    """What is wrong with a piece whose rows begin at `start`."""
    bad = ~np.isfinite(x)
    bad &= ~np.isnan(x).all(axis=0) if start == 0 else True
    row, feature = np.unravel_index(int(np.argmax(bad)), bad.shape)
    value = x[row, feature]
    return InputError(
        f"the stream holds {'NaN' if np.isnan(value) else 'infinity (inf)'} at row {start + row}, feature {feature}, "
        f"the first of {int(bad.sum())} such entries up to row {start + len(x)}: fill them, or leave those samples or "
        "features out"
    )
