"""What is done to one block in place: shift, mask, weigh, standardise, and check that its entries are numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import InputError, NonfiniteError

__all__ = [
    "LOUDEST",
    "SHORT",
    "absent_columns",
    "adjoint_product",
    "careful",
    "check_digits",
    "check_energy",
    "check_sums",
    "clear",
    "column_squares",
    "column_sums",
    "doubled",
    "fill_in",
    "fits_single",
    "like",
    "magnitudes",
    "mark",
    "out_of_range",
    "pilot_mean",
    "product_in_float64",
    "single",
    "slab_rows",
    "spread_of",
    "standardise_columns",
    "strips",
    "times_in_float64",
    "wide_squares",
    "working_dtype",
]

_FEW = 1 << 22  # entries up to which double precision takes no time that anybody would see
_FAINT = "entries vary so little that their squares underflow: multiply the data by a constant first"
# Sums of squares between these can be squared again, as residuals and certificates do.
_FAINTEST, LOUDEST = 1e-120, 1e140
_HEAD = 1024  # rows that tell where the mean is about
SHORT = 64  # terms that are added up in single precision
_SLAB_BYTES, _SLAB_ROWS = 8 << 20, 256  # of a part in double precision: rows enough for BLAS, however wide
_STRIP_BYTES = 1 << 20  # of a part that is looked through while it is in the cache


def working_dtype(dtype: Any) -> np.dtype[Any]:
    """In which data of a dtype is computed and given back.

    float32 for floats of up to 4 bytes, complex64 for complex numbers of up to 8, else double precision.

    >>> [str(working_dtype(dtype)) for dtype in ("f2", "i4", "c8", "c16")]
    ['float32', 'float64', 'complex64', 'complex128']
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return np.dtype(np.complex64 if dtype.itemsize <= 8 else np.complex128)
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def doubled(dtype: Any) -> np.dtype[Any]:
    """The dtype in double precision: complex128 for complex numbers, float64 for all others."""
    return np.dtype(np.complex128 if np.dtype(dtype).kind == "c" else np.float64)


def like(dtype: np.dtype[Any], other: np.ndarray) -> np.dtype[Any]:
    """The dtype, complex where the other values are."""
    return np.result_type(dtype, np.complex64) if other.dtype.kind == "c" else dtype


def single(dtype: Any) -> bool:
    """Whether a working dtype is of single precision."""
    return np.dtype(dtype) in (np.dtype(np.float32), np.dtype(np.complex64))


def careful(dtype: Any, entries: int) -> np.dtype[Any]:
    """In which so many entries of a dtype are multiplied: in double precision where they are few, as it costs nothing.

    >>> careful("f4", 10_000), careful("f4", 10_000_000)
    (dtype('float64'), dtype('float32'))
    """
    return doubled(dtype) if entries <= _FEW else working_dtype(dtype)


def fits_single(dtype: Any) -> bool:
    """Whether float32 holds all numbers of a dtype of integers.

    >>> [fits_single(dtype) for dtype in ("i1", "u2", "?", "i4", "f8")]
    [True, True, True, False, False]
    """
    dtype = np.dtype(dtype)
    return dtype.kind in "biu" and dtype.itemsize <= 2


