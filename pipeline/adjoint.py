"""The adjoint test: walked along either side, a matrix is to be the same matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.pairing import Pairing
from pipeline.kernels.blocks import single
from pipeline.matrix import Matrix, open_matrix
from pipeline.sources import COLUMNS, ROWS, Operator, Window
from pipeline.walk import walk

__all__ = ["check_operator", "dottest"]


def dottest(X: Any, random_state: int = 0) -> float:
    """How far <X v, u> and <v, X^H u> are apart for random u and v, over what their size allows; 0 up to rounding.

    Parameters
    ----------
    X : Matrix or anything that `open_matrix` opens
        Read once along each side. Every entry must be finite.
    random_state : int

    Returns
    -------
    float
        |difference| / max(|X v| |u|, |X^H u| |v|).

    Examples
    --------
    >>> dottest(np.arange(12.0).reshape(4, 3)) < 1e-12
    True
    """
    matrix = open_matrix(X)
    rng, dtype = np.random.default_rng(random_state), matrix.block_dtype
    left, right = (_random(rng, size, dtype) for size in matrix.shape)
    rows = matrix if matrix.side == ROWS else matrix.T
    (by_rows, _), (by_columns, _) = (
        walk(m, Pairing(left, right, dtype, side)) for m, side in ((rows, ROWS), (rows.T, COLUMNS))
    )
    sizes = by_rows.squares**0.5 * np.linalg.norm(left), by_columns.squares**0.5 * np.linalg.norm(right)
    apart = abs(by_rows.value - by_columns.value)
    return float(apart / max(sizes)) if apart else 0.0


def check_operator(X: Matrix) -> None:
    """Raise InputError where X is an operator whose two functions do not belong to the same matrix."""
    source = X.source.base if isinstance(X.source, Window) else X.source
    if not isinstance(source, Operator):
        return
    apart = dottest(X)
    if not np.isfinite(apart):
        raise InputError("matmat or rmatmat of the operator gives NaN or infinity for random vectors")
    if not apart <= (1e-3 if single(X.work_dtype) else 1e-6):
        raise InputError(
            f"matmat and rmatmat of the operator are not adjoint: <X v, u> and <v, X^H u> of random u and v differ by "
            f"{apart:.1e} of their size; rmatmat(Y) must give X^T Y, conjugated where X is complex"
        )


def _random(rng: np.random.Generator, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    values = rng.standard_normal(size)
    return (values + 1j * rng.standard_normal(size) if dtype.kind == "c" else values).astype(dtype)
