"""`Flag`: nested subspaces as one immutable value, with its chordal distance, mean and median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from pipeline.errors import ConvergenceError, InputError
from pipeline.kernels.flags import blocks_of, chordal_mean, chordal_median, chordal_squares

__all__ = ["Flag", "checked_type"]


@dataclass(frozen=True, eq=False)
class Flag:
    """Subspaces of dimensions d_1 < … < d_r, each inside the next; only they count, not the rows that span them.

    Parameters
    ----------
    type : tuple of int
        (d_1, …, d_r).
    components : (d_r, d) array
        Orthonormal rows, of which the first d_i span the i-th subspace.

    Examples
    --------
    >>> a, b = Flag((1, 2), np.eye(3)[:2]), Flag((1, 2), np.eye(3)[[1, 0]])
    >>> round(a.distance(b), 3)  # the same plane, but another line in it
    1.414
    >>> Flag.mean([a, a, b]).distance(a) < 1e-6
    True
    """

    type: tuple[int, ...]
    components: np.ndarray

    def __post_init__(self) -> None:
        rows = np.asarray(self.components, dtype=np.float64)
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise InputError("the components of a flag are a matrix of finite numbers (d_r, d)")
        kind = checked_type(self.type, len(rows))
        if kind[-1] != len(rows) or np.abs(rows @ rows.T - np.eye(len(rows))).max() > 1e-4:
            raise InputError(f"a flag of type {kind} needs {kind[-1]} orthonormal rows")
        object.__setattr__(self, "type", kind)
        object.__setattr__(self, "components", rows)

    @property
    def blocks(self) -> list[np.ndarray]:
        """The rows that each subspace adds to the one before: (d_i - d_(i-1), d) arrays."""
        return [self.components[block] for block in blocks_of(self.type)]

    def distance(self, other: Flag) -> float:
        """Chordal distance sqrt(sum_i (m_i - ||X_i Y_i^T||_F^2)); raises InputError for another type or width."""
        _check_alike([self, other])
        return float(np.sqrt(chordal_squares([self.components], other.components, self.type)[0]))

    @staticmethod
    def mean(flags: Sequence[Flag], weights: Any = None) -> Flag:
        """The flag of least weighted sum of squared chordal distances (Mankovich and Birdal 2023).

        Raises InputError where types, widths or weights do not fit, ConvergenceError where it does not come to rest.
        """
        w = _check_alike(flags, weights)
        basis, steps, rests = chordal_mean([f.components for f in flags], w, flags[0].type)
        return _at_rest(flags[0].type, basis, steps, rests)

    @staticmethod
    def median(flags: Sequence[Flag], weights: Any = None) -> Flag:
        """The flag of least weighted sum of chordal distances, which few outliers do not move; raises as `mean`."""
        w = _check_alike(flags, weights)
        basis, _, steps, rests = chordal_median([f.components for f in flags], w, flags[0].type)
        return _at_rest(flags[0].type, basis, steps, rests)


def checked_type(flag_type: Any, most: int) -> tuple[int, ...]:
    """A flag type as a tuple of ints; raises InputError unless it increases from at least 1 to at most `most`."""
    try:
        kind = tuple(flag_type)
    except TypeError:
        kind = (flag_type,)
    ints = all(isinstance(v, Integral) and not isinstance(v, bool) for v in kind)
    if not kind or not ints or kind[0] < 1 or kind[-1] > most or any(a >= b for a, b in pairwise(kind)):
        raise InputError(f"flag type {flag_type!r}: give increasing dimensions from 1 to at most {most}, as (1, 3, 5)")
    return tuple(int(v) for v in kind)


def _check_alike(flags: Sequence[Flag], weights: Any = None) -> np.ndarray:
    if not flags:
        raise InputError("there are no flags to average")
    for f in flags:
        if f.type != flags[0].type or f.components.shape != flags[0].components.shape:
            raise InputError(
                f"flags of type {flags[0].type} in {flags[0].components.shape[1]} dimensions and of type {f.type} in "
                f"{f.components.shape[1]} cannot be compared"
            )
    w = np.ones(len(flags)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(flags),) or not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise InputError(f"weights must be {len(flags)} numbers that are not negative, one of them positive")
    return w


def _at_rest(kind: tuple[int, ...], basis: np.ndarray, steps: int, rests: bool) -> Flag:
    if not rests:
        raise ConvergenceError(f"the average of the flags did not come to rest in {steps} steps: leave out outliers")
    return Flag(kind, basis)