def slab_rows(d: int) -> int:
    """How many rows of d entries `product_in_float64` takes at a time."""
    return max(1, min(_SLAB_ROWS, _SLAB_BYTES // (8 * max(d, 1))))


def mark(x: np.ndarray, code: float) -> None:
    """NaN in place of `code`."""
    for strip in strips(x):
        where = strip == code
        if where.any():
            strip[where] = np.nan


def fill_in(x: np.ndarray, fill: np.ndarray) -> None:
    """The entries of `fill` (d,) in place of NaN."""
    fill = fill.astype(x.dtype)
    for strip in strips(x):
        where = np.isnan(strip)
        if where.any():
            np.copyto(strip, fill, where=where)


def strips(x: np.ndarray, least: int = 1) -> Iterator[np.ndarray]:
    """A few rows at a time, a multiple of `least`: what is done to a whole block is read from memory each time anew."""
    height = max(_STRIP_BYTES // max(x[:1].nbytes, 1) // least, 1) * least
    return (x[start : start + height] for start in range(0, len(x), height))


def magnitudes(values: np.ndarray) -> np.ndarray:
    """Squares of real or squared magnitudes of complex values, without a root between."""
    return values.real**2 + values.imag**2 if values.dtype.kind == "c" else values * values


def column_sums(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(d,) sums, in double precision, of the rows of a block, each times its weight.

    A few rows at a time as a product, since BLAS is fast: long sums in single precision would lose digits.
    """
    counts = np.ones(x.shape[0], x.dtype) if weights is None else weights.astype(x.dtype, copy=False)
    even = len(x) - len(x) % SHORT
    with np.errstate(over="ignore", invalid="ignore"):  # whoever needs numbers looks for them
        parts = counts[:even].reshape(-1, 1, SHORT) @ x[:even].reshape(-1, SHORT, x.shape[1])
        rest = counts[even:] @ x[even:]
    return parts.sum(axis=(0, 1), dtype=doubled(x.dtype)) + rest


def column_squares(x: np.ndarray) -> np.ndarray:
    """(d,) float64 sums of squares of the columns: a few rows at a time in the block's own dtype, then in float64."""
    if x.dtype.kind == "c":
        return column_squares(x.real) + column_squares(x.imag)
    parts = (x[start : start + SHORT] for start in range(0, x.shape[0], SHORT))
    return sum((np.einsum("ij,ij->j", p, p).astype(np.float64) for p in parts), np.zeros(x.shape[1]))


def wide_squares(x: np.ndarray) -> np.ndarray:
    """The same where squares of single precision overflow."""
    if x.dtype.kind == "c":
        return wide_squares(x.real) + wide_squares(x.imag)
    return np.einsum("ij,ij->j", x, x, dtype=np.float64)


def absent_columns(x: np.ndarray) -> np.ndarray:
    """(d,) bool: columns that are NaN in every row; raises NonfiniteError where such a column is NaN or Inf in part.

    Columns whose first rows are numbers are not looked at any further: `check_sums` does that.
    """
    absent = np.zeros(x.shape[1], bool)
    if not np.isfinite(column_sums(x[:_HEAD])).all():
        suspicious = ~np.isfinite(column_sums(x))
        absent[suspicious] = np.isnan(x[:, suspicious]).all(axis=0)
        if not np.isfinite(x[:, suspicious & ~absent]).all():
            raise NonfiniteError("NaN or Inf among the entries")
    return absent


def pilot_mean(x: np.ndarray, absent: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(d,) means of the first rows in double precision, rounded to the block's dtype: near them nothing is lost.

    Of rows that count, where any does: what is constant among them is then exactly so.
    """
    counted = x if weights is None or not weights.any() else x[np.flatnonzero(weights)[:_HEAD]]
    mean = counted[:_HEAD].mean(axis=0, dtype=doubled(x.dtype))
    return np.where(absent, 0.0, mean).astype(x.dtype).astype(doubled(x.dtype))


def clear(x: np.ndarray, absent: np.ndarray) -> None:
    """Zero the absent columns in place; raises NonfiniteError where they are not NaN in every row."""
    if absent.any():
        if not np.isnan(x[:, absent]).all():
            raise NonfiniteError("a feature is NaN in some samples only")
        x[:, absent] = 0


def check_sums(sums: np.ndarray, x: np.ndarray) -> None:
    """Raise NonfiniteError where an entry of a block is NaN or Inf, InputError where the sums of columns overflow."""
    if not np.isfinite(sums).all():
        if np.isfinite(x[:, ~np.isfinite(sums)]).all():
            raise InputError(
                f"entries are so large that their sums overflow {x.dtype}: divide the data by a constant first"
            )
        raise NonfiniteError("NaN or Inf among the entries")


def product_in_float64(x: np.ndarray, lens: np.ndarray | None = None) -> np.ndarray:
    """X^H (X lens) of a block and a vector (d,) or thin matrix in double precision, a few rows at a time, or X^H X.

    Rounding is measured against it.
    """
    total = np.zeros(())
    height = slab_rows(x.shape[1])
    for start in range(0, x.shape[0], height):
        part = x[start : start + height].astype(doubled(x.dtype))
        total = total + part.conj().T @ (part if lens is None else part @ lens)
    return total


def adjoint_product(x: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """X^H R (c, k) of a block (n, c) and (n, k), sums of `SHORT` terms in the block's dtype, and these in double."""
    total = np.zeros((x.shape[1], thin.shape[1]), doubled(x.dtype))
    for start in range(0, len(x), SHORT):
        total += x[start : start + SHORT].conj().T @ thin[start : start + SHORT].astype(x.dtype)
    return total


def times_in_float64(x: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """X R in double precision, a few rows at a time."""
    height = slab_rows(x.shape[1])
    parts = (x[start : start + height].astype(doubled(x.dtype)) @ thin for start in range(0, len(x), height))
    return np.concatenate(list(parts))


def out_of_range(energy: float, x: np.ndarray) -> bool:
    """Whether squares of the entries of a block, `energy` in all, overflow its dtype or are lost below its smallest.

    Raises InputError where those of float64 do.
    """
    if not single(x.dtype):
        if not energy < LOUDEST:
            raise InputError("entries are so large that their squares overflow: divide the data by a constant first")
        if energy == 0 and x.any():
            raise InputError(_FAINT)
        return False
    limits = np.finfo(x.dtype)
    return not energy < float(limits.max) or bool(energy < x.size * limits.tiny / limits.eps and x.any())


def check_digits(x: np.ndarray, name: str) -> None:
    """Raise InputError where integers are so much larger than they differ that float64 cannot tell them apart."""
    largest = max(abs(float(x.max(initial=0))), abs(float(x.min(initial=0))))
    if largest < 2.0**53:
        return
    spread = (x.max(axis=0) - x.min(axis=0)).astype(np.float64)
    lost = largest * 2.0**-53
    if np.any((spread > 0) & (spread < 1e7 * lost)):
        raise InputError(
            f"{name} holds integers of up to {largest:.0e} that differ by {spread[spread > 0].min():.0e} only: float64 "
            "has 16 digits, so subtract a constant from them first"
        )


def check_energy(energy: float) -> None:
    """Raise InputError where sums of squares are too near to the limits of float64 for the algebra on them."""
    if 0 < energy < _FAINTEST:
        raise InputError(_FAINT)
    if energy > LOUDEST:
        raise InputError("entries are so large that their squares overflow: divide the data by a constant first")


def standardise_columns(
    x: np.ndarray,
    weights: np.ndarray | None,
    sample_weights: np.ndarray | None,
    center: bool,
    scale: str | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Centre, scale and weigh whole columns (n, c) in place.

    Parameters
    ----------
    x : (n, c) array
        Overwritten; absent columns become zero. Rows are multiplied by the root of their weight.
    weights : (c,) array, optional
        What the columns are multiplied by.
    sample_weights : (n,) array, optional
        How much each row counts.
    center : bool
        Whether the mean is subtracted.
    scale : {None, 'std', 'genotype'}
        What the columns are divided by.

    Returns
    -------
    mean : (c,) array
        NaN for absent columns.
    scale : (c,) array or None
        NaN for absent columns, 1 for constant ones.
    squares : (c,) array
        Weighted sums of squares about the mean, scaled and weighted.
    """
    absent = absent_columns(x)
    pilot = pilot_mean(x, absent, sample_weights)
    clear(x, absent)
    x -= pilot.astype(x.dtype)
    n = float(x.shape[0]) if sample_weights is None else float(sample_weights.sum())
    sums = column_sums(x, sample_weights)
    check_sums(sums, x)
    rest = sums / n if n else np.zeros(x.shape[1])
    x -= rest.astype(x.dtype)
    mean = pilot + rest
    roots = None if sample_weights is None else np.sqrt(sample_weights)
    if roots is not None:
        x *= roots[:, None].astype(x.dtype)
    with np.errstate(over="ignore"):
        squares = column_squares(x)
    if not np.isfinite(squares).all():
        squares = wide_squares(x)
    factor = np.ones(x.shape[1]) if weights is None else weights
    spread = None
    if scale is not None:
        spread = spread_of(scale, squares / n if n else squares, mean)
        factor = factor / spread
    if not center:  # as it was: put the mean back, row weights included
        height = slab_rows(x.shape[1])
        for start in range(0, x.shape[0], height):
            part = np.ones((1, 1)) if roots is None else roots[start : start + height, None]
            x[start : start + height] += (part * mean).astype(x.dtype)
    if weights is not None or spread is not None:
        x *= factor.astype(x.dtype)
    nan = np.where(absent, np.nan, 1.0)
    return mean * nan, None if spread is None else spread * nan, squares * factor**2


def spread_of(rule: str, variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(d,) what features are divided by; 1 for features that are constant up to rounding.

    'std': the standard deviation, over n as in scikit-learn's StandardScaler. 'genotype': sqrt(2 p (1 - p)) with the
    allele frequency p = mean / 2 (Patterson, Price and Reich 2006), for counts 0, 1, 2 of an allele.
    """
    noise = (1e-15 * np.abs(mean)) ** 2
    if rule == "genotype":
        frequency = np.clip(mean.real / 2, 0.0, 1.0)
        variance = np.where(variance > noise, 2 * frequency * (1 - frequency), 0.0)
    return np.sqrt(np.where(variance > noise, variance, 1.0))
