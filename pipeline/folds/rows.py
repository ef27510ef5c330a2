"""Blocks of rows made ready: shifted by a pilot, so that nothing large cancels, checked, and their sums taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.kernels.blocks import (
    SHORT,
    absent_columns,
    check_sums,
    clear,
    column_sums,
    doubled,
    pilot_mean,
    strips,
)

__all__ = ["SHIFTED", "Rows", "shifted"]

SHIFTED = "shifted rows"


@dataclass(frozen=True)
class Rows:
    """Rows (m, d) less the pilot (d,), times the roots of their weights; zero where features are absent (d,).

    `sums` (d,) are those of the shifted rows, each counted by its weight; `energy` is their sum of squares.
    """

    x: np.ndarray
    pilot: np.ndarray
    absent: np.ndarray
    sums: np.ndarray
    energy: float
    weight: float


def shifted(x: np.ndarray, weights: np.ndarray | None, first: Rows | None) -> Rows:
    """Make a block ready in place, with the pilot of the first block of its run.

    Raises NonfiniteError where an entry is NaN or Inf, InputError where sums overflow.
    """
    if first is None:
        absent = absent_columns(x)
        pilot = pilot_mean(x, absent, weights)
    else:
        absent, pilot = first.absent, first.pilot
    clear(x, absent)
    roots = None if weights is None else np.sqrt(weights)
    shift, sums, energy, start = pilot.astype(x.dtype), np.zeros(x.shape[1], doubled(x.dtype)), 0.0, 0
    for strip in strips(x, SHORT):  # one that is in the cache still is shifted, weighed, and summed up
        strip -= shift
        counts = None if roots is None else roots[start : start + len(strip)]
        if counts is not None:
            strip *= counts[:, None].astype(x.dtype)
        sums += column_sums(strip, counts)
        with np.errstate(over="ignore"):  # what overflows is multiplied in float64
            energy += float(np.vdot(strip, strip).real)
        start += len(strip)
    check_sums(sums, x)
    return Rows(x, pilot, absent, sums, energy, float(len(x)) if weights is None else float(weights.sum()))
