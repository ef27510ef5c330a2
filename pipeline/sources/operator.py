"""`Operator`: a matrix of which only products are known, by two functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.kernels.operator import OperatorBlock
from pipeline.sources.source import ROWS, Range, Source

__all__ = ["Operator", "is_operator"]

Product = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """A matrix X (n, d) that is not stored: X R and X^H Y are what is known of it.

    Open it with `open_matrix`, or give it to an estimator, as anything else; objects with `shape`, `dtype`, `matmat`
    and `rmatmat`, such as scipy's and pylops' LinearOperator, are taken too. The total variance, spreads of features
    and Gram matrices come from products with columns of the identity, a few at a time. Before a fit the two functions
    are checked against each other on random vectors: <X v, u> = <v, X^H u>.

    Parameters
    ----------
    shape : pair of int
    matmat : callable
        R (d, l) -> X R (n, l); with `block_rows`, (R, start, stop) -> rows [start, stop) of X R.
    rmatmat : callable
        Y (n, l) -> X^H Y (d, l); with `block_rows`, (Y, start, stop) -> X[start:stop]^H Y for Y of those rows only.
    dtype : dtype
        Of the entries: float64 by default, complex where products are.
    block_rows : int, optional
        How many rows a block has; without it the whole matrix is one block.

    Examples
    --------
    >>> from pipeline import PCA
    >>> a = np.random.default_rng(0).standard_normal((50, 4))
    >>> X = Operator(a.shape, lambda r: a @ r, lambda y: a.T @ y)
    >>> np.allclose(PCA(2).fit(X).singular_values_, PCA(2).fit(a).singular_values_)
    True
    """

    shape: tuple[int, int]
    matmat: Product
    rmatmat: Product
    dtype: Any = np.float64
    block_rows: int | None = None
    held: ClassVar[bool] = False
    implicit: ClassVar[bool] = True
    collections: ClassVar[tuple[Any, ...]] = ()
    density: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if len(shape) != 2 or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
            raise InputError(f"the operator has the shape {self.shape}: give two numbers, rows and columns")
        for name in ("matmat", "rmatmat"):
            if not callable(getattr(self, name)):
                raise InputError(f"{name} of the operator is no function")
        if self.block_rows is not None and not (isinstance(self.block_rows, int | np.integer) and self.block_rows > 0):
            raise InputError(f"block_rows={self.block_rows!r}: give a number of rows, from 1")
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    @classmethod
    def of(cls, other: Any) -> Operator:
        """Anything with `shape`, `dtype`, `matmat` and `rmatmat` as an Operator."""
        if isinstance(other, Operator):
            return other
        return cls(tuple(other.shape), other.matmat, other.rmatmat, getattr(other, "dtype", None) or np.float64)

    @property
    def layout(self) -> str:
        cut = "" if self.block_rows is None else f" in blocks of {self.block_rows} rows"
        return f"operator {self.shape[0]} x {self.shape[1]}{cut}"

    def block(self, rows: Range, cols: Range) -> OperatorBlock:
        shape = rows[1] - rows[0], cols[1] - cols[0]
        times, adjoint = (partial(f, rows=rows, cols=cols) for f in (self._times, self._adjoint))
        return OperatorBlock(shape, self.dtype, times, adjoint)

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        block = self.block(rows, cols)
        wide = block.shape[0] < block.shape[1]
        part = np.concatenate(list(block.slabs())) if wide else block.toarray()
        if out is None:
            return part
        out[...] = part
        return out

    def cuts(self, side: int, longest: int) -> np.ndarray:
        # A part of a block costs as much as all of it, so none is cut.
        length = self.shape[side]
        step = self.block_rows if side == ROWS and self.block_rows is not None else length
        return np.array([*range(0, length, max(step, 1)), length])

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

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self

    def hollow(self) -> Source:
        return self

    def _times(self, thin: np.ndarray, rows: Range, cols: Range) -> np.ndarray:
        """X[rows, cols] R, block by block."""
        thin = _padded(thin, cols[0], self.shape[1])
        if self.block_rows is None:
            return np.asarray(self.matmat(thin))[slice(*rows)]
        return np.concatenate([np.asarray(self.matmat(thin, a, b))[lo:hi] for a, b, lo, hi in self._blocks(rows)])

    def _adjoint(self, thin: np.ndarray, rows: Range, cols: Range) -> np.ndarray:
        """X[rows, cols]^H Y, block by block."""
        if self.block_rows is None:
            return np.asarray(self.rmatmat(_padded(thin, rows[0], self.shape[0])))[slice(*cols)]
        total: Any = 0.0
        for a, b, lo, hi in self._blocks(rows):
            part = thin[max(a - rows[0], 0) : max(a - rows[0], 0) + hi - lo]
            total = total + np.asarray(self.rmatmat(_padded(part, lo, b - a), a, b))[slice(*cols)]
        return total

    def _blocks(self, rows: Range) -> list[tuple[int, int, int, int]]:
        """First and last + 1 row of the blocks that rows lie in, and what of each is meant."""
        assert self.block_rows is not None
        found = []
        for a in range(rows[0] // self.block_rows * self.block_rows, rows[1], self.block_rows):
            b = min(a + self.block_rows, self.shape[0])
            found.append((a, b, max(rows[0] - a, 0), min(rows[1], b) - a))
        return found


def is_operator(source: Any) -> bool:
    """Whether something is known by its products."""
    return callable(getattr(source, "matmat", None)) and callable(getattr(source, "rmatmat", None))


def _padded(part: np.ndarray, before: int, length: int) -> np.ndarray:
    """Rows among rows of zeros."""
    if len(part) == length:
        return part
    whole = np.zeros((length, part.shape[1]), part.dtype)
    whole[before : before + len(part)] = part
    return whole
